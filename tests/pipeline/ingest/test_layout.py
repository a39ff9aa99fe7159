"""What folders and labels.csv say is what counts; what says two things is refused, and every near miss is noted."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.errors import IngestError
from pipeline.ingest.ingest import IngestResult, ingest
from pipeline.ingest.layout import Place, place, read_layout
from pipeline.ingest.raw import batches
from pipeline.ingest.sources import list_source
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put, read_files
from tests.sentences import assert_plain


def fill(workspace: Workspace, *paths: str) -> None:
    for number, path in enumerate(paths):
        put(workspace, path, encode(draw(number % 4, number)))


def places(workspace: Workspace) -> dict[str, tuple[str, str | None]]:
    return {path: (split, label) for batch in batches(workspace.raw) for _, path, split, label in read_files(batch)}


def notes(result: IngestResult) -> str:
    lines = [line for line in result.understood if line.startswith(("note: ", "skipped "))]
    for line in lines:
        assert_plain(line)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("path", "split", "label"),
    [
        ("labeled/cat/a.png", "train", "cat"),
        ("labeled/cat/deep/a.png", "train", "cat"),
        ("test/cat/a.png", "test", "cat"),
        ("unlabeled/cat/a.png", "train", None),
        ("holiday/cat/a.png", "train", None),
        ("a.png", "train", None),
        ("train/cat/a.png", "train", "cat"),
        ("training/cat/a.png", "train", "cat"),
        ("train/a.png", "train", None),
        ("labeled/a.png", "train", None),
        ("Labelled/cat/a.png", "train", "cat"),
        (" LABELED/cat/a.png", "train", "cat"),
        ("val/cat/a.png", "test", "cat"),
        ("Valid/cat/a.png", "test", "cat"),
        ("validation/cat/a.png", "test", "cat"),
        ("Test/cat/a.png", "test", "cat"),
        ("ＴＥＳＴ/cat/a.png", "test", "cat"),  # full-width
        ("test/a.png", "test", None),
        ("test", "train", None),  # a file
        ("test/ cat /a.png", "test", "cat"),
        ("labeled/cafe\u0301/a.png", "train", "caf\u00e9"),
        (r"test\cat\0.png", "test", "cat"),  # as Info-ZIP unpacks what Windows packed
        (r"labeled\cat\0.png", "train", "cat"),
        (r"odd\name.png", "train", None),
    ],
)
def test_a_folder_says_split_and_label(path: str, split: str, label: str | None) -> None:
    assert place(path) == Place(split, label)


def note_of(tmp_path: Path, *paths: str, table: str = "") -> str:
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    if table:
        (tmp_path / "labels.csv").write_text(table)
    return "; ".join(read_layout(list_source(tmp_path, ".", 0.0), tmp_path / "inbox").notes)


def test_a_class_of_several_folders_and_no_file_may_be_none(tmp_path: Path) -> None:
    deep = [f"labeled/A/{name}/{number}/{number}.png" for name in ("dog", "cat") for number in range(3)]
    said = "labeled/A/ holds the folders cat, dog; if these are the classes, move them up"
    assert note_of(tmp_path / "deep", *deep) == said
    assert said.replace("labeled", "test") in note_of(tmp_path / "aside", *(f"test{path[7:]}" for path in deep))
    assert note_of(tmp_path / "one", "labeled/A/cat/1.png", "labeled/A/cat/2.png", "labeled/B/1.png") == ""
    assert note_of(tmp_path / "direct", *deep, "labeled/A/1.png") == ""
    table = "path,label\n" + "".join(f"{path},{path.split('/')[2]}\n" for path in deep)
    assert "move them up" not in note_of(tmp_path / "table", *deep, table=table)


def test_every_ingest_ends_with_a_table_of_split_and_class(filled: Workspace) -> None:
    put(filled, "unlabeled/.DS_Store", b"x")
    put(filled, "unlabeled/Thumbs.db", b"x")
    result = ingest(filled)
    assert [line.split() for line in result.understood[:6]] == [
        ["class", "train", "test"],
        ["circle", "2", "2"],
        ["cross", "2", "2"],
        ["square", "2", "2"],
        ["stripes", "2", "2"],
        ["(no", "class)", "24", "0"],
    ]
    assert result.understood[6:] == (
        "skipped 1 (is hidden): 'unlabeled/.DS_Store'",
        "skipped 1 (is left behind by a desktop or an archiver): 'unlabeled/Thumbs.db'",
    )
    assert ingest(filled).understood == result.understood, "of what is there, not of what is new"


@pytest.mark.seconds
def test_images_without_a_class_have_a_line_only_where_there_are_any(workspace: Workspace) -> None:
    fill(workspace, "train/cat/0.png", "test/cat/1.png")
    assert [line.split()[0] for line in ingest(workspace).understood] == ["class", "cat", "note:"]
    fill(workspace, "unlabeled/2.png")
    assert ["(no", "class)", "1", "0"] in [line.split() for line in ingest(workspace).understood]


def test_many_classes_are_summed_up(workspace: Workspace) -> None:
    fill(workspace, *(f"train/n{number:04d}/a.png" for number in range(30)))
    table = [line.split() for line in ingest(workspace).understood]
    assert ["10", "more", "classes", "10", "0"] in table
    assert sum(int(row[-2]) for row in table[1:-1]) == 30


def test_a_label_overrules_nothing_but_the_label(workspace: Workspace) -> None:
    fill(workspace, "labeled/cat/0.png", "test/cat/1.png", "test/2.png", "unlabeled/3.png", "unlabeled/4.png")
    rows = "labeled/cat/0.png,dog", "test/cat/1.png,cat", "test/2.png,dog", "unlabeled/3.png,dog"
    put(workspace, "labels.csv", "\n".join(["path,label", *rows]).encode())
    result = ingest(workspace)
    assert places(workspace) == {
        "labeled/cat/0.png": ("train", "dog"),
        "test/cat/1.png": ("test", "cat"),
        "test/2.png": ("test", "dog"),
        "unlabeled/3.png": ("train", "dog"),
        "unlabeled/4.png": ("train", None),
    }
    assert "inbox/labels.csv overrules the class that the folder says (1 file)" in notes(result)


def test_a_blank_split_is_silence_and_a_blank_label_removes_the_label(workspace: Workspace) -> None:
    fill(workspace, "test/cat/0.png", "test/1.png", "labeled/cat/2.png")
    put(workspace, "labels.csv", b"path,label,split\ntest/cat/0.png,dog,\ntest/1.png,,\nlabeled/cat/2.png,,\n")
    ingest(workspace)
    assert places(workspace) == {
        "test/cat/0.png": ("test", "dog"),
        "test/1.png": ("test", None),
        "labeled/cat/2.png": ("train", None),
    }


REFUSED = {
    "held out without a class": (
        ("test/0.png", "test/1.png", "unlabeled/2.png"),
        r"2 held-out images without a class, such as 'test/0.png'; move each to test/<class>/ or name it in labels.csv",
    ),
    "held out without a class or a suffix": (("val/IMG_0001",), "1 held-out image without a class"),
    "a split in a class": (
        ("labeled/train/cat/0.png",),
        r"labeled/train/ says two things; move its folders to labeled/",
    ),
    "two splits": (("train/test/cat/0.png",), r"train/test/ says two things; move its folders to test/"),
    "a split below a class": (
        ("labeled/cat/test/0.png", "labeled/cat/1.png"),
        r"labeled/cat/test/ is held out by its name, and would be trained on with its labels; move it to test/<class>/",
    ),
    "a numbered split below a class": (("train/cat/val_2/0.png",), "train/cat/val_2/ is held out by its name"),
    "a split below a class in a data set": (
        ("pets/train/cat/holdout/0.png", "pets/test/cat/1.png"),
        "train/cat/holdout/ is held out by its name",
    ),
    "capitals": (
        ("labeled/Cat/0.png", "test/cat/1.png"),
        r"'Cat' \(1 file\) and 'cat' \(1 file\); give each class one",
    ),
    "blanks": (("labeled/red fox/0.png", "labeled/redfox/1.png"), "differ in nothing but capitals, blanks"),
    "unseen letters": (("labeled/cat\u200b/0.png", "labeled/cat/1.png"), "differ in nothing but"),
    "ligatures": (("labeled/\ufb01sh/0.png", "labeled/fish/1.png"), "or Unicode form"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused_before_anything_is_written(workspace: Workspace, case: str) -> None:
    paths, message = REFUSED[case]
    fill(workspace, *paths)
    with pytest.raises(IngestError, match=message):
        ingest(workspace)
    assert batches(workspace.raw) == []


def test_a_row_that_would_train_on_what_the_folder_holds_out_is_refused(workspace: Workspace) -> None:
    fill(workspace, "test/cat/0.png")
    put(workspace, "labels.csv", b"path,label,split\ntest/cat/0.png,cat,train\n")
    with pytest.raises(IngestError, match=r"line 2 puts 'test/cat/0.png' into train, its folder holds it out"):
        ingest(workspace)


@pytest.mark.parametrize("folder", ["holdout", "test_set", "unlabeled/eval", "pets/dev/2024"])
def test_a_table_that_would_train_on_what_is_held_out_by_its_name_is_refused(workspace: Workspace, folder: str) -> None:
    fill(workspace, f"{folder}/0.png", f"{folder}/1.png")
    put(workspace, f"{folder}/labels.csv", b"path,label\n0.png,cat\n")
    with pytest.raises(
        IngestError, match=r"/ is held out by its name, and would be trained on with its labels"
    ) as refused:
        ingest(workspace)
    assert_plain(str(refused.value))
    put(workspace, f"{folder}/labels.csv", b"path,label,split\n0.png,cat,train\n1.png,cat,test\n")
    assert notes(ingest(workspace)) == ""
    assert set(places(workspace).values()) == {("train", "cat"), ("test", "cat")}


def test_a_table_in_a_folder_with_a_near_name_is_noted_as_what_it_is(workspace: Workspace) -> None:
    fill(workspace, "gallery/0.png", "gallery/1.png")
    put(workspace, "gallery/labels.csv", b"path,label\n0.png,cat\n")
    assert "gallery/ is taken as training images; if test/ is meant, name it so (2 files)" in notes(ingest(workspace))


def test_a_source_that_is_held_out_by_its_name_is_not_trained_on_with_labels(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "holdout").mkdir()
    (tmp_path / "holdout" / "0.png").write_bytes(encode(draw(0, 1)))
    (tmp_path / "holdout" / "labels.csv").write_text("path,label\n0.png,cat\n")
    with pytest.raises(IngestError, match=r"holdout/ is held out by its name"):
        ingest(workspace, [str(tmp_path / "holdout")])
    (tmp_path / "holdout").rename(tmp_path / "pets_test")
    expected = "pets_test/ is taken as training images; if test/ is meant, name it test (1 file)"
    assert expected in notes(ingest(workspace, [str(tmp_path / "pets_test")]))


def test_classes_that_are_listed_may_be_alike(workspace: Workspace) -> None:
    fill(workspace, "labeled/Cat/0.png", "labeled/cat/1.png")
    params = yaml.safe_load(workspace.params.read_text())
    params["ingest"]["classes"] = ["Cat", "cat"]
    workspace.params.write_text(yaml.safe_dump(params))
    assert ingest(workspace).new_images == 2


def test_a_class_named_like_a_split_is_a_class(workspace: Workspace) -> None:
    fill(workspace, "labeled/train/0.png", "labeled/plane/1.png")
    ingest(workspace)
    assert places(workspace)["labeled/train/0.png"] == ("train", "train")


def test_a_readme_in_test_needs_no_class(workspace: Workspace) -> None:
    fill(workspace, "test/cat/0.png")
    put(workspace, "test/README.md", b"# cats")
    result = ingest(workspace)
    assert places(workspace) == {"test/cat/0.png": ("test", "cat")}
    assert "skipped 1 (is text or a table by its name): 'test/README.md'" in notes(result)


NOTED = {
    "Test/cat/0.png": "Test/ is read as test/",
    "val/cat/0.png": "val/ is read as test/, because what is set aside is never trained on",
    "labelled/cat/0.png": "labelled/ is read as labeled/",
    "labeled/0.png": "images directly in labeled/ have no class; taken as unlabeled: move them to labeled/<class>/",
    "test_set/cat/0.png": "test_set/ is taken as unlabeled training images; if test/ is meant, name it so",
    "tests/cat/0.png": "tests/ is taken as unlabeled",
    "tset/cat/0.png": "if test/ is meant",
    "dev/cat/0.png": "if test/ is meant",
    "hold-out/cat/0.png": "if test/ is meant",
    "validate/cat/0.png": "if test/ is meant",
    "trainval/cat/0.png": "if labeled/ is meant",
    "pets/holdout/cat/0.png": "pets/holdout/ is trained on, unlabeled; if test/ is meant, move it to test/<class>/",
    "train2017/cat/0.png": "train2017/ is taken as unlabeled training images; if labeled/ is meant",
    "labeledd/cat/0.png": "labeledd/ is taken as unlabeled training images; if labeled/ is meant",
    "unlabeled/pets/test/cat/0.png": "unlabeled/pets/test/ is trained on, unlabeled; if test/ is meant, move it to",
    "pets/test/cat/0.png": "pets/test/ is trained on, unlabeled; if test/ is meant",
    "pets/train/cat/0.png": "pets/train/ is trained on, unlabeled; if labeled/ is meant",
    "labeled/test/0.png": "labeled/test/ is trained on, as class test; if test/ is meant, move it to test/<class>/",
    "train/unlabeled/0.png": "train/unlabeled/ is trained on, as class unlabeled; if unlabeled/ is meant, move it to",
    "trn/cat/0.png": "trn/ is taken as unlabeled training images; if labeled/ is meant, name it so",
    "te/cat/0.png": "te/ is taken as unlabeled training images; if test/ is meant, name it so",
    "gallery/cat/0.png": "gallery/ is taken as unlabeled training images; if test/ is meant",
    "query/cat/0.png": "query/ is taken as unlabeled training images; if test/ is meant",
    "oos/0.png": "oos/ is taken as unlabeled training images; if test/ is meant",
    "fold0/cat/0.png": "fold0/ is taken as unlabeled training images; if test/ is meant",
    "pets/fold_3/cat/0.png": "pets/fold_3/ is trained on, unlabeled; if test/ is meant",
    "pets/test2/cat/0.png": "pets/test2/ is trained on, unlabeled; if test/ is meant",
    "unlabeled/annotations.csv": "'unlabeled/annotations.csv' is not read: only a table named labels.csv",
}


@pytest.mark.seconds
@pytest.mark.parametrize("path", NOTED)
def test_near_misses_are_noted_with_the_likely_meaning(workspace: Workspace, path: str) -> None:
    fill(workspace, "unlabeled/another.png", path)
    assert NOTED[path] in notes(ingest(workspace))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("test/cat", "test/cat/ is taken as unlabeled training images; if test/ is meant, name the folder test as the"),
        ("pets_test", "pets_test/ is taken as unlabeled training images; if test/ is meant, name it test"),
        ("holiday", ""),
    ],
)
def test_a_source_that_may_be_held_out_by_its_name_is_noted(
    workspace: Workspace, tmp_path: Path, folder: str, expected: str
) -> None:
    (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / folder / "0.png").write_bytes(encode(draw(0, 1)))
    found = notes(ingest(workspace, [str(tmp_path / "data" / folder)]))
    assert expected in found if expected else found == ""


@pytest.mark.parametrize(
    "path",
    [
        *("holiday/vale/0.png", "unlabeled/texts/rest/0.png", "2026/best/0.png", "labeled/eval/0.png"),
        *("te anau/0.png", "folders/0.png", "labeled/cat/train/0.png", "labeled/cat/gallery/0.png"),
    ],
)
def test_ordinary_folders_are_not_noted(workspace: Workspace, path: str) -> None:
    fill(workspace, path)
    assert notes(ingest(workspace)) == ""


def test_a_data_set_with_its_splits_inside_is_read_like_an_inbox(workspace: Workspace) -> None:
    fill(workspace, "pets/train/cat/0.png", "pets/val/cat/1.png", "pets/unlabeled/2.png", "pets/3.png", "test4/x/5.png")
    result = ingest(workspace)
    assert places(workspace) == {
        "pets/train/cat/0.png": ("train", "cat"),
        "pets/val/cat/1.png": ("test", "cat"),
        "pets/unlabeled/2.png": ("train", None),
        "pets/3.png": ("train", None),
        "test4/x/5.png": ("train", None),
    }
    assert "pets/ is read like an inbox, because it has folders for training and for testing (4 files)" in notes(result)


def test_a_class_that_only_test_images_have_is_noted(workspace: Workspace) -> None:
    fill(workspace, "labeled/cat/0.png", "test/dog/1.png", "test/dog/2.png")
    assert "class 'dog' is in test/ alone; put images of it into labeled/dog/, or correct its name (2 files)" in notes(
        ingest(workspace)
    )


@pytest.mark.seconds
@pytest.mark.parametrize("form", ["folder", "class", "glob", "file", "outside", "url"])
def test_a_part_of_the_held_out_images_is_held_out(workspace: Workspace, tmp_path: Path, form: str) -> None:
    fill(workspace, "test/cat/0.png")
    shutil.copytree(workspace.inbox / "test", tmp_path / "data" / "test")
    source = {
        "folder": "inbox/test",
        "class": "inbox/test/cat",
        "glob": "inbox/test/cat/*.png",
        "file": "inbox/test/cat/0.png",
        "outside": str(tmp_path / "data" / "test"),
        "url": f"file://{workspace.inbox}/test",
    }[form]
    ingest(workspace, [source])
    assert list(places(workspace).values()) == [("test", "cat")]


@pytest.mark.parametrize(
    ("path", "split", "label"),
    [
        ("cat/a.png", "train", "cat"),
        ("cat/deep/a.png", "train", "cat"),
        ("cafe\u0301/a.png", "train", "caf\u00e9"),
        ("a.png", "train", None),
        ("unlabeled/a.png", "train", None),
        ("unlabeled/cat/a.png", "train", None),
        ("labeled/cat/a.png", "train", "cat"),
        ("test/cat/a.png", "test", "cat"),
        ("val/cat/a.png", "test", "cat"),
    ],
)
def test_class_folders_are_the_first_ones_that_have_no_other_meaning(path: str, split: str, label: str | None) -> None:
    assert place(path, class_folders=True) == Place(split, label)


def set_ingest(workspace: Workspace, **values: object) -> None:
    parameters = yaml.safe_load(workspace.params.read_text(encoding="utf-8"))
    parameters["ingest"] |= values
    workspace.params.write_text(yaml.safe_dump(parameters), encoding="utf-8")


def test_folders_are_classes_where_params_say_so(workspace: Workspace) -> None:
    fill(workspace, "cat/1.png", "dog/2.png", "3.png")
    ingest(workspace)
    assert set(places(workspace).values()) == {("train", None)}
    set_ingest(workspace, class_folders=True)
    result = ingest(workspace)
    assert places(workspace) | {"3.png": ("train", None)} == {
        "cat/1.png": ("train", "cat"),
        "dog/2.png": ("train", "dog"),
        "3.png": ("train", None),
    }
    assert result.new_labels == 2, "the images are known, their labels are news"


@pytest.mark.seconds
def test_the_content_decides_what_is_held_out_and_stays_so(workspace: Workspace) -> None:
    fill(workspace, *(f"labeled/{name}/{number}.png" for name in ("cat", "dog") for number in range(60)))
    fill(workspace, "unlabeled/alone.png")
    set_ingest(workspace, hold_out=0.25)
    ingest(workspace)
    first = places(workspace)
    tested = {path for path, (split, _) in first.items() if split == "test"}
    assert 15 <= len(tested) <= 45, "a quarter of 120, give or take three standard deviations"
    assert all(label in path for path, (_, label) in first.items() if label)
    moved = workspace.inbox / min(tested)
    shutil.move(moved, moved.with_name("renamed.png"))
    fill(workspace, "labeled/cat/more.png")
    ingest(workspace)
    after = {path: place for path, place in places(workspace).items() if path in first}
    assert after == first


def test_nothing_is_held_out_of_what_is_said_to_be_for_training_without_a_label(workspace: Workspace) -> None:
    fill(workspace, *(f"unlabeled/{number}.png" for number in range(40)))
    set_ingest(workspace, hold_out=0.5)
    ingest(workspace)
    assert set(places(workspace).values()) == {("train", None)}


def test_a_class_named_as_a_missing_value_is_noted(workspace: Workspace) -> None:
    fill(workspace, "1.png", "2.png")
    put(workspace, "labels.csv", b"path,label\n1.png,nan\n2.png,cat\n")
    noted = "'nan' is a class, and also what programs write for a missing value"
    assert noted in notes(ingest(workspace))
    set_ingest(workspace, classes=["cat", "nan"])
    assert noted not in notes(ingest(workspace))
