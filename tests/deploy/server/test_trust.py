"""Keys are taken back while the server runs: what no trusted key signed is not served any longer."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.artifact import MANIFEST
from deploy.server import background
from deploy.trust.signature import sign
from tests.deploy.conftest import make_bundle
from tests.deploy.server.conftest import IMAGE, Running, release, running, wait_for
from tests.processes.programs import needs_ssh_keygen

pytestmark = needs_ssh_keygen
REVOKED = 'simclr_model_changes_total{outcome="revoked"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry with two versions, one signed by each of two keys that are trusted; the first one is current."""
    for number in (2, 1):
        release(tmp_path / "registry", f"v0.0.{number}", make_bundle(labels=number == 1))
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / f"key{number}")]
        subprocess.run(command, check=True)
        manifest = (tmp_path / "registry" / f"v0.0.{number}" / MANIFEST).read_bytes()
        (tmp_path / "registry" / f"v0.0.{number}.sig").write_text(sign(manifest, tmp_path / f"key{number}"))
    trusting(tmp_path, 1, 2)
    return tmp_path


def trusting(folder: Path, *numbers: int) -> None:
    keys = [(folder / f"key{number}.pub").read_text() for number in numbers]
    (folder / "signers").write_text("".join(f"* {key}" for key in keys))


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    with running(folder / "registry", signers=folder / "signers") as server:
        assert server.service.trust
        server.service.trust.poll()
        assert answers(server) == [200] * 4
        yield server


def answers(server: Running) -> list[int]:
    triton = {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
    name = server.service.models.current.name
    found = [
        server.post("/v1/embed", IMAGE),
        server.ask("GET", "/v2/health/ready"),
        server.ask("GET", f"/v2/models/{name}/ready"),
    ]
    infer = server.post(f"/v2/models/{name}/infer", json.dumps(triton), "application/json")
    return [*(answer.status for answer in found), 503 if infer.status == 503 else 200]


def poll(server: Running, times: int = 2) -> None:
    assert server.service.trust
    for _ in range(times):
        server.service.trust.poll()


def test_a_model_whose_key_was_taken_back_is_not_served(server: Running, folder: Path) -> None:
    trusting(folder, 2)
    poll(server)
    assert answers(server) == [503] * 4
    refused = server.post("/v1/embed", IMAGE).json["error"]
    assert refused["reason"] == "untrusted"
    assert str(folder) not in refused["message"]
    assert (server.metric(REVOKED), server.metric("simclr_ready")) == (1, 0)
    (revoked,) = server.logged
    assert (revoked["event"], revoked["version"]) == ("model revoked", "v0.0.1")
    assert "No principal matched" in revoked["error"]
    trusting(folder, 1)  # it was a mistake
    poll(server)
    assert answers(server) == [200] * 4


def test_a_version_that_is_trusted_takes_its_place(server: Running, folder: Path) -> None:
    trusting(folder, 2)
    poll(server)
    (folder / "registry" / "CURRENT").write_text("v0.0.2\n")
    server.service.models.poll()
    assert answers(server) == [200] * 4
    poll(server)
    assert answers(server) == [200] * 4
    (folder / "registry" / "CURRENT").write_text("v0.0.1\n")
    server.service.models.poll()
    assert server.service.models.current.version == "v0.0.2"
    assert server.ask("GET", "/v2/health/ready").json["candidate"]["error"] == "UntrustedError"


def test_a_file_that_is_being_written_revokes_nothing(server: Running, folder: Path) -> None:
    (folder / "signers").write_text("")
    poll(server, times=1)
    assert answers(server) == [200] * 4
    trusting(folder, 2, 1)
    poll(server)
    assert answers(server) == [200] * 4
    assert server.logged == []


@pytest.mark.parametrize("change", ["gone", "folder", "huge"])
def test_keys_that_cannot_be_read_revoke_nothing_and_the_log_says_so(
    change: str, server: Running, folder: Path
) -> None:
    signers = folder / "signers"
    signers.unlink()
    if change == "folder":
        signers.mkdir()
    if change == "huge":
        signers.write_bytes(b"\n" * 1_000_001)
    poll(server, times=3)
    assert answers(server) == [200] * 4
    assert [line["event"] for line in server.logged] == ["trust kept"]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"x" * 100_001])
def test_a_signature_that_is_gone_or_ruined_is_not_trusted(
    content: bytes | None, server: Running, folder: Path
) -> None:
    signature = folder / "registry" / "v0.0.1.sig"
    signature.unlink()
    if content is not None:
        signature.write_bytes(content)
    poll(server)
    assert answers(server) == [503] * 4


def test_the_keys_are_watched(server: Running, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "POLL_SECONDS", 0.01)
    assert server.service.trust
    server.service.trust.watch()
    trusting(folder, 2)
    wait_for(lambda: server.post("/v1/embed", IMAGE).status == 503, "the revocation")
    wait_for(lambda: "watch_age_seconds" in server.service.metrics.text([]), "the time of the look")
