"""Data reach a node by DVC's hash: only what is missing is sent and fetched, and nothing with another hash is used."""

import errno
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from fsspec.implementations.local import LocalFileSystem
from moto.server import ThreadedMotoServer

from simclr_core.compute import remote
from simclr_core.compute.inputs import fingerprint
from simclr_core.compute.remote import Fetched, Store, fetched, read_store
from simclr_core.errors import LaunchError

FILES = {
    "data/prepared/dataset.json": b"{}",
    "data/prepared/train/0001.tar": b"images" * 9,
    "models/initial/card": b"0",
}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As DVC leaves it: a lock, a cache with the listings, and a remote, which is empty."""
    root = tmp_path / "workspace"
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "node"))
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    config = "[core]\n    remote = origin\n['remote \"origin\"']\n    url = ../../storage\n"
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text(config)
    record(root)
    return root


def record(root: Path) -> None:
    outs = []
    for folder in ("data/prepared", "models/initial"):
        files = sorted(path for path in (root / folder).rglob("*") if path.is_file())
        entries = [
            {"md5": md5(one.read_bytes()), "relpath": one.relative_to(root / folder).as_posix()} for one in files
        ]
        listing = json.dumps(entries).encode()
        outs.append({"path": folder, "hash": "md5", "md5": f"{md5(listing)}.dir"})
        cached = root / ".dvc" / "cache" / "files" / "md5" / md5(listing)[:2] / f"{md5(listing)[2:]}.dir"
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(listing)
    (root / "dvc.lock").write_text(json.dumps({"stages": {"all": {"outs": outs}}}))


def objects(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_worker_gets_the_same_files(workspace: Path, tmp_path: Path) -> None:
    for number in range(2):
        for source in fetched(workspace, "pretrain"):
            source.place(tmp_path / f"worker-{number}")
        for name, content in FILES.items():
            assert (tmp_path / f"worker-{number}" / name).read_bytes() == content
    assert len(objects(tmp_path / "storage")) == len(FILES) + 2


def test_only_what_is_new_is_sent_and_fetched(workspace: Path, tmp_path: Path) -> None:
    for source in fetched(workspace, "pretrain"):
        source.place(tmp_path / "first")
    (workspace / "data" / "prepared" / "train" / "0002.tar").write_bytes(b"new")
    record(workspace)
    sources = fetched(workspace, "pretrain")
    for content in FILES.values():  # what the node has is not asked for again
        (tmp_path / "storage" / "files" / "md5" / md5(content)[:2] / md5(content)[2:]).unlink()
    for source in sources:
        source.place(tmp_path / "second")
    assert (tmp_path / "second" / "data" / "prepared" / "train" / "0002.tar").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["data/prepared/train/0001.tar", "data/prepared/dataset.json"])
def test_damage_on_the_way_is_never_used(workspace: Path, tmp_path: Path, name: str) -> None:
    sources = fetched(workspace, "pretrain")
    key = md5(FILES[name])
    (tmp_path / "storage" / "files" / "md5" / key[:2] / key[2:]).write_bytes(b"other")
    with pytest.raises(LaunchError, match=f"has the hash {md5(b'other')}"):
        sources[0].place(tmp_path / "worker")
    assert not (tmp_path / "worker").exists()


@pytest.mark.parametrize("name", ["data/prepared/train/0001.tar", "data/prepared/dataset.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_what_the_cache_of_a_node_has_lost_is_fetched_again(
    workspace: Path, tmp_path: Path, name: str, damage: str
) -> None:
    """As systems clean /tmp: old files alone, folders stay."""
    sources = fetched(workspace, "pretrain")
    for number in range(3):
        for source in sources:
            source.place(tmp_path / f"worker-{number}")
        kept = tmp_path / f"worker-{number}" / name
        assert kept.read_bytes() == FILES[name]
        kept.unlink() if damage == "gone" else kept.write_bytes(b"")
    assert not [path for path in (tmp_path / "node" / "folders").iterdir() if path.name.startswith(".partial")]


@pytest.mark.parametrize("write", ["put_file", "pipe_file"])
def test_half_a_file_never_gets_its_name_in_the_remote(
    workspace: Path, tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC takes what is there under a hash for whole, and pushes it no more."""

    def half(_: LocalFileSystem, *arguments: str) -> None:
        Path(next(one for one in arguments if "storage" in str(one))).write_bytes(b"i")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, write, half)
        with pytest.raises(LaunchError, match="No space left"):
            fetched(workspace, "pretrain")
        assert b"i" not in {path.read_bytes() for path in objects(tmp_path / "storage")}
    for source in fetched(workspace, "pretrain"):
        source.place(tmp_path / "worker")


def test_another_state_than_dvc_knows_is_refused(workspace: Path, tmp_path: Path) -> None:
    (workspace / "data" / "prepared" / "dataset.json").write_bytes(b"[]")
    sources = fetched(workspace, "pretrain")
    with pytest.raises(LaunchError):
        sources[0].place(tmp_path / "worker")


def test_a_node_keeps_what_was_used_last(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "KEPT", 1)
    for source in fetched(workspace, "pretrain"):
        source.place(tmp_path / "worker")
    assert len(list((tmp_path / "node" / "folders").iterdir())) == 1
    assert len(list((tmp_path / "node" / "objects").iterdir())) == 1


def test_without_a_lock_or_a_remote_it_says_so(workspace: Path) -> None:
    (workspace / "dvc.lock").unlink()
    with pytest.raises(LaunchError, match=r"dvc\.lock has no hash of data/prepared"):
        fetched(workspace, "pretrain")
    (workspace / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    with pytest.raises(LaunchError, match=r"\.dvc/config names no default remote"):
        fetched(workspace, "pretrain")


def test_a_remote_that_is_gone_is_one_sentence(workspace: Path, tmp_path: Path) -> None:
    [source, _] = fetched(workspace, "pretrain")
    shutil.rmtree(tmp_path / "storage")
    with pytest.raises(LaunchError, match=r"storage cannot be used \(FileNotFoundError: .*set data: shared"):
        source.place(tmp_path / "worker")
    unknown = Fetched(source.name, source.md5, Store("nowhere://x", {}), source.fingerprint)
    with pytest.raises(LaunchError, match="nowhere://x cannot be used"):
        unknown.place(tmp_path / "worker")


def test_options_of_a_bucket_are_those_of_dvc(workspace: Path) -> None:
    config = "[core]\n    remote = s3\n['remote \"s3\"']\n    url = s3://bucket/dvc\n    endpointurl = http://host:9\n"
    (workspace / ".dvc" / "config").write_text(config)
    (workspace / ".dvc" / "config.local").write_text("['remote \"s3\"']\n    secret_access_key = planted\n")
    assert read_store(workspace) == Store("s3://bucket/dvc", {"client_kwargs": {"endpoint_url": "http://host:9"}})


@pytest.mark.slow
def test_what_dvc_has_recorded_comes_from_a_bucket(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC's own lock, cache and configuration, and afterwards DVC finds everything in the remote."""
    keys = {"AWS_ACCESS_KEY_ID": "planted", "AWS_SECRET_ACCESS_KEY": "planted", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, remote.CACHE: str(tmp_path / "node")}.items():
        monkeypatch.setenv(name, value)
    outs = {"prepare": "data/prepared", "initial": "models/initial"}
    stages = {name: {"cmd": "true", "outs": [path]} for name, path in outs.items()}
    (prepared / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="dvc")
        dvc(prepared, "init", "--no-scm")
        dvc(prepared, "commit", "--force", *outs)
        dvc(prepared, "remote", "add", "--default", "bucket", "s3://dvc/store")
        dvc(prepared, "remote", "modify", "bucket", "endpointurl", endpoint)
        for source in fetched(prepared, "pretrain"):
            source.place(tmp_path / "worker")
        status = json.loads(dvc(prepared, "status", "--cloud", "--json", *outs))
    finally:
        server.stop()
    assert status == {}
    for path in outs.values():
        assert fingerprint(tmp_path / "worker" / path) == fingerprint(prepared / path)
        assert (tmp_path / "worker" / path).resolve().is_relative_to(tmp_path / "node")


def dvc(workspace: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=workspace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
