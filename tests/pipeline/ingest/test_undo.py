"""A batch that is undone has no bytes and no say any more, and its files stay out until a person wants them again."""

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.failpoint import VARIABLE
from pipeline.cli.main import simclr
from pipeline.dvc import client
from pipeline.errors import IngestError
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import batches, count_contents, read_bytes, read_records
from pipeline.ingest.undo import redo, undo
from pipeline.purge.purge import purge
from pipeline.retraining.inbox import survey
from pipeline.validation.probe.scan import current, list_all
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.processes import program
from tests.sentences import assert_plain

PROGRAM = """
import pathlib, sys
from pipeline.ingest.undo import undo
from pipeline.workspace import Workspace
undo(Workspace(pathlib.Path(sys.argv[1])), "0002")
"""
PLACES = ("artifact.flush", "artifact.rename", "artifact.renamed", "undo.other", "artifact.rename:kill@2", "undo.batch")
CAT, DOG = encode(draw(0, 901)), encode(draw(1, 902))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def labels(workspace: Workspace) -> dict[str, str | None]:
    """SHA-256 → label, of every content that is in use."""
    return dict(current(list_all(workspace.raw)).select("sha256", "label").iter_rows())


@pytest.fixture
def mistaken(filled: Workspace) -> Workspace:
    """0002 has two new images and labels a known one, 0003 labels one of the new ones and has another image."""
    ingest(filled)
    put(filled, "unlabeled/cat.png", CAT)
    put(filled, "unlabeled/dog.png", DOG)
    shutil.copy(filled.inbox / "unlabeled/camera 0/000.png", put(filled, "labeled/cross/known.png", b""))
    os.utime(filled.inbox / "labeled/cross/known.png", (0, 0))
    ingest(filled)
    put(filled, "labeled/circle/cat.png", CAT)
    put(filled, "unlabeled/later.png", encode(draw(2, 903)))
    ingest(filled)
    assert [batch.name for batch in batches(filled.raw)] == ["0001", "0002", "0003"]
    return filled


def assert_undone(workspace: Workspace, first: dict[str, str | None]) -> None:
    """Nothing of 0002 is left, all else is as before, and DVC tracks that."""
    later = digest(encode(draw(2, 903)))
    assert labels(workspace) == first | {later: None}
    assert {sha256 for _, sha256, _ in read_bytes(workspace.raw)} == first.keys() | {later}
    assert [batch.name for batch in batches(workspace.raw)] == ["0001", "0002", "0003"]
    assert not list(workspace.raw.glob(".*"))
    assert not client.changed_stages(workspace.root).get("data/raw.dvc")


@pytest.mark.seconds
def test_images_and_labels_go_and_do_not_come_back(filled: Workspace) -> None:
    ingest(filled)
    first = labels(filled)
    put(filled, "unlabeled/cat.png", CAT)
    shutil.copy(filled.inbox / "unlabeled/camera 0/000.png", put(filled, "labeled/cross/known.png", b""))
    os.utime(filled.inbox / "labeled/cross/known.png", (0, 0))
    ingest(filled)
    assert labels(filled) != first
    first_line, *_, last = undo(filled, "0002")
    assert first_line.startswith("batch 0002 is undone: 1 image removed from data/raw, what it said of 1 other image")
    assert "--redo 0002" in last
    assert survey(filled, ["inbox"]).new_files == 0, "the sensor waits for nothing"
    for _ in range(2):
        result = ingest(filled)
        assert (result.batch, labels(filled)) == (None, first)
        assert any("(each undone with batch 0002; `simclr ingest --redo 0002`" in line for line in result.understood)
    assert undo(filled, "0002") == ["batch 0002: nothing of it is in use, it was undone before"]


@pytest.mark.seconds
def test_what_later_batches_said_of_its_images_is_undone_as_well(mistaken: Workspace) -> None:
    first = {sha256: label for sha256, label in labels(mistaken).items() if sha256 not in (digest(CAT), digest(DOG))}
    first[digest((mistaken.inbox / "unlabeled/camera 0/000.png").read_bytes())] = None
    later = digest(encode(draw(2, 903)))
    del first[later]
    undo(mistaken, "0002")
    assert_undone(mistaken, first)
    assert ingest(mistaken).batch is None
    assert_undone(mistaken, first)
    assert [count_contents(batch) for batch in batches(mistaken.raw)] == [40, 0, 1]


@pytest.mark.seconds
def test_redo_takes_them_again_with_what_the_sources_say_now(mistaken: Workspace) -> None:
    before = labels(mistaken)
    undo(mistaken, "0002")
    ingest(mistaken)
    redo(mistaken, "0002")
    result = ingest(mistaken)
    assert (result.batch, result.new_images, result.new_labels) == ("0004", 2, 1)
    assert labels(mistaken) == before
    with pytest.raises(IngestError, match="batch 0002 is not undone"):
        redo(mistaken, "0002")


@pytest.mark.seconds
def test_a_file_moved_to_another_class_is_taken_and_counts_from_then_on(filled: Workspace) -> None:
    ingest(filled)
    path = put(filled, "labeled/circle/cat.png", CAT)
    ingest(filled)
    undo(filled, "0002")
    path.rename(filled.inbox / "labeled/cross/cat.png")
    assert ingest(filled).new_images == 1
    assert labels(filled)[digest(CAT)] == "cross"
    (filled.inbox / "labeled/cross/cat.png").rename(path)
    assert ingest(filled).new_labels == 1
    assert labels(filled)[digest(CAT)] == "circle"


@pytest.mark.seconds
def test_a_copy_in_another_source_is_taken(filled: Workspace, tmp_path: Path) -> None:
    ingest(filled)
    put(filled, "unlabeled/cat.png", CAT)
    ingest(filled)
    undo(filled, "0002")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cat.png").write_bytes(CAT)
    os.utime(tmp_path / "other" / "cat.png", (0, 0))
    assert ingest(filled, ["inbox", str(tmp_path / "other")]).new_images == 1


def splits(workspace: Workspace) -> dict[str, str]:
    """SHA-256 → split, of every content that is in use."""
    return dict(current(list_all(workspace.raw)).select("sha256", "split").iter_rows())


SPLIT = b"path,label,split\ncat.png,circle,test\ndog.png,cross,train\n"
NO_SPLIT = b"path,label\ncat.png,circle\ndog.png,cross\n"


@pytest.fixture
def split_by_table(workspace: Workspace) -> Workspace:
    """A batch whose test image labels.csv alone holds out."""
    put(workspace, "cat.png", CAT)
    put(workspace, "dog.png", DOG)
    put(workspace, "labels.csv", SPLIT)
    ingest(workspace)
    assert splits(workspace) == {digest(CAT): "test", digest(DOG): "train"}
    return workspace


@pytest.mark.seconds
@pytest.mark.parametrize("table", [NO_SPLIT, b"path,label\ndog.png,cross\n", None], ids=["column", "row", "table"])
def test_what_was_held_out_and_undone_is_not_trained_on_in_silence(
    split_by_table: Workspace, table: bytes | None
) -> None:
    """The column of splits, the row or the table is gone meanwhile."""
    undo(split_by_table, "0001")
    if table is None:
        (split_by_table.inbox / "labels.csv").unlink()
    else:
        put(split_by_table, "labels.csv", table, age=1800)
    assert ingest(split_by_table).batch is None, "it says the same as before"
    assert splits(split_by_table) == {}
    redo(split_by_table, "0001")
    result = ingest(split_by_table)
    assert splits(split_by_table) == {digest(CAT): "test", digest(DOG): "train"}
    said = "held out as before, although" if table == NO_SPLIT else "taken again with the label and split that labels"
    assert any(said in line for line in result.changes), result.changes
    assert ingest(split_by_table).batch is None
    assert splits(split_by_table)[digest(CAT)] == "test"


@pytest.mark.seconds
def test_another_label_without_a_split_stays_held_out(split_by_table: Workspace) -> None:
    undo(split_by_table, "0001")
    put(split_by_table, "labels.csv", NO_SPLIT.replace(b"circle", b"square"), age=1800)
    result = ingest(split_by_table)
    assert splits(split_by_table) == {digest(CAT): "test"}
    assert "1 image held out as before" in " ".join(result.changes)


@pytest.mark.seconds
@pytest.mark.parametrize("again", [False, True], ids=["undone", "taken again"])
def test_a_person_may_train_on_what_was_held_out_and_is_shown_that(split_by_table: Workspace, again: bool) -> None:
    undo(split_by_table, "0001")
    if again:
        redo(split_by_table, "0001")
    put(split_by_table, "labels.csv", SPLIT.replace(b"test", b"train"), age=1800)
    result = ingest(split_by_table)
    assert splits(split_by_table)[digest(CAT)] == "train"
    assert "1 image moved from test to train, such as 'cat.png': an undone batch held out" in " ".join(result.changes)
    assert_plain(" ".join(result.changes))
    put(split_by_table, "labels.csv", NO_SPLIT, age=900)
    assert ingest(split_by_table).batch is None
    assert splits(split_by_table)[digest(CAT)] == "train", "what a person said last holds"


@pytest.mark.seconds
def test_a_copy_elsewhere_of_what_was_held_out_is_named(split_by_table: Workspace) -> None:
    undo(split_by_table, "0001")
    put(split_by_table, "unlabeled/copy.png", CAT)
    assert "1 image moved from test to train, such as 'unlabeled/copy.png'" in " ".join(ingest(split_by_table).changes)


def hold_out_later(workspace: Workspace) -> None:
    """A batch without labels, and one in which a table holds out an image of it."""
    put(workspace, "cat.png", CAT)
    put(workspace, "dog.png", DOG)
    ingest(workspace)
    put(workspace, "labels.csv", SPLIT)
    ingest(workspace)


@pytest.mark.seconds
def test_an_undo_says_what_is_trained_on_again(workspace: Workspace) -> None:
    """The first batch had the image without a label, and the undone one held it out."""
    hold_out_later(workspace)
    lines = undo(workspace, "0002")
    assert "1 image that it held out is trained on, as before it; `simclr ingest --redo 0002` holds" in lines[1]
    assert splits(workspace)[digest(CAT)] == "train"
    assert_plain(" ".join(lines))


@pytest.mark.seconds
def test_a_batch_that_is_removed_by_hand_leaves_what_the_others_held_out(workspace: Workspace) -> None:
    hold_out_later(workspace)
    shutil.rmtree(workspace.raw / "0001")
    put(workspace, "labels.csv", NO_SPLIT, age=1800)
    ingest(workspace)
    assert splits(workspace) == {digest(CAT): "test", digest(DOG): "train"}


@pytest.mark.seconds
@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_it_is_whole_or_not_begun(mistaken: Workspace, place: str) -> None:
    first = {sha256: label for sha256, label in labels(mistaken).items() if sha256 not in (digest(CAT), digest(DOG))}
    first[digest((mistaken.inbox / "unlabeled/camera 0/000.png").read_bytes())] = None
    del first[digest(encode(draw(2, 903)))]
    before = labels(mistaken)
    environment = {**os.environ, VARIABLE: place if ":" in place else f"{place}:kill"}
    command = program.command(PROGRAM, mistaken.root)
    done = subprocess.run(command, cwd=program.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ingest(mistaken)  # completes what has changed a batch, and cleans up after what has not
    if labels(mistaken) == before:
        assert place in ("artifact.flush", "artifact.rename")
        undo(mistaken, "0002")
    assert_undone(mistaken, first)


@pytest.mark.seconds
def test_a_release_that_has_it_is_named_and_keeps_it(mistaken: Workspace) -> None:
    tag = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for arguments in (["add", "--all"], ["commit", "-qm", "a release"], ["tag", "simclr-encoder@v0.0.1"]):
        subprocess.run(["git", *tag, *arguments], cwd=mistaken.root, check=True, capture_output=True)
    lines = undo(mistaken, "0002")
    assert any(line.startswith("simclr-encoder@v0.0.1 had it, and stays as it is with its data") for line in lines)
    subprocess.run(["git", "checkout", "-q", "data/raw.dvc"], cwd=mistaken.root, check=True)
    client.execute(mistaken.root, "checkout", "--force", "data/raw.dvc")
    assert digest(CAT) in labels(mistaken), "an earlier data/raw.dvc brings it back"


@pytest.mark.seconds
def test_a_purge_leaves_no_path_in_what_was_undone(mistaken: Workspace) -> None:
    undo(mistaken, "0002")
    purge(mistaken, [digest(CAT)], "ada", "consent withdrawn")
    assert [
        record for batch in batches(mistaken.raw) for record in read_records(batch) if "cat.png" in str(record)
    ] == []


@pytest.mark.seconds
def test_the_command_names_the_batches_and_refuses_a_mixture(
    mistaken: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mistaken.root)
    with pytest.raises(IngestError, match=r"'0009' is not a batch of .*; the newest are: 0001, 0002, 0003"):
        simclr.main(["ingest", "--undo", "0009"], standalone_mode=False)
    with pytest.raises(Exception, match="leave --redo and sources out"):
        simclr.main(["ingest", "--undo", "0002", "inbox"], standalone_mode=False)
    simclr.main(["ingest", "--undo", "2"], standalone_mode=False)
    assert "batch 0002 is undone" in capsys.readouterr().out
    simclr.main(["ingest", "--redo", "02"], standalone_mode=False)
    assert "2 new images in batch 0004" in capsys.readouterr().out
