"""A listing of the folders that have changed says what one of all files says, and is made of little."""

import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import IngestError
from pipeline.ingest.files.listing import folder_stamp
from pipeline.ingest.ingest import ingest
from pipeline.ingest.relisting import relist, store
from pipeline.ingest.relisting.store import KEPT_SECONDS, LISTINGS
from pipeline.retraining.confirmed import count_files
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.retraining.bucket import bucket, upload

INBOX, HOUR = ("inbox",), 3600.0


def configure(workspace: Workspace, **settings: object) -> None:
    params = yaml.safe_load(workspace.params.read_text())
    params["ingest"] |= settings
    workspace.params.write_text(yaml.safe_dump(params))


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed, by a clock of folders that two changes never share a tick of."""

    def stamp(path: str, follow: bool = False) -> tuple[str, float] | None:
        if folder_stamp(path, follow) is None:
            return None
        return repr(sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scandir(path))), 0.0

    def listed(path: str) -> Any:
        found.append(path)
        return list_folder(path)

    found: list[str] = []
    scandir, list_folder = os.scandir, relist.list_folder
    monkeypatch.setattr(relist, "folder_stamp", stamp)
    monkeypatch.setattr(relist, "list_folder", listed)
    return found


def test_only_folders_with_news_are_listed(filled: Workspace, scanned: list[str]) -> None:
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    assert len(scanned) == 14
    scanned.clear()
    for path in ("unlabeled/camera 0/new.png", "labeled/cross/new.png"):
        put(filled, path, encode(draw(0, 999)))
    assert survey(filled, INBOX, HOUR).new_files == 42
    assert scanned == [f"{filled.inbox}/labeled/cross", f"{filled.inbox}/unlabeled/camera 0"]
    scanned.clear()
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    assert scanned == []


@pytest.mark.seconds
def test_an_ingest_or_other_batches_have_everything_listed_again(filled: Workspace, scanned: list[str]) -> None:
    survey(filled, INBOX, HOUR)
    ingest(filled)
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    scanned.clear()
    assert survey(filled, INBOX, HOUR).new_files == 0
    assert scanned == []
    shutil.rmtree(filled.raw)
    filled.raw.with_suffix(".dvc").unlink()
    assert survey(filled, INBOX, HOUR).new_files == 40


def test_a_file_overwritten_in_place_shows_when_the_listing_is_old(
    filled: Workspace, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(filled)
    survey(filled, INBOX, HOUR)
    put(filled, "unlabeled/camera 0/000.png", encode(draw(0, 999)), age=1800)
    assert survey(filled, INBOX, HOUR).new_files == 0
    assert survey(filled, INBOX, 0.0).new_files == 1, "as the schedule looks"
    put(filled, "unlabeled/camera 0/002.png", encode(draw(0, 998)), age=1800)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + HOUR + 1)
    assert survey(filled, INBOX, HOUR).new_files == 2
    monkeypatch.setattr(time, "time", lambda: now - 60)  # the clock was set back
    put(filled, "unlabeled/camera 0/004.png", encode(draw(0, 997)), age=1800)
    assert survey(filled, INBOX, HOUR).new_files == 3


def test_a_table_edited_in_place_shows_at_once(filled: Workspace, scanned: list[str]) -> None:
    configure(filled, settle_seconds=2.0)
    put(filled, "unlabeled/labels.csv", b"path,label\ncamera 0/000.png,cat\n")
    ingest(filled)
    assert not survey(filled, INBOX, HOUR).relabeled
    table = put(filled, "unlabeled/labels.csv", b"path,label\ncamera 0/000.png,dog\n", age=1800)
    found = survey(filled, INBOX, HOUR)
    assert (found.relabeled, found.new_files) == (True, 0)
    assert found == survey(filled, INBOX)
    os.utime(table)  # it is being written
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    table.unlink()
    for _ in range(2):
        scanned.clear()
        assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    assert scanned == [], "the table that is gone is looked for no more"


def test_a_file_still_being_written_is_looked_at_again(filled: Workspace, scanned: list[str]) -> None:
    configure(filled, settle_seconds=600.0)
    ingest(filled)
    path = put(filled, "unlabeled/camera 0/half.png", encode(draw(0, 999)), age=30)
    assert (survey(filled, INBOX, HOUR).new_files, survey(filled, INBOX, HOUR).unsettled) == (0, 1)
    os.utime(path, (1e9, 1e9))
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    assert survey(filled, INBOX, HOUR).new_files == 1


def test_a_folder_that_changed_a_moment_ago_is_listed_again(filled: Workspace) -> None:
    """By the real times of folders: a second change within a tick of the clock would not show."""
    survey(filled, INBOX, HOUR)
    put(filled, "unlabeled/camera 0/new.png", encode(draw(0, 999)))
    with closing(sqlite3.connect(filled.scratch / LISTINGS)) as database:
        stamps = {stamp for (stamp,) in database.execute("SELECT stamp FROM folder")}
    assert stamps == {""}
    assert survey(filled, INBOX, HOUR).new_files == 41


def test_the_times_of_a_folder_change_with_its_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a copy sets them back, as rsync does at its end."""
    monkeypatch.setattr(relist, "SETTLED_SECONDS", -60.0)
    (tmp_path / "a").mkdir()
    os.utime(tmp_path, (1e9, 1e9))
    before = folder_stamp(str(tmp_path))
    deadline = time.monotonic() + 5
    while folder_stamp(str(tmp_path)) == before and time.monotonic() < deadline:  # the clock ticks every few ms
        (tmp_path / "b").touch()
        (tmp_path / "b").unlink()
        os.utime(tmp_path, (1e9, 1e9))
    assert folder_stamp(str(tmp_path)) != before
    (tmp_path / "link").symlink_to("a")
    assert folder_stamp(str(tmp_path / "link")) is None


@pytest.mark.seconds
def test_other_patterns_have_everything_listed_again(filled: Workspace, scanned: list[str]) -> None:
    survey(filled, INBOX, HOUR)
    configure(filled, exclude=["camera 0/"])
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    assert survey(filled, INBOX, HOUR).new_files == 28


def test_another_time_to_settle_has_everything_listed_again(filled: Workspace, scanned: list[str]) -> None:
    survey(filled, INBOX, HOUR)
    configure(filled, settle_seconds=2 * HOUR)
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)
    assert survey(filled, INBOX, HOUR).new_files == 0


def test_a_listing_that_may_be_older_than_what_is_kept_is_kept(
    filled: Workspace, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey(filled, ["inbox/test"], 1e9)
    survey(filled, ["inbox/unlabeled"], 1e9)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + KEPT_SECONDS + HOUR)
    assert survey(filled, ["inbox/unlabeled"], 1e9).files == 24
    with closing(sqlite3.connect(filled.scratch / LISTINGS)) as database:
        assert database.execute("SELECT count(*) FROM source").fetchone() == (1,), "of a source that is listed no more"


def test_a_table_being_written_into_a_bucket_leaves_its_files_there(workspace: Workspace) -> None:
    """They wait for it, and are not gone: the watchdog counts them."""
    configure(workspace, settle_seconds=60.0)
    source = "bucket://camera"
    with bucket():
        for number in range(3):
            upload(f"camera/{number}.png", b"image %d" % number)
        assert count_files(workspace, source)[1] == 3
        upload("camera/labels.csv", b"path,label\n", datetime.now(UTC))
        assert count_files(workspace, source)[1] == 3
        assert survey(workspace, [source], HOUR) == survey(workspace, [source])


def test_sources_that_overlap_are_listed_as_a_whole(filled: Workspace, scanned: list[str]) -> None:
    names = ["inbox", "inbox/labeled", "inbox/**/*.png"]
    assert survey(filled, names, HOUR) == survey(filled, names)
    assert scanned == []


@pytest.mark.parametrize("damage", ["text", "version", "locked"])
def test_a_damaged_store_costs_time_and_nothing_else(
    filled: Workspace, damage: str, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey(filled, INBOX, HOUR)
    path = filled.scratch / LISTINGS
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        if damage == "locked":
            monkeypatch.setattr(store, "WAIT_SECONDS", 0.01)
            database.execute("BEGIN IMMEDIATE")
        elif damage == "version":
            database.execute("PRAGMA user_version = 99")
        if damage == "text":
            path.write_bytes(b"not a database at all, but long enough to have a header of a hundred bytes" * 4)
        put(filled, "unlabeled/camera 0/new.png", encode(draw(0, 999)))
        assert survey(filled, INBOX, HOUR).new_files == 41
    assert survey(filled, INBOX, HOUR) == survey(filled, INBOX)


def test_a_source_that_is_gone_is_named(filled: Workspace, scanned: list[str]) -> None:
    survey(filled, ["inbox/unlabeled"], HOUR)
    shutil.rmtree(filled.inbox / "unlabeled")
    with pytest.raises(IngestError, match="inbox/unlabeled: does not exist"):
        survey(filled, ["inbox/unlabeled"], HOUR)


def test_a_long_listing_of_a_bucket_is_used_again_for_a_while(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket() as made:
        upload("camera/0.png", b"one")
        find, now, took = made.find, time.time(), [3.0]

        def slow(self: Any, path: str, **options: Any) -> Any:
            passed[0] += took[0]
            return find(self, path, **options)

        passed = [0.0]
        monkeypatch.setattr(made, "find", slow)
        monkeypatch.setattr(time, "time", lambda: now + passed[0])
        assert survey(workspace, ["bucket://camera"], HOUR).new_files == 1
        upload("camera/1.png", b"two")
        passed[0] += 50
        assert survey(workspace, ["bucket://camera"], HOUR).new_files == 1
        passed[0] += 10
        assert survey(workspace, ["bucket://camera"], HOUR).new_files == 2
        took[0] = 0.1
        passed[0] += HOUR
        for number in range(2, 5):
            upload(f"camera/{number}.png", b"three")
            passed[0] += 60
            assert survey(workspace, ["bucket://camera"], HOUR).new_files == number + 1


def changes(workspace: Workspace, chance: random.Random) -> list[Callable[[], Any]]:
    """What people and programs do to an inbox."""
    inbox = workspace.inbox
    files = sorted(path for path in inbox.rglob("*.png") if path.is_file() and not path.is_symlink())
    folders = sorted(path for path in inbox.rglob("*") if path.is_dir() and not path.is_symlink())
    file, folder = chance.choice(files), chance.choice(folders)
    number = chance.randrange(10_000)
    free = folder.parent / f"folder {number}"
    return [
        lambda: put(workspace, f"{folder.relative_to(inbox)}/{number}.png", b"\x89PNG\r\n\x1a\n%d" % number),
        lambda: put(workspace, f"unlabeled/deep {number % 3}/{number % 7}/{number}.png", b"\x89PNG\r\n\x1a\n"),
        lambda: put(workspace, f"{folder.relative_to(inbox)}/labels.csv", b"path,label\n"),
        lambda: put(workspace, f"{folder.relative_to(inbox)}/.hidden/{number}.png", b"x"),
        file.unlink,
        lambda: file.rename(folder / f"moved {number}.png"),
        lambda: folder.rename(free),
        lambda: (folder.rename(free), folder.mkdir()),
        lambda: (folder.rename(free), folder.symlink_to(free)),
        lambda: folder.rename(folder.with_name(f".gone {number}")),
        lambda: (folder / f"link {number}.png").symlink_to(file),
        lambda: (folder / os.fsdecode(b"latin-\xe9 %d" % number)).mkdir(),
    ]


@pytest.mark.seconds
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_it_says_what_a_whole_listing_says(filled: Workspace, seed: int, scanned: list[str]) -> None:
    chance = random.Random(seed)
    for step in range(40):
        if len([*filled.inbox.rglob("*.png")]) > 5:
            chance.choice(changes(filled, chance))()
        if step == 10:
            for table in filled.inbox.rglob("labels.csv"):
                table.unlink()
            shutil.rmtree(filled.inbox / "test", ignore_errors=True)
            ingest(filled, ["inbox/unlabeled"] if (filled.inbox / "unlabeled").is_dir() else INBOX)
        assert survey(filled, INBOX, HOUR) == survey(filled, INBOX), (seed, step)
