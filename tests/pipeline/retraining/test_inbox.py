"""The survey counts what is new without reading it, names the data that a run would train on, and survives anything."""

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from pipeline.errors import DvcError, IngestError
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import read_bytes
from pipeline.ingest.stamps import STAMPS, WAIT_SECONDS
from pipeline.reports import DriftVerdict
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace
from simclr_core import reports
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.retraining.bucket import Bucket, bucket, upload
from tests.reports import EMBEDDING_DRIFT, VALIDATION

INBOX = ("inbox",)


def stamps(workspace: Workspace) -> Path:
    return workspace.scratch / STAMPS


def trained(workspace: Workspace, *, unfinished: bool = False) -> None:
    """What dvc.lock says when the stages up to pretrain have run on the present raw batches."""
    tracked = yaml.safe_load(workspace.raw.with_suffix(".dvc").read_text())["outs"][0]
    raw = {"path": "data/raw", "md5": tracked["md5"], "nfiles": tracked["nfiles"]}
    before, now = {"path": "data/prepared", "md5": "before"}, {"path": "data/prepared", "md5": tracked["md5"]}
    stages = {
        "prepare": {"cmd": "prepare", "deps": [raw], "outs": [now]},
        "pretrain": {"cmd": "pretrain", "deps": [before if unfinished else now]},
    }
    (workspace.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_new_images_become_known_without_being_read(filled: Workspace) -> None:
    before = survey(filled, INBOX)
    assert (before.new_files, before.new_images, before.untrained) == (40, 40, 0)
    ingest(filled)
    for file in filled.inbox.rglob("*.png"):
        file.chmod(0)
    after = survey(filled, INBOX)
    assert (after.new_files, after.untrained) == (0, 40)
    trained(filled)
    assert survey(filled, INBOX).new_images == 0


def test_the_digest_is_that_of_the_data(filled: Workspace) -> None:
    first = survey(filled, INBOX).digest
    assert len(first) == 16
    assert survey(filled, INBOX).digest == first
    path = put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    second = survey(filled, INBOX).digest
    os.utime(path, ns=(0, path.stat().st_mtime_ns - 1))
    third = survey(filled, INBOX).digest
    assert len({first, second, third}) == 3
    path.unlink()
    assert survey(filled, INBOX).digest == first


def test_removing_ingested_files_from_the_inbox_keeps_the_digest(filled: Workspace) -> None:
    ingest(filled)
    digest = survey(filled, INBOX).digest
    for file in filled.inbox.rglob("*.png"):
        file.unlink()
    assert survey(filled, INBOX).digest == digest


def test_images_ingested_by_hand_wait_until_they_are_trained_on(filled: Workspace) -> None:
    ingest(filled)
    trained(filled)
    put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    put(filled, "unlabeled/newer.png", encode(draw(0, 998)))
    before = survey(filled, INBOX)
    ingest(filled)
    after = survey(filled, INBOX)
    assert (after.new_files, after.untrained) == (0, 2)
    assert after.digest != before.digest
    trained(filled, unfinished=True)  # the run with the second batch failed in pretrain
    assert survey(filled, INBOX).untrained == 2
    trained(filled)
    assert survey(filled, INBOX).untrained == 0


@pytest.mark.seconds
def test_a_batch_in_place_of_one_that_was_removed_waits(filled: Workspace) -> None:
    """The number of batches is that of before, and so is the number of files."""
    for number in (998, 999):
        put(filled, f"unlabeled/{number}.png", encode(draw(0, number)))
        ingest(filled)
    trained(filled)
    shutil.rmtree(filled.raw / "0001")
    put(filled, "unlabeled/997.png", encode(draw(0, 997)))
    ingest(filled)
    assert survey(filled, INBOX).untrained > 0
    trained(filled)
    assert survey(filled, INBOX).untrained == 0


def test_files_still_being_written_are_counted_and_their_time_is_known(filled: Workspace) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["ingest"]["settle_seconds"] = 600.0
    filled.params.write_text(yaml.safe_dump(params))
    ingest(filled)
    assert survey(filled, INBOX).last_change is None
    path = put(filled, "unlabeled/half.png", encode(draw(0, 999)), age=30)
    found = survey(filled, INBOX)
    assert (found.new_files, found.unsettled) == (0, 1)
    assert found.last_change == datetime.fromtimestamp(path.stat().st_mtime, UTC)
    assert datetime.now(UTC) - found.last_change > timedelta(seconds=29)


@pytest.mark.seconds
def test_a_changed_labels_csv_counts_as_new_without_an_image(filled: Workspace) -> None:
    put(filled, "labels.csv", b"path,label\nunlabeled/camera 0/000.png,cat\n")
    found = survey(filled, INBOX)
    assert (found.new_files, found.relabeled) == (40, True)
    ingest(filled)
    ingested = survey(filled, INBOX)
    assert (ingested.new_files, ingested.relabeled) == (0, False)
    put(filled, "labels.csv", b"path,label\nunlabeled/camera 0/000.png,dog\n", age=1800)
    changed = survey(filled, INBOX)
    assert (changed.new_files, changed.relabeled) == (0, True)
    assert changed.digest != ingested.digest
    assert ingest(filled).new_labels == 1


def test_a_labels_csv_that_has_just_changed_is_waited_for(filled: Workspace) -> None:
    ingest(filled)
    path = put(filled, "labels.csv", b"path,label\nunlabeled/camera 0/000.png,cat\n", age=30)
    assert survey(filled, INBOX).last_change == datetime.fromtimestamp(path.stat().st_mtime, UTC)
    params = yaml.safe_load(filled.params.read_text())
    params["ingest"]["settle_seconds"] = 600.0
    filled.params.write_text(yaml.safe_dump(params))
    found = survey(filled, INBOX)
    assert (found.relabeled, found.new_files, found.unsettled) == (False, 0, 1)
    assert found.last_change == datetime.fromtimestamp(path.stat().st_mtime, UTC)


def test_a_file_that_changed_in_place_is_ingested_again(filled: Workspace) -> None:
    ingest(filled)
    put(filled, "unlabeled/camera 0/000.png", encode(draw(0, 999)), age=1800)
    assert survey(filled, INBOX).new_files == 1
    assert ingest(filled).new_images == 1
    assert survey(filled, INBOX).new_files == 0


def test_a_file_changed_a_tick_before_its_listing_is_not_stamped(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed once more within the tick, it would keep its stamp."""
    monkeypatch.setattr("pipeline.ingest.sources.GRANULARITY_SECONDS", 7200)  # of a very slow clock
    ingest(filled)
    assert survey(filled, INBOX).new_files == 40
    assert ingest(filled).known == 40


@pytest.mark.seconds
def test_a_file_put_back_is_news(filled: Workspace) -> None:
    """With the stamp that it had there before."""
    there, elsewhere = (filled.inbox / "labeled" / name / "1.png" for name in ("cross", "circle"))
    elsewhere = elsewhere.with_name("moved.png")
    ingest(filled)
    for path, target in ((there, elsewhere), (elsewhere, there)):
        path.rename(target)
        assert survey(filled, INBOX).new_files == 1
        assert ingest(filled).new_labels == 1
        assert survey(filled, INBOX).new_files == 0


@pytest.mark.timeout(60)
def test_only_files_are_counted(filled: Workspace) -> None:
    os.mkfifo(filled.inbox / "pipe.png")
    (filled.inbox / "loop").symlink_to(filled.inbox)
    (filled.inbox / "out.png").symlink_to("/etc/hostname")
    (filled.inbox / os.fsdecode(b"latin-\xe9.png")).write_bytes(b"x")
    for source in ("inbox", "inbox/**", f"file://{filled.inbox}"):
        assert (survey(filled, [source]).new_files, survey(filled, [source]).unsettled) == (40, 0), source


def test_a_file_from_the_future_waits(filled: Workspace) -> None:
    ahead = put(filled, "unlabeled/ahead.png", encode(draw(0, 999)), age=-3600)
    assert survey(filled, INBOX).unsettled == 1
    os.utime(ahead, (0, 0))
    assert survey(filled, INBOX).unsettled == 0


@pytest.mark.seconds
def test_a_bucket_is_read_once(workspace: Workspace) -> None:
    with bucket():
        for number in range(3):
            upload(f"camera/{number}.png", encode(draw(0, number)))
        assert survey(workspace, ["bucket://camera"]).new_files == 3
        assert Bucket.read == []
        assert ingest(workspace, ["bucket://camera"]).new_images == 3
        Bucket.read.clear()
        assert ingest(workspace, ["bucket://camera"]).known == 3
        assert Bucket.read == []
        upload("camera/1.png", encode(draw(0, 999)))
        upload("camera/3.png", encode(draw(0, 998)))
        assert survey(workspace, ["bucket://camera"]).new_files == 2, "the process remembers an old listing"
        assert ingest(workspace, ["bucket://camera"]).new_images == 2
        assert set(Bucket.read) == {"camera/1.png", "camera/3.png"}


def test_a_source_that_reports_only_sizes_is_read_at_every_ingest(workspace: Workspace) -> None:
    with bucket(etags=False):
        upload("camera/0.png", b"one")
        ingest(workspace, ["bucket://camera"])
        assert survey(workspace, ["bucket://camera"]).new_files == 0, "or it would start a run every minute"
        upload("camera/0.png", b"two")
        Bucket.read.clear()
        assert ingest(workspace, ["bucket://camera"]).new_images == 1
        assert Bucket.read


@pytest.mark.seconds
@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "version", "gone", "no table"])
def test_a_damaged_store_costs_time_and_nothing_else(
    filled: Workspace, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ingest(filled)
    path = stamps(filled)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_bytes(b"not a database at all, but long enough to have a header of a hundred bytes" * 4)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    else:
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99" if damage == "version" else "DROP TABLE ingested")
        database.close()
    with caplog.at_level(logging.WARNING, "simclr.inbox"):
        assert survey(filled, INBOX).new_files == 40
    assert len(caplog.messages) == (damage != "gone")
    result = ingest(filled)
    assert (result.batch, result.new_images, result.known) == (None, 0, 40)
    assert survey(filled, INBOX).new_files == 0
    set_aside = list(filled.scratch.glob("inbox.sqlite.damaged-*"))
    assert bool(set_aside) == (damage not in ("gone", "no table"))


def rows(workspace: Workspace) -> int:
    with closing(sqlite3.connect(stamps(workspace))) as database:
        (count,) = database.execute("SELECT count(*) FROM ingested").fetchone()
    return int(count)


@pytest.mark.seconds
def test_a_source_that_is_listed_no_more_is_forgotten_after_a_quarter(
    filled: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    once.mkdir()
    (once / "one.png").write_bytes(encode(draw(0, 950)))
    os.utime(once / "one.png", (1e9, 1e9))
    assert ingest(filled, [str(once)]).new_images == 1
    now = time.time()
    for days, left in ((1, 41), (80, 41), (100, 40)):
        monkeypatch.setattr("pipeline.ingest.stamps.time.time", lambda days=days: now + days * 24 * 3600)
        ingest(filled)
        assert rows(filled) == left
    assert ingest(filled, [str(once)]).new_images == 0  # read again, and known by its content
    assert rows(filled) == 41


@pytest.mark.seconds
def test_files_that_are_gone_are_forgotten_and_one_that_is_put_back_is_news(filled: Workspace) -> None:
    ingest(filled)
    for night in range(4):  # a camera's folder is emptied every night
        for number in range(6):
            put(filled, f"unlabeled/night {night}/{number}.png", encode(draw(0, 1000 + 10 * night + number)))
            (filled.inbox / f"unlabeled/night {night - 1}/{number}.png").unlink(missing_ok=True)
        ingest(filled)
        assert rows(filled) == 40 + 6
    labeled = next(filled.inbox.glob("labeled/circle/*.png"))
    for name in ("moved.png", "moved again.png"):
        labeled = labeled.rename(labeled.with_name(name))
        ingest(filled)
        assert rows(filled) == 46, "its content is there"
    data = labeled.read_bytes()
    labeled.unlink()
    ingest(filled)
    assert rows(filled) == 45
    labeled.write_bytes(data)
    os.utime(labeled, (1e9, 1e9))
    assert "1 image put back, and labeled as before" in ingest(filled).changes
    assert rows(filled) == 46


@pytest.mark.seconds
def test_a_source_that_was_not_listed_for_long_puts_nothing_back(
    filled: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    ingest(filled)
    with sqlite3.connect(stamps(filled)) as database:
        database.execute("DROP TABLE listed")  # as an earlier version wrote it
        database.execute("DELETE FROM ingested")
    database.close()
    assert ingest(filled).changes == ()
    assert caplog.text == ""
    assert rows(filled) == 40


def test_a_wrong_hash_in_the_store_loses_no_new_image(filled: Workspace) -> None:
    ingest(filled)
    with sqlite3.connect(stamps(filled)) as database:
        database.execute("UPDATE ingested SET sha256 = ?", ("0" * 64,))
    database.close()
    put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    result = ingest(filled)
    assert (result.new_images, result.known) == (1, 40)


@pytest.mark.seconds
def test_a_store_in_use_or_not_writable_costs_time_and_nothing_else(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ingest(filled)
    monkeypatch.setattr("pipeline.ingest.stamps.WAIT_SECONDS", 0.01)
    assert WAIT_SECONDS > 1
    holder = sqlite3.connect(stamps(filled), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert survey(filled, INBOX).new_files == 40
    put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    assert ingest(filled).new_images == 1
    assert "cannot be written (database is locked)" in caplog.text
    holder.close()
    assert not list(filled.scratch.glob("inbox.sqlite.damaged-*")), "nothing is wrong with it"
    assert ingest(filled).new_images == 0
    assert survey(filled, INBOX).new_files == 0


@pytest.mark.seconds
def test_a_kill_before_the_stamps_are_written_ingests_nothing_twice(filled: Workspace) -> None:
    command = [sys.executable, "-m", "pipeline", "--workspace", str(filled.root), "ingest"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run(command, env=environment | {"SIMCLR_FAILPOINT": "ingest.stamp:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert survey(filled, INBOX).new_files == 40
    assert ingest(filled).known == 40
    assert len(list(read_bytes(filled.raw))) == 40
    assert survey(filled, INBOX).new_files == 0


@pytest.mark.seconds
def test_stamps_of_removed_batches_are_ignored(filled: Workspace) -> None:
    """An older commit was checked out: the raw images of the time after it have to be ingested again."""
    put(filled, "unlabeled/zero.png", encode(draw(0, 997)))
    ingest(filled)
    record, first = filled.raw.with_suffix(".dvc").read_bytes(), stamps(filled).read_bytes()
    put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    ingest(filled)
    assert stamps(filled).read_bytes() != first
    shutil.rmtree(filled.raw / "0002")
    filled.raw.with_suffix(".dvc").write_bytes(record)
    assert survey(filled, INBOX).new_files == 42
    assert ingest(filled).new_images == 1
    assert survey(filled, INBOX).new_files == 0


EMBEDDINGS = asdict(EMBEDDING_DRIFT)


def put_validation(workspace: Workspace, verdict: DriftVerdict) -> None:
    assert VALIDATION.drift
    reports.write(workspace.root, replace(VALIDATION, drift=replace(VALIDATION.drift, verdict=verdict)))


@pytest.mark.parametrize(("verdict", "drift"), [("drift", True), ("none", False), ("broken", False)])
def test_drift_comes_from_the_last_validation(workspace: Workspace, verdict: DriftVerdict, drift: bool) -> None:
    assert not survey(workspace, INBOX).drift
    workspace.reports.mkdir(exist_ok=True)
    put_validation(workspace, verdict)
    assert survey(workspace, INBOX).drift is drift
    reports.write(workspace.root, replace(VALIDATION, drift=None))
    assert not survey(workspace, INBOX).drift


@pytest.mark.parametrize(
    ("report", "drift"),
    [
        (json.dumps(EMBEDDINGS), True),
        (json.dumps(EMBEDDINGS | {"batch": "0001"}), False),
        (json.dumps(EMBEDDINGS | {"verdict": "not judged"}), False),
        ('{"verdict": "drift"}', False),
        ("[]", False),
        ("{", False),
    ],
)
def test_drift_includes_the_comparison_with_the_champion_on_the_same_batch(
    workspace: Workspace, report: str, drift: bool
) -> None:
    workspace.reports.mkdir(exist_ok=True)
    (workspace.reports / "embedding_drift.json").write_text(report)
    assert not survey(workspace, INBOX).drift, "it may be of any batch"
    put_validation(workspace, "none")
    assert survey(workspace, INBOX).drift is drift


def test_an_unreadable_source_or_lock_is_reported(workspace: Workspace) -> None:
    shutil.rmtree(workspace.inbox)
    assert survey(workspace, INBOX).new_images == 0, "Git does not carry an empty folder into a clone"
    with pytest.raises(IngestError, match="nowhere: does not exist"):
        survey(workspace, ["nowhere"])
    (workspace.root / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {\n")
    with pytest.raises(DvcError, match=r"dvc\.lock: is not valid YAML"):
        survey(workspace, INBOX)


@pytest.mark.parametrize(
    "address",
    ["s3://AKIAEXAMPLE:wJalrXUtnFEMI@bucket/images", "https://user:hunter2@host/images", "ftp://anonymous@host/images"],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(workspace: Workspace, address: str) -> None:
    with pytest.raises(IngestError, match="has credentials in its address") as caught:
        ingest(workspace, [address])
    for secret in ("AKIAEXAMPLE", "wJalrXUtnFEMI", "hunter2", "anonymous"):
        assert secret not in str(caught.value)
