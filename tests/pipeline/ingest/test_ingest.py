"""Ingest copies what is new, once, verbatim, whole batches only, and leaves the source alone."""

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from deploy import artifact
from pipeline.errors import IngestError, WorkspaceError
from pipeline.ingest import news
from pipeline.ingest.ingest import WAITS, ingest
from pipeline.ingest.layout import place
from pipeline.ingest.raw import batches, read_bytes
from pipeline.ingest.sources import Source
from pipeline.retraining.inbox import survey
from pipeline.validation.probe.scan import current, list_all
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put, read_files


def listing(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_byte_is_kept_with_its_split_and_label(filled: Workspace) -> None:
    before = listing(filled.inbox)
    result = ingest(filled)
    assert (result.batch, result.new_images, result.known) == ("0001", 40, 0)
    names = {path: hashlib.sha256(data).hexdigest() for path, data in before.items()}
    kept = [(sha256, data) for _, sha256, data in read_bytes(filled.raw)]
    assert sorted(kept) == sorted((names[path], data) for path, data in before.items())
    assert sorted(read_files(filled.raw / "0001")) == sorted((names[path], path, *place(path)[:2]) for path in before)
    artifact.verify(filled.raw / "0001")
    assert listing(filled.inbox) == before


def test_ingesting_again_adds_nothing(filled: Workspace) -> None:
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
    assert not [data for batch, _, data in read_bytes(filled.raw) if batch == "0002"]
    sha256 = hashlib.sha256(data).hexdigest()
    assert list(read_files(filled.raw / "0002")) == [
        (sha256, "labeled/cross/000.png", "train", "cross"),
        (sha256, "unlabeled/camera 0/000.png", "train", None),
    ]


def test_equal_files_of_one_ingest_are_stored_once_and_named_twice(workspace: Workspace) -> None:
    data = encode(draw(0, 1))
    put(workspace, "unlabeled/a.png", data)
    put(workspace, "unlabeled/b.png", data)
    ingest(workspace)
    assert [stored for _, _, stored in read_bytes(workspace.raw)] == [data]
    assert [path for _, path, _, _ in read_files(workspace.raw / "0001")] == ["unlabeled/a.png", "unlabeled/b.png"]


@pytest.mark.seconds
def test_batches_continue_after_one_was_removed(filled: Workspace) -> None:
    for number in range(3):
        put(filled, f"unlabeled/new {number}.png", encode(draw(0, 900 + number)))
        ingest(filled)
    shutil.rmtree(filled.raw / "0002")
    (filled.inbox / "unlabeled" / "new 1.png").unlink()
    assert ingest(filled).batch is None
    for number in (4, 5):
        put(filled, f"unlabeled/new {number}.png", encode(draw(0, 900 + number)))
        assert ingest(filled).batch == f"{number:04d}"
    assert [batch.name for batch in batches(filled.raw)] == ["0001", "0003", "0004", "0005"]


@pytest.mark.seconds
def test_bytes_that_only_a_removed_batch_held_are_ingested_again(workspace: Workspace) -> None:
    """A later batch lists them without bytes, because their label changed."""
    path = put(workspace, "labeled/cross/a.png", encode(draw(0, 1)))
    put(workspace, "labeled/circle/b.png", encode(draw(1, 2)))
    ingest(workspace)
    path.rename(workspace.inbox / "labeled" / "circle" / "a.png")
    assert ingest(workspace).batch == "0002"
    shutil.rmtree(workspace.raw / "0001")
    result = ingest(workspace)
    assert (result.batch, result.new_images) == ("0003", 2)
    assert len(list(read_bytes(workspace.raw))) == 2
    assert ingest(workspace).batch is None


@pytest.mark.seconds
def test_after_batch_9999_comes_10000(workspace: Workspace) -> None:
    put(workspace, "labeled/cross/a.png", encode(draw(0, 1)))
    ingest(workspace)
    (workspace.raw / "0001").rename(workspace.raw / "9999")
    put(workspace, "b.png", encode(draw(0, 2)))
    assert ingest(workspace).batch == "10000"
    (workspace.inbox / "labeled" / "cross").rename(workspace.inbox / "labeled" / "circle")
    assert ingest(workspace).batch == "10001"
    assert [batch.name for batch in batches(workspace.raw)] == ["9999", "10000", "10001"]
    assert current(list_all(workspace.raw)).filter(path="labeled/circle/a.png")["batch"].to_list() == ["9999"]


def test_labels_csv_names_labels_and_splits(workspace: Workspace) -> None:
    for number in range(3):
        put(workspace, f"unlabeled/{number}.png", encode(draw(0, number)))
    put(workspace, "labels.csv", b"path,label,split\nunlabeled/0.png,cat,\nunlabeled/1.png,dog,test\n")
    ingest(workspace)
    assert {path: (split, label) for _, path, split, label in read_files(workspace.raw / "0001")} == {
        "unlabeled/0.png": ("train", "cat"),
        "unlabeled/1.png": ("test", "dog"),
        "unlabeled/2.png": ("train", None),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,class\na.png,cat\n", "has the columns file,class; give it a first line path,label"),
        (b"path,label,split\na.png,cat,validation\n", "line 2 has split 'validation'; allowed: train, test"),
        (b"path,label\na.png,cat\na.png,dog\n", "line 3 names 'a.png' again"),
        (b"path,label\nelsewhere/a.png,cat\n", r"none of its paths \(1\) is a file of this source"),
    ],
)
def test_an_unreadable_labels_csv_is_refused(workspace: Workspace, text: bytes, message: str) -> None:
    put(workspace, "a.png", encode(draw(0, 1)))
    put(workspace, "labels.csv", text)
    with pytest.raises(IngestError, match=message):
        ingest(workspace)
    assert batches(workspace.raw) == []


def allow(workspace: Workspace, *classes: str) -> None:
    params = yaml.safe_load(workspace.params.read_text())
    params["ingest"]["classes"] = list(classes)
    workspace.params.write_text(yaml.safe_dump(params))


def test_a_label_that_is_not_a_class_is_refused_before_anything_is_written(workspace: Workspace) -> None:
    put(workspace, "labeled/catt/a.png", encode(draw(0, 1)))
    put(workspace, "test/horse/b.png", encode(draw(0, 2)))
    put(workspace, "test/horse/d.png", encode(draw(0, 4)))
    put(workspace, "c.png", encode(draw(0, 3)))
    put(workspace, "labels.csv", b"path,label\nc.png,dog\n")
    allow(workspace, "cat", "dog")
    with pytest.raises(IngestError) as refused:
        ingest(workspace)
    message = str(refused.value)
    assert "'catt' ('labeled/catt/a.png'; did you mean 'cat'?)" in message
    assert "'horse' ('test/horse/b.png' and 1 more)" in message
    assert "allowed: cat, dog; correct the folder's name or labels.csv, or add the class to ingest.classes" in message
    assert batches(workspace.raw) == []
    allow(workspace, "catt", "dog", "horse")
    assert ingest(workspace).new_images == 4


def test_an_empty_inbox_says_where_images_go(workspace: Workspace) -> None:
    with pytest.raises(IngestError, match=r"inbox: nothing to ingest, no files; put images into .*unlabeled"):
        ingest(workspace)
    put(workspace, "labels.csv", b"path,label\nunlabeled/a.png,cat\n")
    with pytest.raises(IngestError, match="nothing to ingest, no files"):
        ingest(workspace)


def test_a_command_waits_for_what_has_just_been_copied(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(filled, 2.0)
    path = put(filled, "unlabeled/new.png", encode(draw(0, 999)), age=0)
    lines, slept = list[str](), list[float]()

    def pass_time(seconds: float) -> None:
        slept.append(seconds)
        os.utime(path, (0, 0))

    monkeypatch.setattr("pipeline.ingest.ingest.time", SimpleNamespace(sleep=pass_time))
    result = ingest(filled, wait=lines.append)
    assert (result.new_images, result.unsettled) == (41, 0)
    assert len(slept) == len(lines) == 1
    assert 0 < slept[0] <= 2.1
    assert "for 1 file that changed a moment ago" in lines[0]


@pytest.mark.seconds
def test_a_copy_that_never_ends_is_not_waited_for(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(filled, 600.0)
    put(filled, "unlabeled/new.png", encode(draw(0, 999)), age=0)
    slept: list[float] = []
    monkeypatch.setattr("pipeline.ingest.ingest.time", SimpleNamespace(sleep=slept.append))
    result = ingest(filled, wait=lambda line: None)
    assert (result.new_images, result.unsettled, len(slept)) == (40, 1, WAITS - 1)


@pytest.mark.seconds
@pytest.mark.parametrize("table", ["labels.csv", "unlabeled/labels.csv"])
def test_a_table_that_is_still_being_written_is_waited_for(
    filled: Workspace, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it would leave images without their labels, and half a word would be another label."""
    settle(filled, 2.0)
    ingest(filled)
    named = put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    row = f"path,label\n{named.relative_to((filled.inbox / table).parent).as_posix()},ca"
    path = put(filled, table, row.encode(), age=0)
    half = ingest(filled)
    assert half.batch is None
    assert any("changed a moment ago; it and the files next to it are left" in line for line in half.understood)
    assert "left for the next run, because of changes a moment ago" in str(half)

    def finish(_: float) -> None:
        put(filled, table, f"{row}t\n".encode())

    monkeypatch.setattr("pipeline.ingest.ingest.time", SimpleNamespace(sleep=finish))
    lines = list[str]()
    assert ingest(filled, wait=lines.append).new_images == 1
    assert "for 1 file that changed a moment ago" in lines[0]
    assert read_files(filled.raw / "0002")[0][1:] == ("unlabeled/new.png", "train", "cat")
    assert path.exists()


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_vanishes_or_changes_while_the_batch_is_written_is_passed_over(
    filled: Workspace, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled.inbox / "unlabeled" / "camera 0" / "000.png"
    begin = artifact.publish

    def publish(target: Path) -> AbstractContextManager[Path]:
        path.unlink(missing_ok=True)
        if not gone:
            put(filled, "unlabeled/camera 0/000.png", encode(draw(0, 999)))
        return begin(target)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.batch.publish", publish)
        result = ingest(filled)
    assert (result.batch, result.new_images, result.known) == ("0001", 39, 0)
    assert len(list(read_bytes(filled.raw))) == len(read_files(filled.raw / "0001")) == 39
    why = "cannot be read (No such file or directory); fix or remove it" if gone else "changed while it was read"
    assert any("skipped 1" in line and why in line for line in result.understood)
    put(filled, "unlabeled/camera 0/000.png", encode(draw(0, 999)))
    assert ingest(filled).new_images == 1


def test_without_what_vanished_there_may_be_no_batch(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(filled)
    path = put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    begin = artifact.publish

    def publish(target: Path) -> AbstractContextManager[Path]:
        path.unlink(missing_ok=True)
        return begin(target)

    monkeypatch.setattr("pipeline.ingest.batch.publish", publish)
    result = ingest(filled)
    assert (result.batch, result.new_images, str(result).partition(",")[0]) == (None, 0, "nothing new")
    assert [batch.name for batch in batches(filled.raw)] == ["0001"]


def test_an_empty_mount_point_is_noted(filled: Workspace) -> None:
    ingest(filled)
    filled.inbox.rename(filled.root / "elsewhere")
    result = ingest(filled)
    assert (result.batch, str(result)) == (None, "nothing new")
    assert "note: inbox is empty, and had 40 contents, which stay in use; if you did not" in "\n".join(
        result.understood
    )
    filled.inbox.rmdir()
    filled.inbox.touch()
    for look in (ingest, lambda workspace: survey(workspace, ["inbox"])):
        with pytest.raises(WorkspaceError, match="is not a folder, and has to be one, also if it is empty; move"):
            look(filled)


def settle(workspace: Workspace, seconds: float) -> None:
    params = yaml.safe_load(workspace.params.read_text())
    params["ingest"]["settle_seconds"] = seconds
    workspace.params.write_text(yaml.safe_dump(params))


def test_tracked_batches_that_are_missing_locally_are_not_overwritten(filled: Workspace) -> None:
    ingest(filled)
    shutil.rmtree(filled.raw)
    with pytest.raises(IngestError, match=r"its earlier batches are missing.*dvc checkout data/raw\.dvc"):
        ingest(filled)
    assert not filled.raw.exists()


@pytest.mark.seconds
@pytest.mark.parametrize(
    "failpoint",
    [
        pytest.param("ingest.tar", marks=pytest.mark.slow),
        "artifact.rename",
        pytest.param("artifact.renamed", marks=pytest.mark.slow),
        "ingest.track",
    ],
)
def test_a_kill_at_any_point_leaves_no_partial_batch(filled: Workspace, failpoint: str) -> None:
    command = [sys.executable, "-m", "pipeline", "--workspace", str(filled.root), "ingest"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run(command, env=environment | {"SIMCLR_FAILPOINT": f"{failpoint}:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    for batch in batches(filled.raw):
        artifact.verify(batch)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert len(list(read_bytes(filled.raw))) == 40
    assert sorted(path.name for path in filled.raw.iterdir()) == ["0001"]
    assert (filled.root / "data" / "raw.dvc").exists()


@pytest.mark.seconds
def test_a_full_disk_is_one_line_and_loses_nothing(filled: Workspace) -> None:
    command = [sys.executable, "-m", "pipeline", "--workspace", str(filled.root), "ingest"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "SIMCLR_FAILPOINT": "ingest.tar:enospc"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "free some space" in done.stderr
    assert done.stderr.count("\n") == 1
    assert batches(filled.raw) == []


def test_new_labels_alone_are_not_called_new_images(filled: Workspace) -> None:
    ingest(filled)
    moved = filled.inbox / "unlabeled" / "camera 0" / "000.png"
    put(filled, "labeled/circle/000.png", moved.read_bytes())
    moved.unlink()
    assert str(ingest(filled)).startswith(
        "no new image, but batch 0002 records new labels, splits or groups of 1 known image, "
    )


def test_only_images_are_copied_and_the_rest_is_counted_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, "animals/cat.png", encode(draw(0, 1)))
    put(workspace, "animals/no suffix", encode(draw(1, 2)))
    put(workspace, "animals/mistaken.dat", encode(draw(2, 3)))
    put(workspace, "animals/damaged.jpg", b"not a JPEG, and its name says that it is one")
    for number in range(5):
        put(workspace, f"animals/meow {number}.ogg", b"OggS" + bytes([number]))
    result = ingest(workspace)
    assert result.new_images == 4
    assert {path for _, path, _, _ in read_files(workspace.raw / "0001")} == {
        "animals/cat.png", "animals/no suffix", "animals/mistaken.dat", "animals/damaged.jpg"
    }  # fmt: skip
    lines = [line for line in result.understood if "is not an image by its name or its first bytes" in line]
    assert len(lines) == 1
    assert " 5 " in lines[0]
    assert [line.split() for line in result.understood if line.startswith("(no class)")] == [
        ["(no", "class)", "4", "0"]
    ]
    opened: list[str] = []
    read = Source.read

    def counted(source: Source, path: str) -> bytes:
        opened.append(path)
        return read(source, path)

    monkeypatch.setattr(Source, "read", counted)
    again = ingest(workspace)
    assert (again.batch, opened) == (None, []), "what is not an image is not read again"
    assert any(" 5 " in line for line in again.understood)


def test_what_an_earlier_version_has_frozen_stays_known(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    put(workspace, "unlabeled/notes.dat", b"neither name nor bytes of an image")
    put(workspace, "unlabeled/cat.png", encode(draw(0, 1)))
    with monkeypatch.context() as before:
        before.setattr(news, "is_image", lambda path, data, arrays: True)
        assert ingest(workspace).new_images == 2
    assert ingest(workspace).batch is None


def test_files_of_which_none_is_an_image_are_nothing_to_ingest(workspace: Workspace) -> None:
    put(workspace, "unlabeled/waves.ogg", b"OggS")
    with pytest.raises(IngestError, match=r"inbox: nothing to ingest, skipped 1 \(is not an image .*; put images into"):
        ingest(workspace)
    for number in range(3):
        put(workspace, f"unlabeled/{number}.npy", b"\x93NUMPY")
    arrays = (
        "; 3 arrays are images only with prepare.channels; set it to their number of channels, such as "
        "`prepare.channels: 5`"
    )
    with pytest.raises(IngestError, match=re.escape(arrays)):
        ingest(workspace)
    (workspace.inbox / "unlabeled" / "waves.ogg").unlink()
    with pytest.raises(IngestError, match=re.escape(f"inbox: nothing to ingest{arrays.replace(';', ',', 1)}")):
        ingest(workspace)


@pytest.mark.seconds
def test_arrays_are_images_once_there_is_a_number_of_channels(filled: Workspace) -> None:
    content = io.BytesIO()
    np.save(content, np.zeros((9, 9, 5), np.uint16))
    put(filled, "unlabeled/cells.npy", content.getvalue())
    put(filled, "unlabeled/notes.dat", b"no image")
    result = ingest(filled)
    assert result.new_images == 40
    assert any("cells.npy" in line and "an image only with prepare.channels" in line for line in result.understood)
    params = yaml.safe_load(filled.params.read_text())
    params["prepare"]["channels"] = 5
    filled.params.write_text(yaml.safe_dump(params))
    again = ingest(filled)
    assert (again.new_images, again.known) == (1, 40)
    (path,) = [path for _, path, *_ in read_files(filled.raw / "0002")]
    assert path == "unlabeled/cells.npy"
