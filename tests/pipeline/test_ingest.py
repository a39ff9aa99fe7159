"""Ingest copies what is new, once, verbatim, whole batches only, and leaves the source alone."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

from deploy import artifact
from pipeline.errors import IngestError
from pipeline.ingest import ingest, place
from pipeline.raw import batches, read_batches, read_bytes
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put


def listing(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_byte_is_kept_with_its_split_and_label(filled: Workspace) -> None:
    before = listing(filled.inbox)
    result = ingest(filled)
    assert (result.batch, result.new_images, result.known) == ("0001", 40, 0)
    raw = {image.sha256: image for image in read_batches(filled.raw)}
    assert {image.data for image in raw.values()} == set(before.values())
    for path, data in before.items():
        (seen,) = raw[hashlib.sha256(data).hexdigest()].occurrences
        assert (seen.path, seen.split, seen.label) == (path, *place(path))
    artifact.verify(filled.raw / "0001")
    assert listing(filled.inbox) == before


def test_a_second_time_adds_nothing(filled: Workspace) -> None:
    ingest(filled)
    tracked = (filled.root / "data" / "raw.dvc").read_text()
    result = ingest(filled)
    assert (result.batch, result.new_images, result.known) == (None, 0, 40)
    assert (filled.root / "data" / "raw.dvc").read_text() == tracked
    assert [batch.name for batch in batches(filled.raw)] == ["0001"]


def test_only_new_content_makes_a_new_batch(filled: Workspace) -> None:
    ingest(filled)
    first = listing(filled.raw / "0001")
    (filled.inbox / "unlabeled" / "camera 0" / "000.png").rename(filled.inbox / "unlabeled" / "renamed.png")
    put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    result = ingest(filled)
    assert (result.batch, result.new_images, result.known) == ("0002", 1, 40)
    assert listing(filled.raw / "0001") == first
    assert len(list(read_bytes(filled.raw))) == 41


def test_a_label_given_later_is_recorded_without_the_bytes(filled: Workspace) -> None:
    ingest(filled)
    data = (filled.inbox / "unlabeled" / "camera 0" / "000.png").read_bytes()
    put(filled, "labeled/cross/000.png", data)
    result = ingest(filled)
    assert (result.new_images, result.new_labels) == (0, 1)
    (image,) = (image for image in read_batches(filled.raw) if image.batch == "0002")
    assert image.data is None
    assert [(seen.split, seen.label) for seen in image.occurrences] == [("train", "cross")]


def test_equal_files_of_one_ingest_are_stored_once_and_named_twice(workspace: Workspace) -> None:
    data = encode(draw(0, 1))
    put(workspace, "unlabeled/a.png", data)
    put(workspace, "unlabeled/b.png", data)
    ingest(workspace)
    (image,) = read_batches(workspace.raw)
    assert [seen.path for seen in image.occurrences] == ["unlabeled/a.png", "unlabeled/b.png"]


def test_labels_csv_names_labels_and_splits(workspace: Workspace) -> None:
    for number in range(3):
        put(workspace, f"unlabeled/{number}.png", encode(draw(0, number)))
    put(workspace, "labels.csv", b"path,label,split\nunlabeled/0.png,cat,\nunlabeled/1.png,dog,test\n")
    ingest(workspace)
    seen = {image.occurrences[0].path: image.occurrences[0] for image in read_batches(workspace.raw)}
    assert [(seen[f"unlabeled/{number}.png"].split, seen[f"unlabeled/{number}.png"].label) for number in range(3)] == [
        ("train", "cat"),
        ("test", "dog"),
        ("train", None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,class\na.png,cat\n", "columns are .*must be path,label"),
        (b"path,label,split\na.png,cat,validation\n", "line 2 has split 'validation'; allowed: train, test"),
        (b"path,label\na.png,cat\na.png,dog\n", "line 3 names 'a.png' again"),
        (b"path,label\nelsewhere/a.png,cat\n", "none of its 1 paths is a file of this source"),
    ],
)
def test_labels_csv_that_cannot_be_understood_is_refused(workspace: Workspace, text: bytes, message: str) -> None:
    put(workspace, "a.png", encode(draw(0, 1)))
    put(workspace, "labels.csv", text)
    with pytest.raises(IngestError, match=message):
        ingest(workspace)
    assert batches(workspace.raw) == []


def test_an_empty_inbox_says_where_images_go(workspace: Workspace) -> None:
    with pytest.raises(IngestError, match=r"inbox: nothing to ingest, no files; put images into .*unlabeled"):
        ingest(workspace)
    put(workspace, "labels.csv", b"path,label\nunlabeled/a.png,cat\n")
    with pytest.raises(IngestError, match="nothing to ingest, no files"):
        ingest(workspace)


def test_batches_that_are_tracked_but_not_here_are_not_overwritten(filled: Workspace) -> None:
    ingest(filled)
    shutil.rmtree(filled.raw)
    with pytest.raises(IngestError, match=r"its earlier batches are not here.*dvc checkout data/raw\.dvc"):
        ingest(filled)
    assert not filled.raw.exists()


def test_a_source_that_does_not_exist_is_named(workspace: Workspace) -> None:
    with pytest.raises(IngestError, match="nowhere: does not exist; give a folder"):
        ingest(workspace, ["nowhere"])


def test_files_still_being_written_wait(filled: Workspace) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["ingest"]["settle_seconds"] = 600.0
    filled.params.write_text(yaml.safe_dump(params))
    path = put(filled, "unlabeled/half.png", encode(draw(0, 999)), age=0)
    result = ingest(filled)
    assert (result.new_images, result.unsettled) == (40, 1)
    os.utime(path, (0, 0))
    assert ingest(filled).new_images == 1


def test_links_pipes_and_sockets_are_named_and_never_opened(filled: Workspace) -> None:
    folder = filled.inbox / "unlabeled"
    (folder / "loop").symlink_to(folder)
    (folder / "secret.png").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe.png")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    result = ingest(filled)
    assert result.new_images == 40
    assert result.skipped == (
        "'unlabeled/loop' is a link",
        "'unlabeled/pipe.png' is not a regular file",
        "'unlabeled/secret.png' is a link",
    )


def test_hostile_names_are_only_names(filled: Workspace) -> None:
    names = [
        "new\nline.png",
        "quote'\".png",
        "<script>alert(1)<script>.png",
        "..png",
        "\u202egnp.exe",
        "a" * 200 + ".png",
    ]
    for number, name in enumerate(names):
        (filled.inbox / "unlabeled" / name).write_bytes(encode(draw(0, 1000 + number)))
    (filled.inbox / "unlabeled").joinpath(os.fsdecode(b"latin-\xe9.png")).write_bytes(b"x")
    ingest(filled)
    paths = {seen.path for image in read_batches(filled.raw) for seen in image.occurrences}
    assert {f"unlabeled/{name}" for name in names if not name.startswith(".")} <= paths


def test_globs_and_urls(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.{'png' if number % 2 else 'txt'}").write_bytes(encode(draw(0, number)))
    assert ingest(workspace, [str(tmp_path / "*.png")]).new_images == 2
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/labeled/cat/1.png", encode(draw(0, 50)))
    memory.pipe("/bucket/2.png", encode(draw(0, 51)))
    assert ingest(workspace, ["memory://bucket"]).new_images == 2
    labels = {image.occurrences[0].path: image.occurrences[0].label for image in read_batches(workspace.raw)}
    assert labels["labeled/cat/1.png"] == "cat"


@pytest.mark.parametrize("failpoint", ["ingest.tar", "artifact.rename", "artifact.renamed", "ingest.track"])
def test_killed_at_any_point_it_leaves_no_half_batch(filled: Workspace, failpoint: str) -> None:
    command = [sys.executable, "-m", "pipeline", "--workspace", str(filled.root), "ingest"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(command, env=environment | {"SIMCLR_FAILPOINT": f"{failpoint}:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    for batch in batches(filled.raw):
        artifact.verify(batch)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert len(list(read_bytes(filled.raw))) == 40
    assert sorted(path.name for path in filled.raw.iterdir()) == ["0001"]
    assert (filled.root / "data" / "raw.dvc").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(filled: Workspace) -> None:
    command = [sys.executable, "-m", "pipeline", "--workspace", str(filled.root), "ingest"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "SIMCLR_FAILPOINT": "ingest.tar:enospc"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "free some space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert batches(filled.raw) == []
