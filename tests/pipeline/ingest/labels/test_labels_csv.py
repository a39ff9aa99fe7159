"""labels.csv is read as programs write it; what cannot be read is refused, and a row that names no file is counted."""

import unicodedata

import pytest

from pipeline.errors import IngestError
from pipeline.ingest.ingest import ingest
from pipeline.ingest.labels.labels_csv import Row, columns_of, read_rows
from pipeline.ingest.labels.matching import match_rows
from pipeline.ingest.raw import batches
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.ingest.test_layout import fill, notes, places
from tests.sentences import assert_plain

PATHS = "unlabeled/0.png", "unlabeled/1.png"
UNDERSTOOD = {
    "byte order mark": "path,label\nunlabeled/0.png,fuß\n".encode("utf-8-sig"),
    "UTF-16": "path,label\nunlabeled/0.png,fuß\n".encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + "path,label\nunlabeled/0.png,fuß\n".encode("utf-16-be"),
    "semicolons": "path;label\nunlabeled/0.png;fuß\n".encode(),
    "tabs": "path\tlabel\nunlabeled/0.png\tfuß\n".encode(),
    "carriage returns": "path,label\r\nunlabeled/0.png,fuß\r\n\r\n".encode(),
    "old Macs": "path,label\runlabeled/0.png,fuß\r".encode(),
    "quotes": '"path","label"\n"unlabeled/0.png","fuß"\n'.encode(),
    "blanks": "Path, Label \nunlabeled/0.png, fuß \n".encode(),
    "more columns in another order": "id,label,path\n7,fuß,unlabeled/0.png,\n".encode(),
    "./": "path,label\n./unlabeled/0.png,fuß\n".encode(),
    "the source before it": "path,label\ninbox/unlabeled/0.png,fuß\n".encode(),
    "backslashes": "path,label\nunlabeled\\0.png,fuß\n".encode(),
    "a blank before a quote": 'path, label\nunlabeled/0.png, "fuß"\n'.encode(),
    "empty lines": "\n\npath,label\n,\nunlabeled/0.png,fuß\n,\n".encode(),
    "capitals": "path,label\nUnlabeled/0.PNG,fuß\n".encode(),
}


@pytest.mark.seconds
@pytest.mark.parametrize(("name", "form"), [*(("labels.csv", form) for form in UNDERSTOOD), ("Labels.CSV", "quotes")])
def test_the_ways_in_which_programs_write_a_table_are_understood(workspace: Workspace, name: str, form: str) -> None:
    fill(workspace, *PATHS)
    put(workspace, name, UNDERSTOOD[form])
    result = ingest(workspace)
    assert places(workspace) == {PATHS[0]: ("train", "fuß"), PATHS[1]: ("train", None)}
    unused = "note: inbox/labels.csv: column 'id' not used; those that are read: path, label, labels, split, group"
    assert notes(result) == (unused if b"id," in UNDERSTOOD[form] else "")


def test_an_absolute_path_and_another_unicode_form_name_their_file(workspace: Workspace) -> None:
    accented = unicodedata.normalize("NFD", "unlabeled/café.png")
    fill(workspace, accented, "unlabeled/1.png")
    rows = f"path,label\nunlabeled/café.png,a\n{workspace.inbox}/unlabeled/1.png,b\n"
    put(workspace, "labels.csv", rows.encode())
    ingest(workspace)
    assert places(workspace) == {accented: ("train", "a"), "unlabeled/1.png": ("train", "b")}


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("file:///photos", "file:///photos/cats/a b.png"),
        ("file:///photos", "FILE:///photos/cats/a%20b.png"),
        ("file:///photos", "file://localhost/photos/cats/a b.png"),
        ("file:///photos", "/photos/cats/a b.png"),
        ("file:///photos", ".\\cats\\a b.png"),
        ("s3://bucket/photos", "s3://bucket/photos/cats/a b.png"),
    ],
)
def test_an_address_names_its_file(base: str, path: str) -> None:
    row = Row(2, path, "cat", None)
    assert match_rows("labels.csv", [row], "labels.csv", base, ["cats/a b.png"]).rows == {"cats/a b.png": row}


def test_an_address_elsewhere_names_no_file_and_says_why() -> None:
    rows = [Row(2, "https://example.org/7.png", "cat", None), Row(3, "1.png", "cat", None)]
    found = match_rows("labels.csv", rows, "labels.csv", "file:///photos", ["1.png"])
    assert list(found.rows) == ["1.png"]
    assert "1 of 2 rows name no file, such as 'https://example.org/7.png'; nothing is downloaded" in found.lost


def test_a_spelling_that_two_files_have_names_neither(workspace: Workspace) -> None:
    fill(workspace, "a/X.png", "a/x.png", "a/y.png")
    put(workspace, "labels.csv", b"path,label\nA/x.PNG,cat\na/y.png,cat\n")
    result = ingest(workspace)
    assert [label for _, label in places(workspace).values()] == [None, None, "cat"]
    assert "1 of 2 rows name no file, such as 'A/x.PNG'" in notes(result)


def test_a_table_next_to_the_images_is_relative_to_its_folder(workspace: Workspace) -> None:
    fill(workspace, "unlabeled/0.png", "deep/er/1.png", "test/2.png")
    put(workspace, "unlabeled/labels.csv", b"path,label\n0.png,cat\n")
    put(workspace, "deep/labels.csv", b"path,label\ner/1.png,dog\n")
    put(workspace, "test/labels.csv", b"path,label\n2.png,cat\n")
    ingest(workspace)
    assert set(places(workspace).values()) == {("train", "cat"), ("train", "dog"), ("test", "cat")}


def test_someone_elses_table_among_the_images_is_named(workspace: Workspace) -> None:
    fill(workspace, "unlabeled/0.png")
    put(workspace, "unlabeled/labels.csv", b"id,breed\n0,collie\n")
    assert "'unlabeled/labels.csv' is not read, because its columns are not path,label" in notes(ingest(workspace))


def test_rows_that_name_no_file_are_counted_with_what_may_be_meant(workspace: Workspace) -> None:
    fill(workspace, *(f"unlabeled/{number}.png" for number in range(8)))
    rows = [f"unlabeled/{number}.{'png' if number < 2 else 'jpg'},cat" for number in range(8)]
    put(workspace, "labels.csv", "\n".join(["path,label", *rows]).encode())
    expected = "inbox/labels.csv: 6 of 8 rows name no file, such as 'unlabeled/2.jpg'; is 'unlabeled/2.png' meant?"
    assert expected in notes(ingest(workspace))


REFUSED = {
    "Latin-1": (
        "path,label\na.png,cat\nunlabeled/0.png,fuß\n".encode("latin-1"),
        r"line 3 is not UTF-8 \(byte 0xdf\); save",
    ),
    "letters lost before": ("path,label\nunlabeled/0.png,fu\ufffd\n".encode(), "line 2 has label .* a letter was lost"),
    "no label cell": (b"path,label\nunlabeled/0.png\n", "line 2 ends before the label; leave the cell empty"),
    "a file by two names": (
        b"path,label\nunlabeled/0.png,cat\n./unlabeled/0.png,dog\n",
        "line 3 names './unlab.* again",
    ),
    "an endless quote": (b'path,label\n"unlabeled/0.png,' + bytes(200_000), "is not CSV .*; correct it"),
    "a comma in a label": (
        b"path,label\nunlabeled/0.png,crane, bird\n",
        "line 2 has 3 cells, the first line names 2 col",
    ),
    "a quote that takes in the next lines": (b'path,label\nunlabeled/0.png,"cat\nunlabeled/1.png,dog\n', "is not CSV"),
    "a line break in a label": (
        b'path,label\nunlabeled/0.png,"cat\ndog"\n',
        "a line break .*is a double quote missing",
    ),
    "a line separator in a label": (
        "path,label\nunlabeled/0.png,cat\u2028dog\n".encode(),
        "a line break .*is a double quote missing",
    ),
    "two columns of one name": (b"path,label,Label\nunlabeled/0.png,cat,dog\n", "has two columns named 'label'"),
    "a path of another machine": (
        b"path,label\nC:\\photos\\0.png,cat\n",
        "none of its paths .1. is a file of this source, such as .*; is 'unlabeled/0.png' meant",
    ),
    "splits under another name": (
        b"path,label,fold,Subset\nunlabeled/0.png,cat,1,train\nunlabeled/1.png,dog,2,Val\n",
        "its column 'subset' says what is held out, it seems, with 'train', 'Val' in it, and only one named split",
    ),
    "a validation set": (b"path,label,split\nunlabeled/0.png,cat,val\n", "a validation set is 'test' here"),
}


def test_other_columns_may_have_words_like_train_and_test_in_them() -> None:
    tables = (
        "path,label,note\na.png,cat,test\nb.png,cat,second try\n",
        "path,label,fold\na.png,cat,1\nb.png,cat,2\n",
        "path,label,set\na.png,cat,1\nb.png,cat,2\n",
        "path,label,subset\na.png,cat,train\nb.png,cat,train\n",
        "path,label,is_valid\na.png,cat,False\nb.png,cat,0\n",
        "path,label,is_train\na.png,cat,1\nb.png,cat,True\n",
        "path,label,is_new\na.png,cat,True\nb.png,cat,False\n",
        "path,label,test\na.png,cat,biopsy\nb.png,cat,scan\n",
        "path,label,note\na.png,cat,train\nb.png,cat,\n",
        "path,label,split,subset\na.png,cat,train,test\n",
        "path,label\na.png,train\nb.png,test\n",
    )
    assert {len(read_rows("labels.csv", table.encode())) for table in tables} == {1, 2}


SPLITS = {
    "fastai": ("is_valid", "False", "True"),
    "truth in numbers": ("is_test", "0", "1"),
    "a truth without a verb": ("validation", "no", "yes"),
    "capitals": ("IsTest", "FALSE", "TRUE"),
    "what is trained on": ("is_train", "True", "False"),
    "blank for no": ("holdout", "", "x"),
    "a word that is not one of a split": ("subset", "train", "leftover"),
    "CelebA": ("partition", "0", "2"),
    "short words": ("set", "trn", "tst"),
    "retrieval": ("phase", "train", "query"),
    "retrieval under any name": ("usage", "train", "gallery"),
    "numbers after the words": ("image_set", "train2017", "val2017"),
    "a name with split in it": ("data_split", "a", "b"),
}


@pytest.mark.parametrize("case", SPLITS)
def test_a_column_that_seems_to_say_what_is_held_out_is_refused(case: str) -> None:
    column, first, second = SPLITS[case]
    table = f"path,label,{column}\na.png,cat,{first}\nb.png,dog,{second}\n"
    with pytest.raises(IngestError, match=f"its column '{column.casefold()}' says what is held out, it seems"):
        read_rows("labels.csv", table.encode())
    with_split = f"path,label,split,{column}\na.png,cat,train,{first}\nb.png,dog,test,{second}\n"
    assert [row.split for row in read_rows("labels.csv", with_split.encode())] == ["train", "test"]


def test_one_foreign_word_does_not_hide_what_is_held_out() -> None:
    with pytest.raises(
        IngestError, match="'subset' says what is held out, it seems, with 'train', 'test', 'unlabeled' in"
    ) as refused:
        read_rows("labels.csv", b"path,label,subset\na.png,cat,train\nb.png,dog,test\nc.png,,unlabeled\n")
    assert_plain(str(refused.value))
    assert "with train, test or nothing in each cell, or remove it" in str(refused.value)
    with pytest.raises(IngestError, match="'usage' says what is held out"):
        read_rows("labels.csv", b"path,label,usage\na.png,cat,train\nb.png,dog,test\nc.png,cat,discarded\n")


def test_columns_that_are_not_used_are_noted(workspace: Workspace) -> None:
    fill(workspace, *PATHS)
    put(workspace, "labels.csv", b"path,label,note,width\nunlabeled/0.png,cat,blurred,28\n")
    assert "inbox/labels.csv: columns 'note', 'width' not used; those that are read: path, label" in notes(
        ingest(workspace)
    )


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("7.png", None),  # its file is gone, and another one has its name
        ("8.png", "a/8.png"),
        ("a/8.png", "a/8.png"),
        ("./8.PNG", "a/8.png"),
        ("photos/a/8.png", "a/8.png"),
        ("photos/7.png", None),
        ("../7.png", "7.png"),
        ("/data/photos/7.png", "7.png"),
    ],
)
def test_a_row_in_a_folder_names_a_file_of_that_folder_or_says_where_it_is(row: str, found: str | None) -> None:
    rows = [Row(2, row, "dog", None), Row(3, "9.png", "cat", None)]
    matched = match_rows("labels.csv", rows, "a/labels.csv", "file:///data/photos", ["7.png", "a/8.png", "a/9.png"])
    assert list(matched.rows) == [*([found] if found else []), "a/9.png"]
    assert bool(matched.lost) == (found is None)


def test_a_table_in_a_folder_may_give_all_of_its_paths_from_the_source() -> None:
    files = ["1.png", "b/2.png", "a/3.png"]
    rows = [Row(2, "1.png", "cat", None), Row(3, "b/2.png", "dog", None)]
    assert list(match_rows("labels.csv", rows, "a/labels.csv", "file:///photos", files).rows) == ["1.png", "b/2.png"]
    rows.append(Row(4, "b/gone.png", "cat", None))
    with pytest.raises(IngestError, match=r"none of its paths .3. is a file of this source"):
        match_rows("labels.csv", rows, "a/labels.csv", "file:///photos", files)


def test_the_name_of_the_source_before_a_path_is_not_that_of_a_folder_in_it() -> None:
    rows = [Row(2, "photos/1.png", "cat", None), Row(3, "photos/2.png", "dog", None)]
    files = ["1.png", "2.png", "photos/2.png"]
    assert list(match_rows("labels.csv", rows, "labels.csv", "file:///photos", files).rows) == ["photos/2.png"]


def test_a_file_that_is_gone_gives_its_label_to_no_other_one(workspace: Workspace) -> None:
    fill(workspace, "7.png", "a/8.png")
    put(workspace, "a/labels.csv", b"path,label\n7.png,dog\n8.png,cat\n")
    result = ingest(workspace)
    assert places(workspace) == {"7.png": ("train", None), "a/8.png": ("train", "cat")}
    assert "inbox/a/labels.csv: 1 of 2 rows name no file, such as '7.png'; that is a file of another" in notes(result)


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_read_is_refused(workspace: Workspace, case: str) -> None:
    data, message = REFUSED[case]
    fill(workspace, *PATHS)
    put(workspace, "labels.csv", data)
    with pytest.raises(IngestError, match=message):
        ingest(workspace)
    assert batches(workspace.raw) == []


def test_two_tables_do_not_name_one_file(workspace: Workspace) -> None:
    put(workspace, "unlabeled/0.png", encode(draw(0, 1)))
    put(workspace, "labels.csv", b"path,label\nunlabeled/0.png,cat\n")
    put(workspace, "unlabeled/labels.csv", b"path,label\n0.png,dog\n")
    with pytest.raises(IngestError, match=r"unlabeled/labels.csv: line 2 names '0.png' again"):
        ingest(workspace)


@pytest.mark.parametrize("first", ["sep=;\r\n", "sep=,\n", "\ufeffsep=;\n"])
def test_a_line_for_spreadsheets_is_skipped_and_counted(first: str) -> None:
    delimiter = first[first.index("=") + 1]
    table = f"{first}path{delimiter}label\na.png{delimiter}cat\n"
    assert [(row.line, row.path, row.label) for row in read_rows("labels.csv", table.encode())] == [(3, "a.png", "cat")]
    assert columns_of(table.encode()) == ["path", "label"]


@pytest.mark.parametrize(
    "data",
    [
        b"path,label\na.png,cat\nb.png,ca",
        b"path,label,split\na.png,cat,\nb.png,cat",
        b"path,label,split\r\na.png,cat,train\r\nb.png,cat",
    ],
)
def test_a_table_that_was_cut_off_is_refused(data: bytes) -> None:
    """As by a copy that ended early: half a word is another class, and a lost split is another split."""
    with pytest.raises(IngestError, match="line 3 ends without a line break, and in the middle of a word") as refused:
        read_rows("labels.csv", data)
    assert_plain(str(refused.value))
    assert len(read_rows("labels.csv", data + b"\n")) == 2


@pytest.mark.parametrize(
    "data", [b"path,label\na.png,cat\nb.png,dog", b"path,label\na.png,cat", b"path,label,split\na.png,cat\nb.png,cat"]
)
def test_a_last_line_may_lack_its_end(data: bytes) -> None:
    assert read_rows("labels.csv", data)[0].label == "cat"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"file|class\n", "has the columns file|class; give it"),
        ("path,label\n".encode("utf-16-le"), r"has the columns p\x00a\x00"),
        (b"\n", "has no first line"),
        (b"path,label\na,caf\xe9\n", "line 2 is not UTF-8 (byte 0xe9); save"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_without_python(data: bytes, found: str) -> None:
    with pytest.raises(IngestError) as refused:
        read_rows("labels.csv", data)
    assert found in str(refused.value)
    assert_plain(str(refused.value))
