"""A column labels gives an image several labels, or none of the classes; what can be read in two ways is refused."""

import shutil

import pytest
import yaml

from pipeline.errors import IngestError
from pipeline.ingest.ingest import ingest
from pipeline.ingest.labels.labels_csv import Row, read_rows
from pipeline.ingest.raw import batches
from pipeline.ingest.undo import redo, undo
from pipeline.workspace import Workspace
from simclr_core.data import label_sets
from tests.conftest import TINY_PARAMS
from tests.pipeline.conftest import put, read_files
from tests.pipeline.ingest.test_layout import fill, notes
from tests.sentences import assert_plain

FILES = [f"unlabeled/{number}.png" for number in range(6)]
TABLE = """path,labels,split
unlabeled/0.png,cat|dog,train
unlabeled/1.png, dog | cat ,train
unlabeled/2.png,cat,test
unlabeled/3.png,-,test
unlabeled/4.png,,
"""


def labels(workspace: Workspace) -> dict[str, tuple[str, str | None]]:
    """Path → split and labels as people write them, by the newest batch that tells of it."""
    return {
        path: (split, None if label is None else label_sets.describe(label))
        for batch in batches(workspace.raw)
        for _, path, split, label in read_files(batch)
    }


def cells(*labels: str, header: str = "path,labels") -> list[Row]:
    text = "".join(f'{number}.png,"{label}"\n' for number, label in enumerate(labels))
    return read_rows("labels.csv", f"{header}\n{text}".encode())


def test_cells_of_several_labels_of_one_of_none_and_blank_ones(workspace: Workspace) -> None:
    fill(workspace, *FILES)
    put(workspace, "labels.csv", TABLE.encode())
    result = ingest(workspace)
    assert labels(workspace) == {
        FILES[0]: ("train", "cat|dog"),
        FILES[1]: ("train", "cat|dog"),
        FILES[2]: ("test", "cat"),
        FILES[3]: ("test", "-"),
        FILES[4]: ("train", None),
        FILES[5]: ("train", None),
    }
    table = [line.split() for line in result.understood if not line.startswith("note: ")]
    assert table == [
        ["class", "train", "test"],
        ["cat", "2", "1"],
        ["dog", "2", "0"],
        ["(none", "of", "them)", "0", "1"],
        ["(no", "class)", "2", "0"],
    ]
    assert "an image may have several labels here; a class that a labeled image does not have" in notes(result)
    assert "(3 files)" in notes(result)
    assert ingest(workspace).batch is None  # nothing new is said


def test_the_order_blanks_and_repetitions_of_labels_do_not_matter() -> None:
    assert {row.label for row in cells("b|a|c", " c | b|a ", "a|b|c|a", "a||b|c|")} == {label_sets.join("abc")}


def test_a_table_in_which_each_image_has_one_label_is_one_of_a_column_label() -> None:
    assert [row[:4] for row in cells("cat", "dog", "")] == [
        row[:4] for row in cells("cat", "dog", "", header="path,label")
    ]


def test_a_column_label_keeps_every_sign_in_its_cells() -> None:
    assert [row.label for row in cells("cat|dog", "a;b", "-", header="path,label")] == ["cat|dog", "a;b", "-"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label,labels\n0.png,cat,cat|dog\n", "has a column label and a column labels; keep label if each image"),
        ("path,labels,labels\n0.png,cat,dog\n", "two columns named 'labels'"),
        (
            "path,labels\n0.png,cat;dog\n",
            "line 2 has the labels 'cat;dog', and labels are separated by | ; write 'cat|dog'",
        ),
        ('path,labels\n0.png,"cat, dog"\n', "write 'cat|dog', or name the column label if that is one class"),
        ("path,labels\n0.png,cat|-\n", "line 2 has the labels 'cat|-'; give names separated by | , a single -"),
        ("path,labels\n0.png,|\n", "line 2 has the labels '|'; give names separated by |"),
        ('path,labels\n0.png,"cat|do\ng"\n', "with a line break or control character"),
        ("path,labels\n0.png\n", "line 2 ends before the label"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(text: str, says: str) -> None:
    with pytest.raises(IngestError) as caught:
        read_rows("labels.csv", text.encode())
    assert says in str(caught.value)
    assert_plain(str(caught.value))


def test_other_separators_are_part_of_a_name_where_some_cell_has_several() -> None:
    assert cells("a, b|c", "d;e")[1].label == "d;e"


def test_a_table_that_ends_within_a_label_is_refused() -> None:
    with pytest.raises(IngestError, match="ends without a line break"):
        read_rows("labels.csv", b"path,labels\n0.png,cat|rabbit\n1.png,cat|rab")


def test_two_tables_may_name_different_images_in_either_way(workspace: Workspace) -> None:
    fill(workspace, "a/0.png", "b/1.png")
    put(workspace, "a/labels.csv", b"path,label\n0.png,cat\n")
    put(workspace, "b/labels.csv", b"path,labels\n1.png,cat|dog\n")
    ingest(workspace)
    assert labels(workspace) == {"a/0.png": ("train", "cat"), "b/1.png": ("train", "cat|dog")}


def test_classes_of_sets_are_held_against_the_listed_ones(workspace: Workspace) -> None:
    fill(workspace, *FILES)
    put(workspace, "labels.csv", TABLE.replace("dog", "dgo").encode())
    limited = TINY_PARAMS | {"ingest": TINY_PARAMS["ingest"] | {"classes": ["cat", "dog"]}}
    workspace.params.write_text(yaml.safe_dump(limited), encoding="utf-8")
    with pytest.raises(IngestError, match=r"'dgo' \('unlabeled/0.png' and 1 more; did you mean 'dog'\?\)"):
        ingest(workspace)
    put(workspace, "labels.csv", TABLE.replace("2.png,cat", "2.png,Cat").encode())
    with pytest.raises(IngestError, match="differ in nothing but capitals"):
        ingest(workspace)


def test_other_sets_are_news_said_as_people_write_them(workspace: Workspace) -> None:
    fill(workspace, *FILES)
    put(workspace, "labels.csv", TABLE.encode())
    ingest(workspace)
    changed = TABLE.replace("cat|dog", "dog|bird").replace("3.png,-", "3.png,cat").replace("2.png,cat", "2.png,")
    put(workspace, "labels.csv", changed.encode(), age=1800)
    said = ingest(workspace)
    assert said.changes[:3] == (
        "1 image: cat|dog → bird|dog",
        "1 label removed (cat)",
        "1 image: none of the classes → cat",
    )
    assert said.new_labels == 3
    assert labels(workspace)[FILES[2]] == ("test", None)
    put(workspace, "labels.csv", changed.replace(" dog | cat ", "").encode(), age=900)
    assert "1 label removed (cat|dog)" in ingest(workspace).changes
    assert_plain(str(said))


def test_a_class_that_no_set_has_any_more_is_said(workspace: Workspace) -> None:
    fill(workspace, *FILES)
    put(workspace, "labels.csv", TABLE.encode())
    ingest(workspace)
    put(workspace, "labels.csv", TABLE.replace("cat|dog", "cat").replace(" dog | cat ", "cat").encode(), age=1800)
    assert "class 'dog' has no more images" in ingest(workspace).changes


@pytest.mark.seconds
def test_a_batch_of_sets_is_undone_and_taken_again(workspace: Workspace) -> None:
    fill(workspace, *FILES)
    put(workspace, "labels.csv", TABLE.encode())
    ingest(workspace)
    before = labels(workspace)
    undo(workspace, "0001")
    assert (labels(workspace), ingest(workspace).batch) == ({}, None)
    redo(workspace, "0001")
    ingest(workspace)
    assert labels(workspace) == before


def test_a_share_of_them_is_held_out_by_content(workspace: Workspace) -> None:
    files = [f"unlabeled/{number}.png" for number in range(24)]
    fill(workspace, *files)
    put(workspace, "labels.csv", ("path,labels\n" + "".join(f"{path},a|b\n" for path in files)).encode())
    held = TINY_PARAMS | {"ingest": TINY_PARAMS["ingest"] | {"hold_out": 0.5}}
    workspace.params.write_text(yaml.safe_dump(held), encoding="utf-8")
    ingest(workspace)
    splits = [split for split, _ in labels(workspace).values()]
    assert 0 < splits.count("test") < len(files)


def test_a_folder_with_the_sign_between_labels_in_its_name_is_refused(workspace: Workspace) -> None:
    fill(workspace, "labeled/cat/0.png")
    shutil.move(workspace.inbox / "labeled/cat", workspace.inbox / "labeled/a\x1fb")
    with pytest.raises(IngestError, match=r"labeled/a\\x1fb/ has a control character in its name"):
        ingest(workspace)


@pytest.mark.parametrize("cell", ["cat|dog", "-"])
def test_a_column_label_with_what_looks_like_a_set_is_noted(workspace: Workspace, cell: str) -> None:
    fill(workspace, *FILES)
    rows = "".join(f"{path},{cell if path == FILES[0] else 'cat'}\n" for path in FILES)
    (workspace.inbox / "labels.csv").write_text(f"path,label\n{rows}")
    found = notes(ingest(workspace))
    assert f"{cell!r} is the name of one class; name the column labels, not label" in found
    assert labels(workspace)[FILES[0]] == ("train", repr(cell))


@pytest.mark.parametrize(
    ("cell", "said"),
    [("cat|dog", "1 image: 'cat|dog' → cat|dog"), ("-", "1 image: '-' → none of the classes")],
)
def test_a_class_that_becomes_a_set_is_seen_to_change(workspace: Workspace, cell: str, said: str) -> None:
    fill(workspace, *FILES)
    put(workspace, "labels.csv", f"path,label\n{FILES[0]},{cell}\n{FILES[1]},cat\n".encode())
    ingest(workspace)
    put(workspace, "labels.csv", f"path,labels\n{FILES[0]},{cell}\n{FILES[1]},cat\n".encode(), age=1800)
    assert said in ingest(workspace).changes
