"""A table of labels is changed row by row, and what a person wrote in it stays as it is."""

import multiprocessing
from pathlib import Path

import pytest

from pipeline.errors import IngestError
from pipeline.explore.labels_table import change_file, edit
from pipeline.ingest.labels.labels_csv import read_rows

BASE = "file:///inbox"
NOTED = {"who": "ada", "when": "2026-11-30", "why": "a test of words"}


def labeled(data: bytes | None, path: str, label: str) -> bytes:
    return edit("labels.csv", data, {path: {"label": label, **NOTED}}, BASE).data


def says(data: bytes) -> dict[str, tuple[str | None, str | None, str | None]]:
    return {row.path: (row.label, row.split, row.group) for row in read_rows("labels.csv", data)}


def test_a_new_table_has_who_when_and_why() -> None:
    found = edit("labels.csv", None, {"a, b.png": {"label": 'say "cat"', **NOTED}}, BASE)
    assert found.data.decode() == (
        'path,label,split,who,when,why\n"a, b.png","say ""cat""",,ada,2026-11-30,a test of words\n'
    )
    assert found.before == {"a, b.png": None}
    assert says(found.data) == {"a, b.png": ('say "cat"', None, None)}


@pytest.mark.parametrize(
    "table",
    [
        b"path,label\na.png,cat\nb.png,dog\n",
        b"\xef\xbb\xbfpath;label;split\r\na.png;cat;train\r\nb.png;dog;test\r\n",
        "label\tpath\ncät\ta.png\ndog\tb.png\n".encode("utf-16"),
        b"sep=;\nPath;Label\n\na.png;cat\nb.png;dog\n",
        b'path,label,note\n"a.png",cat,"two\nlines"\nb.png,dog,\n',
        b"path,label\nb.png,dog\na.png,cat",
        b"path,group,label\na.png,7,cat\nb.png,8,dog\n",
    ],
)
def test_other_rows_stay_and_the_table_reads_as_before(table: bytes) -> None:
    before = says(table)
    added = labeled(table, "c.png", "fox")
    assert says(added) == before | {"c.png": ("fox", None, None)}
    changed = labeled(added, "b.png", "wolf")
    assert says(changed) == says(added) | {"b.png": ("wolf", *before["b.png"][1:])}
    back = edit("labels.csv", changed, {"b.png": {"label": "dog"}, "c.png": None}, BASE).data
    assert says(back) == before
    if not table.startswith((b"\xff", b"\xfe")):
        kept = [line for line in table.splitlines() if b"a.png" in line or b"lines" in line]
        assert all(line in back for line in kept)


@pytest.mark.parametrize("spelled", ["b.png", "./b.png", "B.PNG", "sub\\..\\b.png", "file:///inbox/b.png"])
def test_a_row_is_found_however_it_spells_its_path(spelled: str) -> None:
    table = f"path,label\na.png,cat\n{spelled},dog\n".encode()
    found = edit("labels.csv", table, {"b.png": {"label": "wolf"}}, BASE)
    assert says(found.data) == {"a.png": ("cat", None, None), spelled: ("wolf", None, None)}


def test_sets_of_labels_go_into_their_column() -> None:
    found = labeled(b"path,labels\na.png,cat|dog\n", "b.png", "fox|owl")
    assert b"fox|owl" in found
    assert b"label," not in found.splitlines()[0].replace(b"labels,", b"")


def test_words_in_a_reason_are_not_taken_for_a_split() -> None:
    table: bytes | None = b"path,label\na.png,cat\n"
    for name in "bcdefg":
        noted = {**NOTED, "why": "test"}
        table = edit("labels.csv", table, {f"{name}.png": {"label": "dog", **noted}}, BASE).data
    assert len(says(table or b"")) == 7


def test_a_row_that_was_changed_since_is_left_alone() -> None:
    first = edit("labels.csv", None, {"a.png": {"label": "cat", **NOTED}}, BASE)
    other = labeled(first.data, "a.png", "dog")
    with pytest.raises(IngestError, match="changed since"):
        edit("labels.csv", other, first.before, BASE, first.after)
    assert says(edit("labels.csv", first.data, first.before, BASE, first.after).data) == {}


@pytest.mark.parametrize("table", [b"name,class\na,b\n", b"path,label\na.png,c\xe9\n", b'path,label\n"a.png,cat\n'])
def test_a_table_that_ingest_would_refuse_is_refused(table: bytes) -> None:
    with pytest.raises(IngestError):
        labeled(table, "b.png", "dog")


def write_many(path: str, name: str, count: int) -> None:
    for number in range(count):
        change_file(Path(path), lambda data, n=number: labeled(data, f"{name}{n}.png", name))


@pytest.mark.seconds
def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(str(table), name, 25)) for name in ("cat", "dog")]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    assert [one.exitcode for one in writers] == [0, 0]
    expected = {f"{name}{number}.png": (name, None, None) for name in ("cat", "dog") for number in range(25)}
    assert says(table.read_bytes()) == expected


def test_what_an_editor_writes_meanwhile_is_kept(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(b"path,label\na.png,cat\n")
    asked: list[bytes | None] = []

    def change(data: bytes | None) -> bytes:
        asked.append(data)
        if len(asked) == 1:  # an editor takes no lock
            table.write_bytes(b"path,label\na.png,cat\nb.png,dog\n")
        return labeled(data, "c.png", "fox")

    change_file(table, change)
    assert len(asked) == 2
    assert set(says(table.read_bytes())) == {"a.png", "b.png", "c.png"}


def test_a_table_that_never_rests_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    count = 0

    def change(data: bytes | None) -> bytes:
        nonlocal count
        count += 1
        table.write_bytes(f"path,label\na.png,cat{count}\n".encode())
        return b""

    with pytest.raises(IngestError, match="keeps changing"):
        change_file(table, change)


def test_a_kill_in_the_middle_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(b"path,label\na.png,cat\n")
    monkeypatch.setenv("SIMCLR_FAILPOINT", "artifact.replace:raise")
    with pytest.raises(Exception, match=r"artifact\.replace"):
        change_file(table, lambda data: labeled(data, "b.png", "dog"))
    assert table.read_bytes() == b"path,label\na.png,cat\n"
    assert [one.name for one in tmp_path.iterdir()] == ["labels.csv"]
