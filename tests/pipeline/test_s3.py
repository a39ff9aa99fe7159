"""An inbox and a DVC remote on S3: a real client against a real server on this machine, credentials from outside."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import boto3
import pytest
from moto.server import ThreadedMotoServer

from deploy.artifact import publish, verify
from pipeline.dvc import cache, remote
from pipeline.dvc.client import add, execute
from pipeline.errors import DvcError
from pipeline.ingest.ingest import ingest
from pipeline.maintenance.fsck import check
from pipeline.workspace import Workspace
from tests.conftest import draw, encode

KEY, SECRET = "AKIAPLANTEDPLANTED00", "planted/Secret+0123456789abcdefghijklmno"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty bucket, and an environment in which every client finds it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    name = "images" + tmp_path.name.encode().hex()[-20:]
    where = {"LocationConstraint": "eu-central-1"}
    boto3.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=where)
    return name


def upload(bucket: str, names: dict[str, bytes]) -> None:
    client = boto3.client("s3")
    for name, data in names.items():
        client.put_object(Bucket=bucket, Key=name, Body=data)


def pictures(first: int) -> dict[str, bytes]:
    return {f"inbox/labeled/cat/{number}.png": encode(draw(number % 4, number)) for number in range(first, first + 5)}


def files_with_a_secret(*folders: Path) -> list[str]:
    """Every file below, Git's and DVC's own included, that holds a part of the credentials."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if any(one.encode() in path.read_bytes() for one in (KEY, SECRET))]


def test_an_inbox_in_a_bucket(workspace: Workspace, bucket: str) -> None:
    upload(bucket, pictures(0))
    first = ingest(workspace, [f"s3://{bucket}/inbox"])
    assert (first.new_images, first.known) == (5, 0)
    upload(bucket, pictures(3))
    second = ingest(workspace, [f"s3://{bucket}/inbox"])
    assert (second.new_images, second.known) == (3, 5)
    assert ingest(workspace, [f"s3://{bucket}/inbox"]).batch is None
    for batch in workspace.raw.iterdir():
        if batch.is_dir():
            verify(batch)
    assert files_with_a_secret(workspace.root) == []


def test_a_remote_in_a_bucket_returns_exactly_the_pushed_files(
    workspace: Workspace, bucket: str, tmp_path: Path
) -> None:
    root = workspace.root
    (root / "dvc.yaml").write_text("stages: {}")
    with publish(root / "models" / "bundle") as folder:
        (folder / "encoder.onnx").write_bytes(b"weights" * 1000)
    add(root, root / "models" / "bundle")
    execute(root, "remote", "add", "--default", "store", f"s3://{bucket}/dvc")
    execute(root, "remote", "modify", "store", "verify", "true")
    execute(root, "push")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "released")
    git(root, "tag", "simclr-encoder@v0.0.1")

    clone = clone_of(root, tmp_path / "clone")
    execute(clone, "pull")
    verify(clone / "models" / "bundle")
    assert check(workspace, older_than_days=0, remote=True).damages == []

    with cache.opened(root) as objects:
        damaged = next(md5 for md5, uses in objects.uses().items() if any("onnx" in use.path for use in uses))
    upload(bucket, {f"dvc/files/md5/{damaged[:2]}/{damaged[2:]}": b"wEights" * 1000})
    other = clone_of(root, tmp_path / "other")
    with pytest.raises(DvcError):
        execute(other, "pull")
    assert not (other / "models" / "bundle" / "encoder.onnx").exists()

    (found,) = check(workspace, older_than_days=0, remote=True).damages
    assert (found.path, found.repaired) == (f"store/{damaged}", "pushed again from the cache")
    execute(other, "pull")
    verify(other / "models" / "bundle")
    assert files_with_a_secret(root, clone, other) == []


def test_wrong_credentials_are_an_error_that_does_not_quote_them(
    workspace: Workspace, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.root / "file").write_text("something")
    add(workspace.root, workspace.root / "file")
    execute(workspace.root, "remote", "add", "--default", "store", f"s3://no-such-{bucket}/dvc")
    execute(workspace.root, "remote", "modify", "--local", "store", "secret_access_key", "planted-by-hand-0123")
    execute(workspace.root, "remote", "modify", "--local", "store", "access_key_id", "PLANTEDBYHAND0123")
    with pytest.raises(DvcError) as raised:
        execute(workspace.root, "push", "file")
    for secret in (KEY, SECRET, "planted-by-hand-0123", "PLANTEDBYHAND0123"):
        assert secret not in str(raised.value)
    with pytest.raises(DvcError, match="remote store cannot be read"):
        check(workspace, remote=True)


def test_a_storage_that_refuses_every_request_is_named_with_the_remedy(
    workspace: Workspace, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusal(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(403)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_POST = refuse  # noqa: N815 - names of the base

        def log_message(self, *_: object) -> None: ...

    (workspace.root / "dvc.yaml").write_text("stages: {}")
    (workspace.root / "file").write_text("something")
    add(workspace.root, workspace.root / "file")
    execute(workspace.root, "remote", "add", "--default", "store", f"s3://{bucket}/dvc")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for attempt in (remote.push, remote.send):
            with pytest.raises(DvcError, match="the storage was reached and refused: correct its credentials"):
                attempt(workspace.root)
        server.shutdown()


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True)


def clone_of(root: Path, folder: Path) -> Path:
    """A fresh clone with its own cache."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(root), str(folder)], check=True)
    execute(folder, "config", "--local", "core.site_cache_dir", str(folder / ".dvc" / "site"))
    return folder
