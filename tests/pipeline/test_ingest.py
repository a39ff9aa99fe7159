"""Ingest copies what is new, once, verbatim, whole batches only, and leaves the source alone."""

import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from deploy import artifact
from pipeline.errors import IngestError
from pipeline.ingest import ingest, place
from pipeline.raw import batches, read_batches, read_bytes
from pipeline.sources import Source, list_source
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


def allow(workspace: Workspace, *classes: str) -> None:
    params = yaml.safe_load(workspace.params.read_text())
    params["ingest"]["classes"] = list(classes)
    workspace.params.write_text(yaml.safe_dump(params))


def test_a_label_that_is_no_class_is_refused_before_anything_is_written(workspace: Workspace) -> None:
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


@pytest.fixture
def hostile(filled: Workspace) -> Workspace:
    """Everything that is no file, among the files."""
    folder = filled.inbox / "unlabeled"
    (folder / "deep").mkdir()
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "deep" / "itself").symlink_to("itself")
    (folder / "out").symlink_to("/etc")
    (folder / "secret.png").symlink_to("/etc/hostname")
    (folder / "nowhere.png").symlink_to("missing.png")
    (folder / "twin.png").symlink_to(folder / "camera 0" / "000.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)  # the path of a socket has at most 108 bytes
        listener.bind(f"/proc/self/fd/{here}/socket.png")
        os.close(here)
    return filled


PASSED_OVER = (
    "'unlabeled/deep/itself' is a link",
    "'unlabeled/deep/loop' is a link",
    "'unlabeled/nowhere.png' is a link",
    "'unlabeled/out' is a link",
    "'unlabeled/pipe.png' is not a regular file",
    "'unlabeled/secret.png' is a link",
    "'unlabeled/socket.png' is not a regular file",
    "'unlabeled/twin.png' is a link",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["folder", "url", "glob"])
def test_links_pipes_and_sockets_are_named_and_never_opened(hostile: Workspace, form: str) -> None:
    source = {"folder": "inbox", "url": f"file://{hostile.inbox}", "glob": "inbox/**"}[form]
    result = ingest(hostile, [source])
    assert result.new_images == 40
    assert result.skipped == PASSED_OVER
    contents = {image.data for image in read_batches(hostile.raw)}
    assert Path("/etc/hostname").read_bytes() not in contents


def test_labels_that_are_gone_when_they_are_read_are_named(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not passed over: without them, every image would lose its label."""
    labels = put(filled, "labels.csv", b"path,label\nunlabeled/camera 0/000.png,cat\n")

    def removed(*arguments: Any) -> Source:
        source = list_source(*arguments)
        labels.unlink()
        return source

    monkeypatch.setattr("pipeline.ingest.list_source", removed)
    with pytest.raises(IngestError, match=r"'inbox/labels.csv' cannot be read \(No such file"):
        ingest(filled)
    assert batches(filled.raw) == []


def test_devices_are_named_and_never_opened(workspace: Workspace) -> None:
    listed = list_source(workspace.root, "/dev", settle_seconds=0.0)
    assert {"'null' is not a regular file", "'zero' is not a regular file"} <= set(listed.skipped)
    assert not {"null", "zero", "tty"} & listed.files.keys()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("change", ["gone", "pipe", "link", "folder", "locked"])
def test_a_file_that_is_something_else_when_it_is_read_is_named_and_passed_over(
    filled: Workspace, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(filled, "unlabeled/new.png", encode(draw(0, 999)))

    def change_after_listing(*arguments: Any) -> Source:
        source = list_source(*arguments)
        if change == "locked":
            monkeypatch.setattr("pipeline.sources.os.open", denied)
            return source
        path.unlink()
        if change == "pipe":
            os.mkfifo(path)
        elif change == "link":
            path.symlink_to("/etc/hostname")
        elif change == "folder":
            path.mkdir()
        return source

    def denied(opened: str, *arguments: Any, **options: Any) -> int:
        if opened == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", opened)
        return real_open(opened, *arguments, **options)

    real_open = os.open
    monkeypatch.setattr("pipeline.ingest.list_source", change_after_listing)
    result = ingest(filled)
    assert result.new_images == 40
    [named] = result.skipped
    assert named.startswith("'unlabeled/new.png' cannot be read (")
    assert named.endswith("); mend it or take it out")
    monkeypatch.undo()
    if change in ("gone", "folder"):
        assert ingest(filled).new_images == 0
    elif change == "locked":
        assert ingest(filled).new_images == 1, "a file that was passed over is not known"


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_ingested(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (filled.inbox / "lost+found").mkdir()
    real_scandir = os.scandir

    def refused(folder: str) -> Any:
        if str(folder).endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return real_scandir(folder)

    monkeypatch.setattr("pipeline.sources.os.scandir", refused)
    result = ingest(filled)
    assert (result.new_images, result.skipped) == (40, ("'lost+found' cannot be listed (Permission denied)",))


def test_a_tree_deeper_than_the_stack_is_walked(workspace: Workspace) -> None:
    here = os.open(workspace.inbox, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with open(os.open("leaf.png", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
        file.write(encode(draw(0, 1)))
    os.close(here)
    try:
        assert list(list_source(workspace.root, "inbox", -1.0).files) == ["d/" * 1500 + "leaf.png"]
    finally:
        subprocess.run(["rm", "-r", workspace.inbox / "d"], check=True)  # what pytest and shutil cannot


@pytest.mark.parametrize("source", ["inbox", "inbox/**"])
def test_hostile_names_are_only_names(filled: Workspace, source: str) -> None:
    names = [
        "new\nline.png",
        "quote'\".png",
        "<script>alert(1)<script>.png",
        "back\\slash.png",
        "comma, semicolon; and $(reboot) `reboot`.png",
        "\x1b[31mred\x07.png",
        "100%s %d {0}.png",
        " space .png",
        "-rf.png",
        "trailing.png.",
        "cafe\u0301.png",
        "caf\u00e9.png",  # its twin in another normal form
        "Upper.png",
        "upper.png",
        "\u202egnp.exe",
        "a" * 200 + ".png",
    ]
    for number, name in enumerate(names):
        put(filled, f"unlabeled/{name}", encode(draw(0, 1000 + number)))
    (filled.inbox / "unlabeled").joinpath(os.fsdecode(b"latin-\xe9.png")).write_bytes(b"x")
    result = ingest(filled, [source])
    paths = {seen.path for image in read_batches(filled.raw) for seen in image.occurrences}
    assert paths >= {f"unlabeled/{name}" for name in names}
    assert result.new_images == 40 + len(names)
    assert result.skipped == (r"'unlabeled/latin-\\xe9.png' has a name that is not UTF-8",)
    assert "\n" not in str(result)
    assert ingest(filled, [source]).new_images == 0


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
