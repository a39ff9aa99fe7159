"""Groups in labels.csv: what it says of them now counts, and what leaks or is likely a slip is said."""

import hashlib
from collections import Counter
from collections.abc import Mapping

import pytest

from pipeline.errors import IngestError
from pipeline.ingest.ingest import IngestResult, ingest
from pipeline.ingest.labels.groups import describe_groups, describe_regrouped
from pipeline.ingest.labels.labels_csv import read_rows
from pipeline.ingest.layout import Place, hold_out
from pipeline.ingest.raw import OCCURRENCES
from pipeline.ingest.raw import read_rows as read_files
from pipeline.validation.__main__ import run as validate
from pipeline.validation.groups import FILE, read
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import fill
from tests.pipeline.ingest.test_claims import lay

IMAGES = {f"{name}.png": encode(draw(number, number)) for number, name in enumerate("abcd")}


def digest(name: str) -> str:
    return hashlib.sha256(IMAGES[f"{name}.png"]).hexdigest()


def ingested(workspace: Workspace, table: str, files: Mapping[str, bytes] = IMAGES) -> IngestResult:
    return lay(workspace, {**files, "labels.csv": table.encode()})


def newest_groups(workspace: Workspace) -> dict[str, str | None]:
    """Name → group of the files in the newest batch."""
    newest = max(workspace.raw.iterdir())
    return {path: group for _, path, *_, group in read_files(newest)}


@pytest.mark.seconds
def test_a_table_of_groups_needs_no_labels(workspace: Workspace) -> None:
    result = ingested(workspace, "path,group\na.png,part 1\nb.png, part 1 \nc.png,part 2\nd.png,\n")
    assert newest_groups(workspace) == {"a.png": "part 1", "b.png": "part 1", "c.png": "part 2", "d.png": None}
    assert "1 group of 2 images: positives of each other in pretraining" in result.understood
    assert any(
        "note: 1 group of one image, such as 'part 2', which count as none" in line for line in result.understood
    )


@pytest.mark.seconds
def test_what_the_table_says_now_counts(workspace: Workspace) -> None:
    ingested(workspace, "path,group\na.png,one\nb.png,one\nc.png,two\nd.png,\n")
    assert ingested(workspace, "path,group\na.png,one\nb.png,one\nc.png,two\nd.png,\n").batch is None
    changed = ingested(workspace, "path,group\na.png,one\nb.png,two\nc.png,\nd.png,one\n")
    assert changed.new_labels == 3
    assert {
        "1 known image put into a group",
        "1 image put into another group",
        "1 image taken out of a group",
    } <= set(changed.changes)
    assert newest_groups(workspace) == {"b.png": "two", "c.png": None, "d.png": "one"}
    gone = ingested(workspace, "path,label\na.png,\nb.png,\nc.png,\nd.png,\n")
    assert "3 images taken out of a group" in gone.changes


@pytest.mark.seconds
@pytest.mark.parametrize("folder", ["", "labeled/cross/", "test/cross/"])
def test_a_row_that_is_gone_takes_no_group_away(workspace: Workspace, folder: str) -> None:
    files = {folder + name: data for name, data in IMAGES.items()}
    rows = [f"{path},one\n" for path in files]
    ingested(workspace, "path,group\n" + "".join(rows), files)
    kept = ingested(workspace, "path,group\n" + rows[0], files)
    assert kept.batch is None
    said = "3 images kept in the group that labels.csv gave before (a row with a blank group removes it)"
    assert said in kept.changes
    blank = ingested(workspace, "path,group\n" + "".join(row.replace(",one", ",") for row in rows), files)
    assert "4 images taken out of a group" in blank.changes


@pytest.mark.seconds
def test_labels_and_groups_change_on_their_own(workspace: Workspace) -> None:
    ingested(workspace, "path,label,group\na.png,cat,one\nb.png,dog,one\n")
    changed = ingested(workspace, "path,label,group\na.png,dog,one\nb.png,dog,two\n")
    assert changed.changes[:2] == ("1 image: cat → dog", "1 image put into another group")


@pytest.mark.seconds
def test_the_class_of_a_folder_holds_where_the_table_has_no_labels(workspace: Workspace) -> None:
    files = {"labeled/cross/a.png": IMAGES["a.png"], "test/cross/b.png": IMAGES["b.png"]}
    result = ingested(workspace, "path,group\nlabeled/cross/a.png,one\ntest/cross/b.png,one\n", files)
    rows = {path: (split, label, group) for _, path, split, label, _, group in read_files(workspace.raw / "0001")}
    assert rows == {"labeled/cross/a.png": ("train", "cross", "one"), "test/cross/b.png": ("test", "cross", "one")}
    assert (
        "note: 1 group both in training and in test, such as 'one' (1 and 1): such test images are not new to the "
        "encoder, and accuracy is too high; give all images of a group the same split in labels.csv"
    ) in result.understood
    with pytest.raises(IngestError, match="1 held-out image without a class"):
        ingested(workspace, "path,group\ntest/a.png,one\n", {"test/a.png": IMAGES["a.png"]})


@pytest.mark.seconds
def test_without_groups_a_batch_has_the_bytes_it_always_had(workspace: Workspace) -> None:
    ingest(fill(workspace))
    assert "group" not in (workspace.raw / "0001" / OCCURRENCES).read_text()
    validate(workspace)
    assert not (workspace.manifest / FILE).exists()


@pytest.mark.seconds
def test_groups_reach_the_manifest(workspace: Workspace) -> None:
    ingested(workspace, "path,group\na.png,one\nb.png,one\nc.png,two\nd.png,\n")
    validate(workspace)
    assert read(workspace.manifest) == {digest("a"): "one", digest("b"): "one", digest("c"): "two"}
    ingested(workspace, "path,group\na.png,\nb.png,\nc.png,\nd.png,\n")
    validate(workspace)
    assert not (workspace.manifest / FILE).exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,split\na.png,train\n", "give it a first line path,label and optionally split and group, or path,group"),
        ("path,label,group\na.png,cat\n", "line 2 ends before the group; leave the cell empty for an image without"),
        ("path,group,group\na.png,1,2\n", "has two columns named 'group'"),
        ('path,group\na.png,"one\ntwo"\n', "has group 'one.*, with a line break or control character in it"),
        ("path,group\na.png,caf\ufffd\n", "has group .*, in which a letter was lost"),
        ("path,group\na.png,part 17\nb.png,part 1", "ends without a line break, and in the middle of a word or row"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(table: str, message: str) -> None:
    with pytest.raises(IngestError, match=message):
        read_rows("labels.csv", table.encode())


def test_other_tables_are_read_as_before() -> None:
    rows = read_rows("labels.csv", b"Group;PATH\n7;a.png\n")
    assert [(row.path, row.label, row.split, row.group, row.labels) for row in rows] == [
        ("a.png", None, None, "7", False)
    ]
    assert read_rows("labels.csv", b"path,label\na.png,cat\n")[0].group is None


def test_a_held_out_share_takes_whole_groups() -> None:
    splits = {
        group: {
            hold_out(Place("train", "cat", group), f"{number:064x}", 0.5).split for number in range(0, 16**8, 10**8)
        }
        for group in map(str, range(200))
    }
    assert all(len(found) == 1 for found in splits.values())
    assert 60 < Counter(split for found in splits.values() for split in found)["test"] < 140
    assert hold_out(Place("train", None, "7"), "0" * 64, 1.0).split == "train"  # it has no label


def test_likely_slips_are_said() -> None:
    images = [("train", group) for group in ("P 1", "P 1", "p1", "p1", "nan", "nan", None)]
    lines = list(describe_groups(images))
    assert lines[0] == "3 groups of 6 images: positives of each other in pretraining"
    assert any("'nan' is a group, and also what programs write for a missing value" in line for line in lines)
    assert any("'P 1' and 'p1' are separate groups" in line for line in lines)
    assert list(describe_groups([("train", None)])) == []
    assert list(describe_regrouped(Counter())) == []
