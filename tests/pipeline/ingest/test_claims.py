"""What the sources say of an image now counts, whatever they said before; absence is not a claim."""

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest
import yaml

from deploy.artifact import write_atomically
from pipeline.ingest import stamps
from pipeline.ingest.claims import UNCLAIMED, combine, judge, read_known
from pipeline.ingest.ingest import IngestResult, ingest
from pipeline.ingest.raw import OCCURRENCES, Occurrence, batches
from pipeline.validation.__main__ import run as validate
from pipeline.validation.groups import find_groups
from pipeline.validation.probe.scan import current, holding, list_all
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.sentences import assert_plain

IMAGE = encode(draw(0, 1))
OTHER = encode(draw(1, 2))
SHA256 = hashlib.sha256(IMAGE).hexdigest()


def lay(workspace: Workspace, files: Mapping[str, bytes], source: str = "inbox") -> IngestResult:
    """Make these the files of a source, and no others, and ingest it."""
    shutil.rmtree(workspace.root / source, ignore_errors=True)
    (workspace.root / source).mkdir()
    for path, data in files.items():
        put(workspace, f"../{source}/{path}", data)
    return ingest(workspace, [source])


def verdicts(workspace: Workspace) -> dict[str, tuple[str, tuple[str, ...]]]:
    """SHA-256 → split and labels of the files that hold, which a verdict on copies chooses from."""
    rows = current(list_all(workspace.raw)).group_by("sha256", maintain_order=True).agg("split", "label")
    return {
        sha256: ("test" if "test" in splits else "train", tuple(sorted({label for label in labels if label})))
        for sha256, splits, labels in rows.iter_rows()
    }


def forget_sources(workspace: Workspace) -> None:
    """Make the batches those of a version that did not record the source."""
    for batch in batches(workspace.raw):
        records = [json.loads(line) for line in (batch / OCCURRENCES).read_text().splitlines()]
        for record in records:
            for seen in record["occurrences"]:
                del seen["source"]
        # In place it would be a file of DVC's cache, too.
        write_atomically(batch / OCCURRENCES, "".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.seconds
@pytest.mark.parametrize("unnamed", [False, True], ids=["this version", "by an earlier version"])
@pytest.mark.parametrize(
    ("before", "now", "verdict", "change"),
    [
        ("labeled/cross/4.png", "labeled/circle/4.png", ("train", ("circle",)), "1 image: cross → circle"),
        ("labeled/cross/4.png", "unlabeled/4.png", ("train", ()), "1 label removed (cross)"),
        ("unlabeled/4.png", "labeled/cross/4.png", ("train", ("cross",)), "1 known image labeled cross"),
        ("test/cross/4.png", "labeled/cross/4.png", ("train", ("cross",)), "1 image moved from test to train"),
        ("labeled/cross/4.png", "test/cross/4.png", ("test", ("cross",)), "1 image moved from train to test"),
        ("test/cross/4.png", "unlabeled/4.png", ("train", ()), "1 label removed (cross)"),
    ],
)
def test_the_place_of_an_image_now_says_what_it_is(
    workspace: Workspace, before: str, now: str, verdict: tuple[str, tuple[str, ...]], change: str, unnamed: bool
) -> None:
    """Also after it has been there before: A, B, A."""
    lay(workspace, {before: IMAGE})
    first = verdicts(workspace)[SHA256]
    if unnamed:
        forget_sources(workspace)
    changed = lay(workspace, {now: IMAGE})
    assert (changed.new_images, changed.new_labels) == (0, 1)
    assert change in changed.changes
    assert verdicts(workspace) == {SHA256: verdict}
    lay(workspace, {before: IMAGE})
    assert verdicts(workspace) == {SHA256: first}
    assert lay(workspace, {before: IMAGE}).batch is None


@pytest.mark.seconds
def test_a_column_of_splits_that_is_lost_puts_nothing_into_the_training_set(workspace: Workspace) -> None:
    def table(text: str) -> IngestResult:
        return lay(workspace, {"a.png": IMAGE, "b.png": OTHER, "labels.csv": text.encode()})

    table("path,label,split\na.png,circle,test\nb.png,cross,train\n")
    before = verdicts(workspace)
    assert before[SHA256] == ("test", ("circle",))
    for text in ("path,label\na.png,circle\nb.png,cross\n", "path,label,split\na.png,circle,\nb.png,cross,\n"):
        result = table(text)
        assert result.batch is None
        assert (
            "1 image held out as before, although labels.csv does not say the split any more "
            "(a row with the split train moves one)"
        ) in result.changes
        assert verdicts(workspace) == before
    relabeled = table("path,label\na.png,square\nb.png,cross\n")
    assert "1 image: circle → square" in relabeled.changes
    assert verdicts(workspace)[SHA256] == ("test", ("square",))
    table("path,label\na.png,square\nb.png,cross\n")
    assert verdicts(workspace)[SHA256] == ("test", ("square",))
    moved = table("path,label,split\na.png,square,train\nb.png,cross,train\n")
    assert "1 image moved from test to train" in moved.changes
    assert verdicts(workspace)[SHA256] == ("train", ("square",))


@pytest.mark.seconds
def test_a_label_put_back_reaches_the_manifest(filled: Workspace) -> None:
    images = [filled.inbox / "labeled" / "cross" / "1.png", filled.inbox / "test" / "cross" / "1.png"]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in images]
    elsewhere = [filled.inbox / "labeled" / "circle" / "1 moved.png", filled.inbox / "unlabeled" / "1 moved.png"]
    ingest(filled)
    for path, target in zip(images, elsewhere, strict=True):
        path.rename(target)
    assert set(ingest(filled).changes) == {
        "1 image: cross → circle", "1 label removed (cross)", "1 image moved from test to train"
    }  # fmt: skip
    elsewhere[0].rename(images[0])
    assert ingest(filled).changes == ("1 image: circle → cross",)
    validate(filled)
    accepted = pl.read_parquet(filled.manifest / "accepted.parquet", columns=["sha256", "split", "label"])
    assert accepted.filter(pl.col("sha256").is_in(hashes)).sort("split", "label").rows() == [
        (hashes[1], "train", None), (hashes[0], "train", "cross")
    ]  # fmt: skip
    assert accepted.height == 40


def test_a_copy_taken_out_of_its_class_takes_the_label_with_it(workspace: Workspace) -> None:
    lay(workspace, {"unlabeled/4.png": IMAGE, "labeled/cross/4.png": IMAGE})
    assert verdicts(workspace)[SHA256] == ("train", ("cross",))
    assert lay(workspace, {"unlabeled/4.png": IMAGE}).changes == (
        "1 label removed (cross)",
        "class 'cross' has no more images",
    )
    assert verdicts(workspace)[SHA256] == ("train", ())


def test_one_of_two_contradictory_labels_taken_out_settles_it(workspace: Workspace) -> None:
    both = lay(workspace, {"labeled/cross/4.png": IMAGE, "labeled/circle/4.png": IMAGE})
    assert both.new_images == 1
    assert verdicts(workspace)[SHA256] == ("train", ("circle", "cross"))
    assert "1 image: circle and cross → circle" in lay(workspace, {"labeled/circle/4.png": IMAGE}).changes
    assert verdicts(workspace)[SHA256] == ("train", ("circle",))


@pytest.mark.seconds
@pytest.mark.parametrize("unnamed", [False, True], ids=["this version", "by an earlier version"])
def test_an_emptied_inbox_loses_no_label(workspace: Workspace, unnamed: bool) -> None:
    lay(workspace, {"labeled/cross/4.png": IMAGE, "test/circle/5.png": OTHER})
    before = verdicts(workspace)
    if unnamed:
        forget_sources(workspace)
    emptied = lay(workspace, {})
    assert (emptied.batch, emptied.changes) == (None, ())
    added = lay(workspace, {"unlabeled/6.png": encode(draw(2, 3))})
    assert (added.new_images, added.changes) == (1, ())
    assert verdicts(workspace).items() >= before.items()


def test_a_class_gone_from_the_inbox_is_mentioned(workspace: Workspace) -> None:
    lay(workspace, {"labeled/cross/4.png": IMAGE, "labeled/circle/5.png": OTHER})
    gone = lay(workspace, {"labeled/circle/5.png": OTHER})
    assert gone.changes == ("class 'cross' has no image in inbox any more, 1 image keeps its label",)
    assert gone.batch is None


@pytest.mark.seconds
def test_a_blank_label_removes_one_and_a_missing_row_does_not(workspace: Workspace) -> None:
    files = {"a.png": IMAGE, "b.png": OTHER}
    lay(workspace, files | {"labels.csv": b"path,label\na.png,cat\nb.png,dog\n"})
    shorter = lay(workspace, files | {"labels.csv": b"path,label\nb.png,dog\n"})
    assert shorter.batch is None
    assert shorter.changes[0].startswith("1 image keeps the label that labels.csv gave before")
    assert lay(workspace, files).batch is None
    assert verdicts(workspace)[SHA256] == ("train", ("cat",))
    blank = lay(workspace, files | {"labels.csv": b"path,label\na.png,\nb.png,dog\n"})
    assert blank.changes == ("1 label removed (cat)", "class 'cat' has no more images")
    assert verdicts(workspace)[SHA256] == ("train", ())
    back = lay(workspace, files | {"labels.csv": b"path,label\na.png,cat\nb.png,dog\n"})
    assert back.changes == ("1 known image labeled cat",)
    assert verdicts(workspace)[SHA256] == ("train", ("cat",))


def test_a_file_that_is_being_written_takes_no_label_away(workspace: Workspace) -> None:
    files = {"unlabeled/4.png": IMAGE, "labeled/cross/4.png": IMAGE}
    lay(workspace, files)
    put(workspace, "labeled/cross/4.png", IMAGE, age=-60)  # not settled yet
    assert ingest(workspace).batch is None
    assert verdicts(workspace)[SHA256] == ("train", ("cross",))


@pytest.mark.seconds
def test_sources_do_not_take_back_what_others_say(workspace: Workspace) -> None:
    lay(workspace, {"labeled/cross/4.png": IMAGE})
    assert lay(workspace, {"4.png": IMAGE}, "camera").batch is None, "an unlabeled copy claims nothing"
    assert verdicts(workspace)[SHA256] == ("train", ("cross",))
    same = lay(workspace, {"labeled/cross/4.png": IMAGE}, "camera")
    assert same.changes == ("1 image labeled as before by another source",)
    assert lay(workspace, {"labeled/circle/4.png": IMAGE}).changes[0] == "1 image: cross → circle"
    unchanged = ingest(workspace, ["camera"])
    assert unchanged.batch is None, "it said so before the other source did"
    assert unchanged.changes[0] == (
        "1 image of camera has another label in another source; the label that was ingested last counts"
    )
    assert_plain(unchanged.changes[0])
    lay(workspace, {"4.png": IMAGE}, "camera")
    assert ingest(workspace).batch is None
    known = read_known(batches(workspace.raw), lambda path, sha256: None)
    assert judge(known[SHA256]) == ("train", ("circle",), None)


def rename(workspace: Workspace, source: str, target: str, moved: Mapping[str, str] | None = None) -> None:
    """Rename a folder of the workspace, and files in it, as ``mv`` does: size and times stay."""
    (workspace.root / source).rename(workspace.root / target)
    for before, now in (moved or {}).items():
        (workspace.root / target / now).parent.mkdir(parents=True, exist_ok=True)
        (workspace.root / target / before).rename(workspace.root / target / now)


MOVED = [
    ("labeled/cat/1.png", "unlabeled/1.png", ("train", ()), "1 label removed (cat)"),
    ("test/cat/2.png", "labeled/cat/2.png", ("train", ("cat",)), "2 images moved from test to train"),
    ("test/dog/3.png", "unlabeled/3.png", ("train", ()), "1 label removed (dog)"),
    ("labeled/cat/4.png", "labeled/dog/4.png", ("train", ("dog",)), "1 image: cat → dog"),
    ("labeled/cat/5.png", "test/cat/5.png", ("test", ("cat",)), "1 image moved from train to test"),
    ("labeled/cow/6.png", "labeled/cow/6.png", ("train", ("cow",)), "1 image labeled as before by another source"),
]


@pytest.mark.seconds
def test_what_a_source_says_under_its_new_name_counts(workspace: Workspace) -> None:
    images = {before: encode(draw(number % 4, 30 + number)) for number, (before, *_) in enumerate(MOVED)}
    lay(workspace, images, "photos")
    first = verdicts(workspace)
    rename(workspace, "photos", "pics", {before: now for before, now, *_ in MOVED})
    changes = ingest(workspace, ["pics"]).changes
    assert {change for *_, change in MOVED} <= set(changes)
    assert verdicts(workspace) == {digest(images[before]): verdict for before, _, verdict, _ in MOVED}
    assert ingest(workspace, ["pics"]).batch is None
    rename(workspace, "pics", "photos", {now: before for before, now, *_ in MOVED})
    ingest(workspace, ["photos"])
    assert verdicts(workspace) == first, "and back again"


@pytest.mark.seconds
def test_a_label_is_removed_some_ingests_after_its_source_was_renamed(workspace: Workspace) -> None:
    lay(workspace, {"labeled/cat/1.png": IMAGE}, "photos")
    rename(workspace, "photos", "pics")
    ingest(workspace, ["pics"])
    shutil.rmtree(workspace.scratch)  # as after a long time: what the source held under its old name is forgotten
    ingest(workspace, ["pics"])
    (workspace.root / "pics/unlabeled").mkdir()
    (workspace.root / "pics/labeled/cat/1.png").rename(workspace.root / "pics/unlabeled/1.png")
    assert "1 label removed (cat)" in ingest(workspace, ["pics"]).changes
    assert verdicts(workspace)[SHA256] == ("train", ())


@pytest.mark.seconds
@pytest.mark.parametrize("first", ["inbox", "inbox/**/*.png"])
def test_a_folder_and_a_glob_of_it_are_one_source_to_a_file_that_is_moved(workspace: Workspace, first: str) -> None:
    second = "inbox/**/*.png" if first == "inbox" else "inbox"
    put(workspace, "labeled/cat/1.png", IMAGE)
    ingest(workspace, [first])
    (workspace.inbox / "unlabeled").mkdir(exist_ok=True)
    (workspace.inbox / "labeled/cat/1.png").rename(workspace.inbox / "unlabeled/1.png")
    ingest(workspace, [second])
    assert verdicts(workspace)[SHA256] == ("train", ())


@pytest.mark.seconds
@pytest.mark.parametrize("when", ["before", "with it", "while it is away"])
def test_a_disk_that_is_not_mounted_loses_no_label(workspace: Workspace, when: str) -> None:
    """Whenever the unlabeled copies in another source came, and whether the disk leaves an empty folder or none."""
    copies = {"unlabeled/copy.png": IMAGE, "unlabeled/another.png": OTHER}
    if when == "before":
        lay(workspace, copies, "camera")
    lay(workspace, {"labeled/cat/1.png": IMAGE, "test/dog/2.png": OTHER}, "disk")
    said = verdicts(workspace)
    if when == "with it":
        lay(workspace, copies, "camera")
    rename(workspace, "disk", "elsewhere")
    if when == "while it is away":
        lay(workspace, copies, "camera")
    ingest(workspace, ["camera"])
    (workspace.root / "disk").mkdir()
    ingest(workspace, ["camera", "disk"])
    assert verdicts(workspace) == said
    (workspace.root / "disk").rmdir()
    rename(workspace, "elsewhere", "disk")
    ingest(workspace, ["disk", "camera"])
    assert verdicts(workspace) == said


@pytest.mark.seconds
def test_a_disk_that_comes_back_says_again_what_it_says(workspace: Workspace) -> None:
    """Also after its file was taken, with its time, to where it is unlabeled: the disk spoke last."""
    lay(workspace, {"labeled/cat/1.png": IMAGE}, "disk")
    (workspace.inbox / "unlabeled").mkdir(exist_ok=True)
    shutil.copy2(workspace.root / "disk/labeled/cat/1.png", workspace.inbox / "unlabeled/1.png")
    rename(workspace, "disk", "elsewhere")
    assert "1 label removed (cat)" in ingest(workspace).changes
    rename(workspace, "elsewhere", "disk")
    assert "1 known image labeled cat" in ingest(workspace, ["disk"]).changes
    assert verdicts(workspace)[SHA256] == ("train", ("cat",))
    assert ingest(workspace, ["disk", "inbox"]).batch is None


@pytest.mark.seconds
def test_a_test_image_of_a_source_that_is_gone_is_moved_by_a_row(workspace: Workspace) -> None:
    lay(workspace, {"test/cat/1.png": IMAGE}, "disk")
    lay(workspace, {"labeled/cat/1.png": IMAGE})
    shutil.rmtree(workspace.root / "disk")
    (note,) = ingest(workspace).changes
    assert note.startswith("1 image labeled for training in inbox stays in the test set, because another source holds")
    assert_plain(note)
    put(workspace, "labels.csv", b"path,label,split\nlabeled/cat/1.png,cat,train\n")
    assert "1 image moved from test to train" in ingest(workspace).changes
    assert verdicts(workspace)[SHA256] == ("train", ("cat",))


@pytest.mark.seconds
def test_a_column_of_splits_that_is_lost_with_a_new_name_of_the_source_moves_nothing(
    workspace: Workspace,
) -> None:
    lay(workspace, {"1.png": IMAGE, "labels.csv": b"path,label,split\n1.png,cat,test\n"}, "photos")
    rename(workspace, "photos", "pics")
    put(workspace, "../pics/labels.csv", b"path,label\n1.png,cat\n")
    ingest(workspace, ["pics"])
    assert verdicts(workspace)[SHA256] == ("test", ("cat",))


@pytest.mark.seconds
def test_a_glob_that_sees_a_part_takes_nothing_back(workspace: Workspace) -> None:
    lay(workspace, {"unlabeled/4.png": IMAGE, "labeled/cross/4.png": IMAGE})
    assert ingest(workspace, ["inbox/un*/*.png"]).batch is None
    assert ingest(workspace).batch is None
    assert verdicts(workspace)[SHA256] == ("train", ("cross",))


@pytest.mark.seconds
def test_without_stamps_nothing_of_an_earlier_version_is_taken_back(workspace: Workspace) -> None:
    lay(workspace, {"labeled/cross/4.png": IMAGE})
    forget_sources(workspace)
    (workspace.scratch / stamps.STAMPS).unlink()
    assert lay(workspace, {"4.png": IMAGE}, "camera").batch is None
    assert verdicts(workspace)[SHA256] == ("train", ("cross",))
    assert "1 image: cross → circle" in lay(workspace, {"labeled/circle/4.png": IMAGE}).changes


@pytest.mark.seconds
def test_a_workspace_of_an_earlier_version_stays_as_it_is(filled: Workspace) -> None:
    ingest(filled)
    forget_sources(filled)
    known = ingest(filled)
    assert (known.batch, known.known, known.changes) == (None, 40, ())
    (filled.scratch / stamps.STAMPS).unlink()
    known = ingest(filled)
    assert (known.batch, known.known, known.changes) == (None, 40, ())


@pytest.mark.seconds
def test_ingest_and_validation_agree_on_what_holds(tmp_path: Path) -> None:
    """Any history, with batches of an earlier version before those that record the source."""
    chance = random.Random(0)
    for trial in range(200):
        raw = tmp_path / str(trial)
        for number in range(chance.randint(1, 5)):
            (raw / f"{number + 1:04d}").mkdir(parents=True)
            recorded = number >= trial % 3
            occurrences = [
                Occurrence(
                    "a",
                    chance.choice(["train", "test"]),
                    chance.choice([None, "cat", "dog"]),
                    source,
                    chance.choice([None, "one", "two"]) if recorded else None,
                )
                for source in chance.choices(["inbox", "camera"] if recorded else [None], k=chance.randint(1, 3))
            ]
            record = {"sha256": "0" * 64, "occurrences": [vars(one) for one in occurrences]}
            (raw / f"{number + 1:04d}" / OCCURRENCES).write_text(json.dumps(record) + "\n")
        files = holding(list_all(raw))
        [said] = read_known(batches(raw), lambda path, sha256: None).values()
        claims = {(f"{one.batch + 1:04d}", *claim) for one in combine((), said) for claim in one.claims}
        rows = set(files.select("ingest_batch", "split", "label", "group").iter_rows())
        assert {row for row in rows if row[1:] != UNCLAIMED} == claims, trial
        used = pl.DataFrame({"sha256": ["0" * 64], "pixel_hash": ["picture"], "verdict": ["accept"]})
        group = judge(said).group
        assert find_groups(raw, used).rows() == ([("0" * 64, group)] if group else []), trial


SIBLING = encode(draw(2, 3))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.seconds
@pytest.mark.parametrize("folder", ["labeled/cross", "test/cross"])
def test_a_file_that_is_overwritten_takes_the_place_of_what_it_held(workspace: Workspace, folder: str) -> None:
    lay(workspace, {f"{folder}/4.png": IMAGE, f"{folder}/5.png": SIBLING})
    edited = {f"{folder}/4.png": OTHER, f"{folder}/5.png": SIBLING}
    said = f"1 image overwritten and no longer used, such as '{folder}/4.png'"
    assert said in lay(workspace, edited).changes
    assert verdicts(workspace).keys() == {digest(OTHER), digest(SIBLING)}
    assert (lay(workspace, edited).batch, lay(workspace, edited).changes) == (None, ())
    lay(workspace, {**edited, "unlabeled/6.png": IMAGE})
    assert verdicts(workspace)[SHA256] == ("train", ())


def test_a_file_that_is_overwritten_by_a_known_one_is_too(workspace: Workspace) -> None:
    lay(workspace, {"labeled/cross/4.png": IMAGE, "labeled/cross/5.png": SIBLING})
    lay(workspace, {"labeled/cross/4.png": SIBLING, "labeled/cross/5.png": SIBLING})
    assert verdicts(workspace).keys() == {digest(SIBLING)}


def test_an_unlabeled_file_that_is_overwritten_is_reported_and_both_contents_are_used(workspace: Workspace) -> None:
    lay(workspace, {"unlabeled/4.png": IMAGE, "unlabeled/5.png": SIBLING})
    result = lay(workspace, {"unlabeled/4.png": OTHER, "unlabeled/5.png": SIBLING})
    (said,) = result.changes
    assert said.startswith(
        f"1 unlabeled image overwritten, such as 'unlabeled/4.png', which was {SHA256[:12]}: the new and"
    )
    assert said in str(result)
    assert verdicts(workspace).keys() == {SHA256, digest(OTHER), digest(SIBLING)}
    assert lay(workspace, {"unlabeled/4.png": OTHER, "unlabeled/5.png": SIBLING}).changes == ()


@pytest.mark.parametrize(
    "now",
    [
        {"unlabeled/4.png": OTHER, "unlabeled/moved.png": IMAGE},
        {"unlabeled/4.png": OTHER, "labeled/cross/4.png": IMAGE},
        {"unlabeled/5.png": OTHER},
    ],
    ids=["moved away", "labeled", "deleted"],
)
def test_an_unlabeled_image_that_is_elsewhere_or_deleted_was_not_overwritten(
    workspace: Workspace, now: Mapping[str, bytes]
) -> None:
    lay(workspace, {"unlabeled/4.png": IMAGE})
    assert not [said for said in lay(workspace, now).changes if "overwritten" in said]


@pytest.mark.seconds
def test_a_folder_that_is_filled_again_with_the_same_names_loses_nothing(workspace: Workspace) -> None:
    lay(workspace, {"labeled/cross/4.png": IMAGE, "test/cross/9.png": SIBLING})
    again = {"labeled/cross/4.png": OTHER, "test/cross/9.png": SIBLING}
    assert "1 image kept with the label from before, although a file has the name now" in lay(workspace, again).changes
    assert verdicts(workspace)[SHA256] == ("train", ("cross",))
    assert lay(workspace, again).changes == ()


@pytest.mark.seconds
@pytest.mark.parametrize("validated", [False, True])
def test_an_image_put_back_counts_although_a_copy_of_it_was_labeled_otherwise(
    workspace: Workspace, validated: bool
) -> None:
    other_bytes = encode(draw(0, 1), "PNG", compress_level=1)
    assert other_bytes != IMAGE
    rest = {f"labeled/circle/{number}.png": encode(draw(number % 4, number)) for number in range(10, 14)}
    for files in ({"labeled/circle/4.png": IMAGE}, {"labeled/cross/4.png": other_bytes}):
        lay(workspace, {**rest, **files})
        if validated:
            validate(workspace)
    result = lay(workspace, {**rest, "labeled/circle/4.png": IMAGE})
    assert "1 image put back, and labeled as before" in result.changes
    validate(workspace)
    accepted = pl.read_parquet(workspace.manifest / "accepted.parquet").filter(pl.col("sha256") == SHA256)
    assert accepted.select("split", "label").rows() == [("train", "circle")]


@pytest.mark.seconds
def test_an_image_put_back_whose_label_holds_needs_no_new_batch(workspace: Workspace) -> None:
    files = {f"labeled/circle/{number}.png": encode(draw(number % 4, number)) for number in range(10, 14)}
    lay(workspace, files)
    validate(workspace)
    lay(workspace, {"labeled/circle/10.png": files["labeled/circle/10.png"]})
    assert lay(workspace, files).batch is None


@pytest.mark.seconds
def test_a_class_that_differs_from_one_of_an_earlier_batch_only_in_writing_is_noted(workspace: Workspace) -> None:
    lay(workspace, {"labeled/cross/4.png": IMAGE})
    result = lay(workspace, {"labeled/Cross /5.png": OTHER})
    (note,) = (line for line in result.understood if line.startswith("note: "))
    assert note.startswith("note: 'Cross' and 'cross' are separate classes, and differ in nothing but capitals")
    params = yaml.safe_load(workspace.params.read_text())
    params["ingest"]["classes"] = ["cross", "Cross"]
    workspace.params.write_text(yaml.safe_dump(params))
    assert not [line for line in ingest(workspace).understood if line.startswith("note: ")]
    params["ingest"]["classes"] = None
    workspace.params.write_text(yaml.safe_dump(params))
    moved = lay(workspace, {"labeled/Cross/4.png": IMAGE, "labeled/Cross/5.png": OTHER})
    assert not [line for line in moved.understood if line.startswith("note: ")]


def test_a_class_of_an_earlier_batch_that_is_not_allowed_now_is_noted(workspace: Workspace) -> None:
    lay(workspace, {"labeled/square/4.png": IMAGE})
    params = yaml.safe_load(workspace.params.read_text())
    params["ingest"]["classes"] = ["cross"]
    workspace.params.write_text(yaml.safe_dump(params))
    (note,) = (line for line in lay(workspace, {"labeled/cross/5.png": OTHER}).understood if line.startswith("note: "))
    assert "not in ingest.classes, and are still trained on: 'square'" in note


def test_a_table_of_labels_that_is_a_link_is_noted(workspace: Workspace, tmp_path: Path) -> None:
    put(workspace, "unlabeled/4.png", IMAGE)
    (tmp_path / "table").write_text("path,label\nunlabeled/4.png,cross\n")
    (workspace.inbox / "labels.csv").symlink_to(tmp_path / "table")
    (note,) = (line for line in ingest(workspace).understood if line.startswith("note: "))
    assert note == "note: 'labels.csv' is not read: it is a link; copy the table itself to this place (1 file)"
