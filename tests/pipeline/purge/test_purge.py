"""After a purge no file of workspace, cache or remote holds the bytes, whatever version it belonged to."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.failpoint import VARIABLE
from pipeline import waiting
from pipeline.cli.main import simclr
from pipeline.dvc import client, purged
from pipeline.dvc.client import repro
from pipeline.dvc.purged import Purge
from pipeline.errors import BusyError, OverridesError, WorkspaceError
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import read_bytes, read_occurrences
from pipeline.maintenance.fsck import check
from pipeline.maintenance.state import keep
from pipeline.maintenance.storage import collect
from pipeline.purge.purge import describe, purge, still_held
from pipeline.validation.quarantine import resolve
from pipeline.validation.verdict import overrides
from pipeline.waiting import Candidate
from pipeline.workspace import Workspace
from simclr_core.data.shards import ShardedImages
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.processes import program
from tests.repetitions import repeated, some

UNWANTED = encode(draw(1, 7))
HASH = hashlib.sha256(UNWANTED).hexdigest()
PLACES = (
    "purge.planned",
    "purge.denied",
    "artifact.rename",
    "purge.written",
    "purge.batch_removed",
    "purge.batch_replaced",
    "purge.tracked",
    "purge.cleared",
    "purge.found",
    "purge.cache_cleaned",
    "purge.removed",
    "purge.recorded",
)
PROGRAM = """
import pathlib, sys
from pipeline.purge.purge import purge
from pipeline.workspace import Workspace
purge(Workspace(pathlib.Path(sys.argv[1])), [sys.argv[2]], "ada", "consent withdrawn")
"""


def git(workspace: Workspace, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=workspace.root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def ingested(empty_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Two batches, the first with the unwanted image, with a tag and a branch; all of it in a remote."""
    place = tmp_path_factory.mktemp("purge") / "place"
    shutil.copytree(empty_workspace, place / "workspace", symlinks=True)
    workspace = Workspace((place / "workspace").resolve())
    client.execute(workspace.root, "remote", "add", "--default", "store", "../store")
    for number in range(20):
        put(workspace, f"unlabeled/{number:03d}.png", encode(draw(number % 4, number)))
        put(workspace, f"test/circle/{number:03d}.png", encode(draw(0, 300 + number)))
    put(workspace, "unlabeled/private name.png", UNWANTED)
    (workspace.inbox / "unlabeled" / "007.png").unlink()
    run_stages(workspace, "11111111")
    git(workspace, "tag", "simclr-encoder@v0.0.1", "runs/11111111")
    canonical = prepared_bytes(workspace)
    put(workspace, "unlabeled/later.png", encode(draw(2, 400)))
    put(workspace, "labeled/cross/private copy.png", UNWANTED)
    run_stages(workspace, "22222222")
    return place, canonical


def run_stages(workspace: Workspace, run: str) -> None:
    ingest(workspace)
    overrides.write(workspace.overrides, ())
    for stage in ("validate", "prepare"):
        repro(workspace.root, stage, print, print)
    assert keep(workspace, run) is None


def prepared_bytes(workspace: Workspace) -> bytes:
    images = ShardedImages(workspace.prepared / "train")
    (position,) = (number for number in range(len(images)) if images.key(number) == HASH)
    return images.read(position)


@pytest.fixture
def made(ingested: tuple[Path, bytes], tmp_path: Path) -> Workspace:
    shutil.copytree(ingested[0], tmp_path / "place", symlinks=True)
    return Workspace((tmp_path / "place" / "workspace").resolve())


def holders(workspace: Workspace, *contents: bytes) -> list[str]:
    """Files outside the inbox, of workspace and remote, with these bytes or the name of the file in them."""
    found = []
    for path in workspace.root.parent.rglob("*"):
        name = path.relative_to(workspace.root.parent).as_posix()
        if path.is_file() and not name.startswith(("workspace/inbox/", "workspace/.simclr/inbox.sqlite")):
            data = path.read_bytes()
            found += [name] if any(content in data for content in (*contents, b"private")) else []
    return found


def assert_gone(workspace: Workspace, canonical: bytes) -> None:
    assert holders(workspace, UNWANTED, canonical) == []
    assert HASH not in {sha256 for _, sha256, _ in read_bytes(workspace.raw)}
    assert [batch.name for batch in sorted(workspace.raw.iterdir()) if batch.is_dir()] == ["0001", "0002"]
    assert read_occurrences(workspace.raw / "0001")[HASH] == ()
    assert not client.changed_stages(workspace.root).get("data/raw.dvc")
    assert overrides.find_denied(overrides.read(workspace.overrides)) == {HASH: "refused by ada: consent withdrawn"}
    (record,) = purged.purges(workspace.root)
    assert (record.hashes, record.who, record.why) == ((HASH,), "ada", "consent withdrawn")
    assert record.objects
    assert record.objects["cache"] == record.objects["store"] != []
    assert purged.find_interrupted_purge(workspace.root) is None
    assert not list(workspace.raw.glob(".*"))


@pytest.mark.seconds
def test_no_file_holds_it_any_more_and_the_next_run_works(made: Workspace, ingested: tuple[Path, bytes]) -> None:
    before = {sha256 for _, sha256, _ in read_bytes(made.raw)}
    assert len(holders(made, UNWANTED, ingested[1])) > 5, "the search finds it before"
    (done,) = purge(made, [HASH], "ada", "consent withdrawn")
    assert_gone(made, ingested[1])
    assert {sha256 for _, sha256, _ in read_bytes(made.raw)} == before - {HASH}
    assert done.models is not None
    assert done.models["workspace"] == "was trained on it"
    assert {name for names in done.models for name in names.split(",")} == {
        *("simclr-encoder@v0.0.1", "runs/11111111", "runs/22222222", "workspace")
    }

    again = ingest(made)
    assert again.batch is None
    assert any("was purged" in reason for reason in again.skipped)
    for stage in ("validate", "prepare"):
        repro(made.root, stage, print, print)
    assert keep(made, "33333333") is None
    report = check(made, older_than_days=0, remote=True)
    assert report.damages == []
    collect(made)
    assert holders(made, UNWANTED, ingested[1]) == []


@pytest.mark.seconds
def test_files_of_the_sources_are_named_and_left(made: Workspace) -> None:
    ingest(made)  # it remembers the files of this copy of the workspace too
    (done,) = purge(made, [HASH], "ada", "consent withdrawn")
    said = describe(made, done)
    for name in ("unlabeled/private name.png", "labeled/cross/private copy.png"):
        assert f"still holds the bytes, remove it yourself: file://{made.inbox}/{name}" in said
        (made.inbox / name).unlink()
    assert not [name for name in still_held(made, [HASH]) if str(made.root) in name]


@repeated
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", some(PLACES, 4))
def test_killed_anywhere_it_completes(made: Workspace, ingested: tuple[Path, bytes], place: str) -> None:
    environment = {**os.environ, VARIABLE: f"{place}:kill"}
    command = program.command(PROGRAM, made.root, HASH)
    done = subprocess.run(command, cwd=program.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(BusyError, match="`simclr purge` completes it"):
        ingest(made)
    assert purge(made, [], "", "")
    assert_gone(made, ingested[1])


@pytest.mark.seconds
def test_a_remote_that_is_away_is_cleaned_later(made: Workspace, ingested: tuple[Path, bytes]) -> None:
    store = made.root.parent / "store"
    store.rename(made.root.parent / "away")
    store.write_text("no folder")
    (done,) = purge(made, [HASH], "ada", "consent withdrawn")
    assert set(done.unreached or {}) == {"store"}
    assert [name for _, name, _ in purged.unreached(made.root)] == ["store"]
    store.unlink()
    (made.root.parent / "away").rename(store)
    assert holders(made, UNWANTED)
    (done,) = purge(made, [HASH], "ada", "consent withdrawn")
    assert holders(made, UNWANTED, ingested[1]) == []
    assert purged.unreached(made.root) == []


@pytest.mark.seconds
def test_the_same_command_tries_again_by_the_name_that_was_given(made: Workspace) -> None:
    """The manifest, where names are looked up, is gone with the first attempt."""
    (made.root.parent / "store").rename(made.root.parent / "away")
    (made.root.parent / "store").write_text("no folder")
    assert resolve(made, "unlabeled/private name.png") == HASH
    command = ["--workspace", str(made.root), "purge", HASH[:12], "--why", "consent withdrawn"]
    assert [simclr.main(command, standalone_mode=False) for _ in range(2)] == [1, 1]
    assert {purge.hashes for purge in purged.purges(made.root)} == {(HASH,)}  # two of one second are one


def test_a_name_that_is_gone_may_be_in_the_interrupted_purge(made: Workspace) -> None:
    purged.write_journal(made.root, Purge((HASH,), "ada", "2026-01-01T00:00:00+00:00", "consent withdrawn"))
    with pytest.raises(OverridesError, match="`simclr purge` without a name completes that"):
        simclr.main(["--workspace", str(made.root), "purge", "gone.png", "--why", "x"], standalone_mode=False)


@pytest.mark.seconds
def test_what_was_never_ingested_is_refused_when_it_comes(made: Workspace) -> None:
    data = encode(draw(3, 999))
    (done,) = purge(made, [hashlib.sha256(data).hexdigest()], "ada", "consent withdrawn")
    assert done.batches == ()
    put(made, "unlabeled/new.png", data)
    assert ingest(made).batch is None


def test_a_clone_without_its_batches_says_how_to_get_them(made: Workspace) -> None:
    shutil.rmtree(made.raw)
    with pytest.raises(WorkspaceError, match=r"dvc pull data/raw\.dvc"):
        purge(made, [HASH], "ada", "consent withdrawn")


def test_a_copy_in_a_release_is_loud_and_says_how_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code says that the purge is incomplete, until the release is withdrawn."""
    done = Purge(
        (HASH,), "ada", "2026-11-30T12:00:00+00:00", "consent", golden={"v0.0.3": ["b 3"], "workspace": ["! 3"]}
    )
    purged.record(tmp_path, done)
    assert purged.purges(tmp_path) == [done]
    assert [name for _, name in purged.shown(tmp_path)] == ["v0.0.3", "workspace"]
    text = describe(Workspace(tmp_path), done)
    assert "INCOMPLETE: the release v0.0.3 shows a small copy" in text
    assert "`simclr release withdraw v0.0.3 --why" in text
    assert "INCOMPLETE: models/bundle or models/champion shows a small copy" in text
    purged.record(tmp_path, replace(done, when="2026-12-01T12:00:00+00:00", golden={}))
    assert purged.shown(tmp_path) == []
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.validation.quarantine.resolve", lambda workspace, name: HASH)
    for result, code in ((done, 1), (replace(done, golden={}), 0)):
        monkeypatch.setattr("pipeline.purge.purge.purge", lambda *_, result=result: [result])
        assert (simclr.main(["purge", HASH, "--why", "consent"], standalone_mode=False) or 0) == code
        assert ("INCOMPLETE" in capsys.readouterr().out) == bool(code)


def test_a_candidate_that_waits_and_was_trained_on_it_is_named(workspace: Workspace) -> None:
    for bundle in ("a" * 64, "b" * 64, "c" * 64):
        until = "2126-12-14T03:20:00+00:00"
        one = Candidate(bundle, bundle, "d" * 40, None, ("drift in 0002",), {}, "2026-11-30T03:20:00+00:00", until)
        waiting.keep(workspace.root / "registry", one)
    models = {
        "runs/aaaaaaaaaaaa,runs/12345678": "was trained on it (candidate aaaaaaaaaaaa)",
        "runs/bbbbbbbbbbbb": "had it in its data, and did not use it (candidate bbbbbbbbbbbb)",
    }
    done = Purge((HASH,), "ada", "2026-11-30T12:00:00+00:00", "consent", models=models)
    (line,) = [line for line in describe(workspace, done).splitlines() if line.startswith("candidate ")]
    assert line.startswith("candidate aaaaaaaaaaaa waits for a person, and was trained on it")
    assert line.endswith("`simclr release reject aaaaaaaaaaaa --why …`")


@pytest.mark.seconds
def test_the_command_wants_a_reason(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.root)
    with pytest.raises(Exception, match="--why"):
        simclr.main(["purge", HASH], standalone_mode=False)
    simclr.main(["purge", HASH, "--why", "consent withdrawn", "--who", "ada"], standalone_mode=False)
    assert json.loads((made.root / purged.RECORD).read_text())["hashes"] == [HASH]
