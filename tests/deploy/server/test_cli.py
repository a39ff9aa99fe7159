"""`simclr-deploy serve`: the arguments that it refuses, and the server that it starts."""

import argparse
import http.client
import json
import sys
from pathlib import Path

import pytest

from deploy.cli.serve import address_of, build, describe_address, find_tokens, register
from deploy.errors import ArgumentError, DeployError
from deploy.search.index import Index
from deploy.server.transport.credentials import TOKEN_LENGTH
from deploy.server.transport.listen import listen, listen_unix
from tests.deploy.conftest import DIM, noise
from tests.deploy.server.conftest import IMAGE
from tests.deploy.server.test_drain import served

TOKEN = "x" * TOKEN_LENGTH


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    return parser.parse_args(["serve", *map(str, arguments)])


def ignore(_: ArgumentError | None) -> None:
    """A report that no one reads."""


def test_only_a_loopback_address_is_served_without_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    for host in ("127.0.0.1", "::1", "localhost"):
        assert find_tokens(options("b", "--host", host), {}, ignore) is None
    for host in ("0.0.0.0", "::", "10.0.0.1", ""):
        with pytest.raises(ArgumentError, match="--token-file"):
            find_tokens(options("b", "--host", host), {}, ignore)
        for found in (
            find_tokens(options("b", "--host", host, "--token-file", file), {}, ignore),
            find_tokens(options("b", "--host", host), {"SIMCLR_SERVE_TOKEN": TOKEN}, ignore),
        ):
            assert found
            assert found.current == (TOKEN.encode(),)


def test_a_unix_socket_for_every_user_needs_a_token() -> None:
    assert find_tokens(options("b", "--unix", "s"), {}, ignore) is None
    with pytest.raises(ArgumentError, match="--unix-mode 666: every user"):
        find_tokens(options("b", "--unix", "s", "--unix-mode", "666"), {}, ignore)
    for mode in ("999", "1777", "rw"):
        with pytest.raises(SystemExit):
            options("b", "--unix", "s", "--unix-mode", mode)


@pytest.mark.parametrize("text", ["", "\n", "short", "with a space " * 3, "Ä" * 40, f"{TOKEN}\nshort"])
def test_a_weak_token_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ArgumentError, match="characters or more"):
        find_tokens(options("b", "--token-file", file), {}, ignore)


@pytest.mark.parametrize("wrong", [("--max-images", 0), ("--queue", -1), ("--max-batch", 0), ("--deadline", 0)])
def test_numbers_are_checked(wrong: tuple[str, int], bundle: Path) -> None:
    with pytest.raises(ArgumentError, match=f"{wrong[0]}[ =]{wrong[1]}"):
        build(options(bundle, *wrong))


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "example.org",
        "https://a.org/",
        "https://A.org",
        "https://a.org:443",
        "http://*.a.org",
        "https://ä.org",
    ],
)
def test_an_origin_is_written_as_browsers_send_it(
    origin: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(bundle, "--cors-origin", "https://a.org", "--cors-origin", origin)
    assert "https://app.example.org" in capsys.readouterr().err
    good = ["https://a.org", "http://localhost:3000", "http://[::1]:8080", "app://a"]
    assert options(bundle, *(word for one in good for word in ("--cors-origin", one))).cors_origin == good


def test_serve_refuses_an_index_of_another_encoder(bundle: Path, tmp_path: Path) -> None:
    Index.build(noise(0)[0, :, :1].T[:, :DIM].astype(float), ["a"], "0" * 64).save(tmp_path / "index")
    with pytest.raises(DeployError, match="encoder"):
        build(options(bundle, "--index", tmp_path / "index"))


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        (["http://127.0.0.1:8000"], "open http://127.0.0.1:8000/ to try it, http://127.0.0.1:8000/docs for the API"),
        (["https://0.0.0.0:8000"], "open https://127.0.0.1:8000/ to try it, https://127.0.0.1:8000/docs for the API"),
        (
            ["http://127.0.0.1:80", "http://[::]:80"],
            "open http://127.0.0.1:80/ or http://[::1]:80/ to try it, http://127.0.0.1:80/docs for the API",
        ),
        (["unix:/run/socket"], "at unix:/run/socket"),
    ],
)
def test_a_person_is_shown_what_to_open(addresses: list[str], said: str) -> None:
    assert describe_address(addresses) == f"serving; {said}; Ctrl-C ends it"


def test_the_address_is_the_one_that_clients_use(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "s", 0o600) as listener:
        assert address_of(listener, options("b", "--unix", tmp_path / "s")) == f"unix:{tmp_path}/s"
    with listen("localhost", 0) as listeners:
        port = listeners[0].getsockname()[1]
        secure = options("b", "--tls-cert", "c", "--tls-key", "k")
        assert [address_of(one, secure) for one in listeners] == [f"https://127.0.0.1:{port}", f"https://[::1]:{port}"]


def test_without_the_extra_the_error_says_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("deploy.server")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DeployError, match=r"run `pip install '\.\[serve\]'` in a clone of the repository"):
        build(options(bundle))


@pytest.mark.seconds
def test_the_command_serves(bundle: Path) -> None:
    with served(bundle, "--max-images", 3) as (process, port, lines):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/embed", IMAGE, {"Content-Type": "image/png"})
        assert len(json.load(connection.getresponse())["results"][0]["vector"]) == DIM
        connection.request("GET", "/v1/model")
        assert json.load(connection.getresponse())["limits"]["images"] == 3
        connection.close()
        process.terminate()
        assert process.wait(60) == 0
    assert [line["event"] for line in lines] == ["request", "request", "draining", "ended"]
