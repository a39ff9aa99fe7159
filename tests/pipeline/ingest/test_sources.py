"""Every regular file of a source is listed, whatever its name; what is passed over is named and never opened."""

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import IngestError
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import batches, read_bytes
from pipeline.ingest.sources import Source, list_source
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put, read_files
from tests.sentences import assert_plain


def test_the_home_folder_of_an_unknown_user_is_named(workspace: Workspace) -> None:
    with pytest.raises(
        IngestError, match=r"^~no-such-user/photos: no home folder of ~no-such-user is known here; give"
    ):
        ingest(workspace, ["~no-such-user/photos"])


def test_a_source_that_does_not_exist_is_named(workspace: Workspace) -> None:
    with pytest.raises(IngestError, match="nowhere: does not exist; give a folder"):
        ingest(workspace, ["nowhere"])


def test_a_source_that_cannot_be_opened_is_named_without_python(workspace: Workspace, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop"):
        with pytest.raises(IngestError, match=r"cannot be opened .*; give a folder") as refused:
            ingest(workspace, [str(tmp_path / name)])
        assert_plain(str(refused.value))


def test_files_still_being_written_wait(filled: Workspace) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["ingest"]["settle_seconds"] = 600.0
    filled.params.write_text(yaml.safe_dump(params))
    path = put(filled, "unlabeled/half.png", encode(draw(0, 999)), age=0)
    result = ingest(filled)
    assert (result.new_images, result.unsettled) == (40, 1)
    os.utime(path, (0, 0))
    assert ingest(filled).new_images == 1


def test_a_time_in_the_future_is_ignored(filled: Workspace) -> None:
    path = put(filled, "unlabeled/new.png", encode(draw(0, 999)), age=-100_000)
    listed = list_source(filled.root, "inbox", settle_seconds=2.0)
    assert "unlabeled/new.png" in listed.files
    assert listed.files["unlabeled/new.png"].changed is None
    os.utime(path, (listed.listed + 60, listed.listed + 60))  # the clock of a file server may be ahead that much
    assert "unlabeled/new.png" in list_source(filled.root, "inbox", settle_seconds=2.0).unsettled


def test_a_folder_with_the_signs_of_a_glob_in_its_name_and_a_single_file_are_sources(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "a[1]").mkdir()
    for number in range(2):
        (tmp_path / "a[1]" / f"{number}.png").write_bytes(encode(draw(0, number)))
    assert ingest(workspace, [str(tmp_path / "a[1]" / "0.png")]).new_images == 1
    assert ingest(workspace, [str(tmp_path / "a[1]")]).new_images == 1


@pytest.mark.seconds
def test_a_folder_is_one_source_however_its_path_is_written(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(encode(draw(0, 1)))
    elsewhere = tmp_path / "another" / "disk"
    elsewhere.mkdir(parents=True)
    (elsewhere.parent / "photos").mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    roundabout = f"{workspace.root}/../{workspace.root.name}/../photos"
    assert workspace.root.parent == tmp_path
    names = [
        list_source(workspace.root, name, 0.0).identity for name in (str(tmp_path / "photos"), "../photos", roundabout)
    ]
    assert names == [f"file://{tmp_path}/photos"] * 3
    through_a_link = list_source(workspace.root, str(tmp_path / "link" / ".." / "photos"), 0.0)
    assert through_a_link.identity == f"file://{elsewhere.parent}/photos", "what the system would open"
    assert ingest(workspace, ["../photos"]).new_images == 1
    assert ingest(workspace, [roundabout]).batch is None


@pytest.mark.seconds
@pytest.mark.parametrize(
    "sources",
    [
        ["inbox", "./inbox", "inbox/labeled"],
        ["inbox/labeled/cat", "inbox/labeled", "inbox/**/*.png", "inbox"],
    ],
)
def test_a_file_in_two_sources_is_counted_once(workspace: Workspace, sources: list[str]) -> None:
    for number, path in enumerate(["labeled/cat/1.png", "labeled/cat/2.png", "test/cat/3.png", "unlabeled/4.png"]):
        put(workspace, path, encode(draw(number, number)))
    put(workspace, "labeled/notes.txt", b"x")
    assert (survey(workspace, sources).new_files, survey(workspace, sources).files) == (4, 4)
    first, second = ingest(workspace, sources), ingest(workspace, sources)
    for result in (first, second):
        rows = [line.split() for line in result.understood]
        assert ["cat", "2", "1"] in rows
        assert ["(no", "class)", "1", "0"] in rows
        assert len(result.skipped) == 1
    assert (first.new_images, first.known, second.batch, second.known) == (4, 0, None, 4)
    assert survey(workspace, sources).new_files == 0


def test_an_archive_is_not_a_source(workspace: Workspace, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", workspace.root, "params.yaml")
    with pytest.raises(IngestError, match=r"photos.zip: is an archive; unpack it and name the folder"):
        ingest(workspace, [archive])


def test_an_inbox_of_links_says_what_was_passed_over(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.inbox / "unlabeled").mkdir(exist_ok=True)
    (workspace.inbox / "unlabeled" / "photos").symlink_to(tmp_path)
    with pytest.raises(IngestError, match=r"skipped 1 \(is a link\): 'unlabeled/photos'; copy what a link leads to"):
        ingest(workspace)


def test_a_hidden_folder_is_named_once_and_not_read(filled: Workspace) -> None:
    for number in range(3):
        put(filled, f"unlabeled/.thumbnails/{number}.png", encode(draw(0, 900 + number)))
    put(filled, "unlabeled/@eaDir/0.png", encode(draw(0, 910)))
    result = ingest(filled)
    assert result.new_images == 40
    assert result.skipped == (
        "'unlabeled/.thumbnails' is hidden",
        "'unlabeled/@eaDir' is left behind by a desktop or an archiver",
    )


@pytest.fixture
def hostile(filled: Workspace) -> Workspace:
    """Everything that is not a file, among the files."""
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
    assert Path("/etc/hostname").read_bytes() not in [data for _, _, data in read_bytes(hostile.raw)]


@pytest.mark.seconds
def test_devices_are_named_and_never_opened(workspace: Workspace) -> None:
    listed = list_source(workspace.root, "/dev", settle_seconds=0.0)
    assert {"'null' is not a regular file", "'zero' is not a regular file"} <= set(listed.skipped)
    assert not {"null", "zero", "tty"} & listed.files.keys()


@pytest.mark.seconds
@pytest.mark.timeout(60)
@pytest.mark.parametrize("change", ["gone", "pipe", "link", "folder", "locked"])
def test_a_file_that_is_replaced_before_it_is_read_is_named_and_skipped(
    filled: Workspace, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(filled, "unlabeled/new.png", encode(draw(0, 999)))

    def change_after_listing(*arguments: Any) -> Source:
        source = list_source(*arguments)
        if change == "locked":
            monkeypatch.setattr("pipeline.ingest.sources.os.open", denied)
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
    monkeypatch.setattr("pipeline.ingest.ingest.list_source", change_after_listing)
    result = ingest(filled)
    assert result.new_images == 40
    [named] = result.skipped
    assert named.startswith("'unlabeled/new.png' cannot be read (")
    assert named.endswith("); fix or remove it")
    monkeypatch.undo()
    if change in ("gone", "folder"):
        assert ingest(filled).new_images == 0
    elif change == "locked":
        assert ingest(filled).new_images == 1, "a file that was passed over is not known"


class NoConnectionError(Exception):
    """As that of botocore, not an OSError."""


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    """A store of objects, with two pictures in a folder."""
    filesystem = MemoryFileSystem()
    for number in range(2):
        filesystem.pipe_file(f"/camera/{number}.png", encode(draw(number, number)))
    yield filesystem
    filesystem.store.clear()


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (FileNotFoundError("/camera/1.png"), "/camera/1.png"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (NoConnectionError("Could not connect to the endpoint URL"), "Could not connect to the endpoint URL"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_object_that_vanishes_after_the_listing_is_named_and_skipped(
    workspace: Workspace,
    bucket: MemoryFileSystem,
    fault: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(filesystem: MemoryFileSystem, path: str, **options: Any) -> bytes:
        if path == "/camera/1.png":
            raise fault
        return cat_file(filesystem, path, **options)

    cat_file = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", read)
    result = ingest(workspace, ["memory://camera"])
    assert result.new_images == 1
    assert result.skipped == (f"'1.png' cannot be read ({said}); fix or remove it",)
    monkeypatch.undo()
    assert ingest(workspace, ["memory://camera"]).new_images == 1


@pytest.mark.parametrize("fault", [NoConnectionError("Could not connect"), OSError(errno.EIO, "Could not connect")])
def test_a_bucket_that_cannot_be_reached_is_one_line(
    workspace: Workspace, bucket: MemoryFileSystem, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(MemoryFileSystem, "find", fail)
    with pytest.raises(IngestError, match=r"^memory://camera: cannot be opened \(Could not connect\); give a folder"):
        ingest(workspace, ["memory://camera"])


def test_labels_that_disappear_before_they_are_read_are_named(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not passed over: without them, every image would lose its label."""
    labels = put(filled, "labels.csv", b"path,label\nunlabeled/camera 0/000.png,cat\n")

    def removed(*arguments: Any) -> Source:
        source = list_source(*arguments)
        labels.unlink()
        return source

    monkeypatch.setattr("pipeline.ingest.ingest.list_source", removed)
    with pytest.raises(IngestError, match=r"'inbox/labels.csv' cannot be read \(No such file"):
        ingest(filled)
    assert batches(filled.raw) == []


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_ingested(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (filled.inbox / "lost+found").mkdir()
    real_scandir = os.scandir

    def refused(folder: str) -> Any:
        if str(folder).endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return real_scandir(folder)

    monkeypatch.setattr("pipeline.ingest.sources.os.scandir", refused)
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


@pytest.mark.seconds
@pytest.mark.parametrize("source", ["inbox", "inbox/**"])
def test_hostile_names_are_treated_as_plain_names(filled: Workspace, source: str) -> None:
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
    paths = {path for batch in batches(filled.raw) for _, path, _, _ in read_files(batch)}
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
    labels = {path: label for batch in batches(workspace.raw) for _, path, _, label in read_files(batch)}
    assert labels["labeled/cat/1.png"] == "cat"
