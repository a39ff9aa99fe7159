"""What was added alone, or all files: the batches and the answers are the same, whatever happens to the sources."""

import random
import shutil
from pathlib import Path

import pytest

from pipeline.ingest import added
from pipeline.ingest import ingest as ingests
from pipeline.ingest.ingest import IngestResult, ingest
from pipeline.ingest.raw import read_some
from pipeline.ingest.stamps import Stamps
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import fill, put, read_files
from tests.pipeline.retraining.bucket import Bucket, bucket, upload
from tests.repetitions import repeated, repetitions


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each ingest, whether it looked at what was added alone."""
    taken: list[bool] = []

    def find(*arguments: object) -> added.Added | None:
        found = real(*arguments)  # type: ignore[arg-type]
        taken.append(found is not None)
        return found

    real = added.find_added
    monkeypatch.setattr(ingests, "find_added", find)
    return taken


def test_memory_and_reading_follow_what_is_new(
    filled: Workspace, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(filled)
    with monkeypatch.context() as patched:
        patched.setattr(Stamps, "_known", property(lambda _: pytest.fail("all stamps are read")))
        patched.setattr("pipeline.ingest.claims.read_occurrences", lambda _: pytest.fail("all batches are read"))
        assert ingest(filled).batch is None
        put(filled, "unlabeled/camera 0/new.png", encode(draw(0, 999)))
        put(filled, "unlabeled/copy.png", encode(draw(0, 999)))
        put(filled, "unlabeled/copy of an old one.png", (filled.inbox / "unlabeled/camera 0/000.png").read_bytes())
        put(filled, "labeled/cross/new.png", encode(draw(0, 998)))
        put(filled, "unlabeled/no image.bin", b"text")
        put(filled, "unlabeled/notes.txt", b"text")
        result = ingest(filled)
    assert alone == [False, True, True]
    assert (result.new_images, result.new_labels, result.known) == (2, 0, 41)
    assert result.skipped == (
        "'unlabeled/notes.txt' is text or a table by its name",
        "'unlabeled/no image.bin' is not an image by its name or its first bytes",
    )


@pytest.mark.seconds
@pytest.mark.parametrize("change", ["gone", "moved", "overwritten", "labels", "relabeled", "touched"])
def test_anything_else_is_judged_with_all_files(filled: Workspace, change: str, alone: list[bool]) -> None:
    ingest(filled)
    path = filled.inbox / "unlabeled/camera 0/000.png"
    if change == "gone":
        path.unlink()
    elif change == "moved":
        path.rename(filled.inbox / "labeled" / "cross" / "moved.png")
    elif change == "overwritten":
        put(filled, "unlabeled/camera 0/000.png", encode(draw(0, 999)), age=1800)
    elif change == "touched":
        put(filled, "unlabeled/camera 0/000.png", path.read_bytes(), age=1800)
    elif change == "labels":
        put(filled, "labels.csv", b"path,label\nunlabeled/camera 0/000.png,cross\n")
    else:
        put(filled, "labeled/cross/copy.png", path.read_bytes())
    ingest(filled)
    assert alone == [False, False]


@pytest.mark.seconds
@pytest.mark.parametrize("first", ["train", "test"])
def test_a_folder_that_has_known_ones_read_otherwise(filled: Workspace, first: str, alone: list[bool]) -> None:
    """``pets/train`` is only a folder until there is ``pets/test``."""
    put(filled, f"pets/{first}/cross/1.png", encode(draw(0, 900)))
    ingest(filled)
    other = {"train": "test", "test": "train"}[first]
    put(filled, f"pets/{other}/cross/2.png", encode(draw(0, 901)))
    ingest(filled)
    found = {path: (split, label) for _, path, split, label in read_files(filled.raw / "0002")}
    assert found == {f"pets/{first}/cross/1.png": (first, "cross"), f"pets/{other}/cross/2.png": (other, "cross")}
    assert alone == [False, False]


def test_a_workspace_that_was_moved_has_all_files_judged(filled: Workspace, alone: list[bool]) -> None:
    """No stamp is known under the new path, so none tells that a file is gone."""
    ingest(filled)
    moved = Workspace(filled.root.rename(filled.root.with_name("moved")))
    path = min((moved.inbox / "labeled" / "cross").iterdir())
    path.rename(moved.inbox / "unlabeled" / path.name)
    assert ingest(moved).new_labels == 1
    assert alone == [False, False]


@pytest.mark.seconds
def test_a_bucket_that_is_added_to(workspace: Workspace, alone: list[bool]) -> None:
    with bucket():
        for number in range(4):
            upload(f"camera/labeled/cross/{number}.png", encode(draw(number, number)))
        ingest(workspace, ["bucket://camera"])
        upload("camera/labeled/circle/4.png", encode(draw(0, 4)))
        Bucket.read.clear()
        result = ingest(workspace, ["bucket://camera"])
        assert (result.new_images, result.known, Bucket.read) == (1, 4, ["camera/labeled/circle/4.png"])
        rows = [line.split() for line in result.understood]
        assert rows[1:3] == [["circle", "1", "0"], ["cross", "4", "0"]]
    assert alone == [False, True]


def test_lines_of_other_contents_are_not_parsed(tmp_path: Path) -> None:
    one, other = "a" * 64, "b" * 64
    said = '[{"path": "p", "split": "train", "label": null, "source": "inbox"}]'
    lines = [f'{{"sha256": "{one}", "occurrences": {said}}}', f'{{"sha256": "{other}", broken']
    (tmp_path / "occurrences.jsonl").write_text("\n".join(lines))
    found = read_some(tmp_path, {one}, "undone")
    assert found is not None
    assert [(sha256, seen[0].path) for sha256, seen in found.items()] == [(one, "p")]
    (tmp_path / "occurrences.jsonl").write_text(f'{{"sha256": "{other}", "occurrences": [], "undone": {{}}}}')
    assert read_some(tmp_path, {one}, "undone") is None


def step(workspace: Workspace, chance: random.Random, number: int) -> None:
    """Additions for the most part."""
    files = sorted(path for path in workspace.inbox.rglob("*.png"))
    folder = chance.choice(["unlabeled", "unlabeled/deep/er", "labeled/cross", "labeled/new class", "test/circle", ""])
    data = encode(draw(number % 4, 5000 + number))
    old = chance.choice(files)
    changes = {
        "new": lambda: put(workspace, f"{folder or 'unlabeled'}/new {number}.png", data),
        "top": lambda: put(workspace, f"unlabeled/{number}/new {number}.png", data),
        "twice": lambda: [put(workspace, f"{one}/new {number}.png", data) for one in ("unlabeled", "labeled/cross")],
        "again": lambda: put(workspace, f"unlabeled/again {number}.png", old.read_bytes()),
        "same": lambda: put(
            workspace, f"{old.relative_to(workspace.inbox).parent}/same {number}.png", old.read_bytes()
        ),
        "other": lambda: put(workspace, f"{folder}/{number}.bin", b"no image"),
        "text": lambda: put(workspace, f"{folder}/{number}.txt", b"text"),
        "hidden": lambda: put(workspace, f"{folder}/.hidden {number}/new {number}.png", data),
        "odd": lambda: put(workspace, f"unlabeled/test_set/new {number}.png", data),
        "nothing": lambda: None,
    }
    rare = {
        "copy": lambda: put(workspace, f"{folder or 'unlabeled'}/copy {number}.png", old.read_bytes()),
        "gone": old.unlink,
        "moved": lambda: old.rename(old.with_name(f"moved {number}.png")),
        "overwritten": lambda: put(workspace, str(old.relative_to(workspace.inbox)), data, age=1800),
    }
    for _ in range(chance.choice([1, 1, 3])):
        some = rare if number > 15 and chance.random() < 0.15 else changes
        some[chance.choice(sorted(some))]()
        files = sorted(path for path in workspace.inbox.rglob("*.png"))
        old = chance.choice(files)


@pytest.fixture
def twins(workspace: Workspace, empty_workspace: Path, tmp_path: Path) -> tuple[Workspace, Workspace]:
    other = Workspace(shutil.copytree(empty_workspace, tmp_path / "other", symlinks=True))
    return fill(workspace), fill(other)


@repeated
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(repetitions(2, all=6)))
def test_the_answers_are_those_of_an_ingest_of_all_files(
    twins: tuple[Workspace, Workspace], seed: int, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    chances = [random.Random(seed) for _ in twins]
    for number in range(30):
        results: list[IngestResult] = []
        for workspace, chance in zip(twins, chances, strict=True):
            step(workspace, chance, number)
            with monkeypatch.context() as patched:
                if workspace is twins[1]:
                    patched.setattr(ingests, "find_added", lambda *_: None)
                results.append(ingest(workspace))
        assert results[0] == results[1], (seed, number)
    trees = [
        {path.relative_to(one.raw): path.read_bytes() for path in one.raw.rglob("*") if path.is_file()} for one in twins
    ]
    assert trees[0] == trees[1]
    assert sum(alone) > 10
