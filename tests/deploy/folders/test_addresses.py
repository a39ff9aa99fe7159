"""Images at addresses are embedded as those in a folder, and the result may go to one."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deploy.artifact import verify
from deploy.cli.main import main
from deploy.errors import ArgumentError, MissingExtraError
from deploy.folders import addresses
from deploy.folders.addresses import Remote, is_address, list_images
from deploy.folders.folder import image_files
from tests.deploy.conftest import encoded, noise


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """Pictures in a folder, and the same in a bucket."""
    filesystem = MemoryFileSystem()
    files = {f"{number}.png": encoded(noise(number)) for number in range(5)}
    files |= {"deep/6": encoded(noise(6)), "bad.png": b"bad", "empty.png": b"", ".hidden/7.png": b"x", "a.txt": b"x"}
    for name, data in files.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        filesystem.pipe_file(f"/photos/{name}", data)
    monkeypatch.chdir(tmp_path)
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs.clear()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_addresses_differ_from_paths() -> None:
    assert all(map(is_address, ("s3://b/a", "memory://a")))
    assert not any(map(is_address, ("a/b", "c:/a", Path("s3://b"), 3)))


@pytest.mark.usefixtures("store")
def test_the_objects_are_the_files_of_a_folder() -> None:
    reported, also = list[str](), list[str]()
    found = image_files(["memory://photos"], reported.append)
    local = image_files(["photos"], also.append)
    assert found == [f"memory:///{file}" for file in local]
    assert len(reported) == len(also) == 2
    assert image_files("memory://photos/0.png") == ["memory://photos/0.png"]
    with pytest.raises(ArgumentError, match="memory://nowhere: no such object or folder"):
        image_files(["memory://nowhere"])


def test_a_bucket_gives_the_vectors_of_the_folder(
    bundle: Path, store: MemoryFileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(bundle), "photos", "-o", "here"]) == 1
    assert main(["embed", str(bundle), "memory://photos", "-o", "memory://vectors/there"]) == 1
    store.get("/vectors/there", str(tmp_path / "there"), recursive=True)
    here, there = tree(tmp_path / "here"), tree(tmp_path / "there")
    verify(tmp_path / "there")
    assert here.keys() == there.keys()
    assert here["vectors.npy"] == there["vectors.npy"]
    assert json.loads(here["embedding.json"]) == json.loads(there["embedding.json"])
    assert here["ids.csv"].replace(b"photos/", b"memory:///photos/") == there["ids.csv"]
    assert here["failures.csv"].count(b"\n") == there["failures.csv"].count(b"\n") == 3
    assert b"empty_file" in there["failures.csv"]
    assert list(tmp_path.glob(".*")) == []
    assert main(["embed", str(bundle), "memory://photos", "-o", "memory://vectors/there"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_an_upload_that_fails_is_repeated_without_embedding_again(
    bundle: Path, store: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["embed", str(bundle), "memory://photos", "-o", "memory://vectors"]
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("gone")))
        assert main(command) == 2
    assert len(list(tmp_path.glob(".vectors.upload-*"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr("deploy.cli.main.embed_files", lambda *_: pytest.fail("embedded again"))
        assert main(command) == 1
    assert store.exists("/vectors/MANIFEST.sha256")
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.usefixtures("store")
def test_images_at_addresses_are_classified(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["embed", str(bundle), "memory://photos/0.png", "-o", "vectors"])
    capsys.readouterr()
    assert main(["classify", str(bundle), "memory://photos/0.png"]) in (0, 2)  # a bundle without classes refuses


def test_what_cannot_be_opened_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="an address has a password in it"):
        list_images("s3://user:secret@bucket/a", {}, False)
    with pytest.raises(ArgumentError, match="nowhere://a: cannot be opened"):
        list_images("nowhere://a", {}, False)
    with pytest.raises(addresses.ImageError, match=r"cannot be read: .*check the address"):
        Remote("memory://no/such").read()
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtraError, match=r"an address needs fsspec; run `pip install '\.\[ray\]'`"):
        list_images("s3://bucket/a", {}, False)
