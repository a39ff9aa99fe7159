"""`simclr-deploy serve`: the arguments that it refuses, and the server that it starts."""

import argparse
import http.client
import json
import sys
from pathlib import Path

import pytest

from deploy.cli.serve import TOKEN_LENGTH, build, read_token, register
from deploy.errors import ArgumentError, DeployError
from deploy.search.index import Index
from tests.deploy.conftest import DIM, noise
from tests.deploy.server.conftest import IMAGE
from tests.deploy.server.test_drain import served

TOKEN = "x" * TOKEN_LENGTH


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    return parser.parse_args(["serve", *map(str, arguments)])


def test_only_a_loopback_address_is_served_without_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    for host in ("127.0.0.1", "::1", "localhost"):
        assert read_token(host, None, {}) is None
    for host in ("0.0.0.0", "::", "10.0.0.1", ""):
        with pytest.raises(ArgumentError, match="--token-file"):
            read_token(host, None, {})
        assert read_token(host, file, {}) == TOKEN
        assert read_token(host, None, {"SIMCLR_SERVE_TOKEN": TOKEN}) == TOKEN


@pytest.mark.parametrize("text", ["", "\n", "short", "with a space " * 3, "Ä" * 40])
def test_a_weak_token_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ArgumentError, match="characters or more"):
        read_token("127.0.0.1", file, {})


@pytest.mark.parametrize("wrong", [("--max-images", 0), ("--queue", -1), ("--max-batch", 0), ("--deadline", 0)])
def test_numbers_are_checked(wrong: tuple[str, int], bundle: Path) -> None:
    with pytest.raises(ArgumentError, match=f"{wrong[0]} {wrong[1]}"):
        build(options(bundle, *wrong), None)


def test_serve_refuses_an_index_of_another_encoder(bundle: Path, tmp_path: Path) -> None:
    Index.build(noise(0)[0, :, :1].T[:, :DIM].astype(float), ["a"], "0" * 64).save(tmp_path / "index")
    with pytest.raises(DeployError, match="encoder"):
        build(options(bundle, "--index", tmp_path / "index"), None)


def test_without_the_extra_the_error_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("deploy.server")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DeployError, match=r"simclr-pipeline\[serve\]"):
        build(options(bundle), None)


def test_the_command_serves(bundle: Path) -> None:
    with served(bundle, "--max-images", 3) as (process, port, lines):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/embed", IMAGE, {"Content-Type": "image/png"})
        assert len(json.load(connection.getresponse())["results"][0]["vector"]) == DIM
        connection.request("GET", "/v1/model")
        assert json.load(connection.getresponse())["limits"]["images"] == 3
        connection.close()
        process.terminate()
        assert process.wait(10) == 0
    assert [line["event"] for line in lines] == ["request", "request", "draining", "ended"]
