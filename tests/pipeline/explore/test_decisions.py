"""Decisions: rows that ingest and validation read, all or nothing, taken back when a person says so."""

import threading
from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest

from pipeline.errors import IngestError, OverridesError
from pipeline.explore.decisions import Decisions
from pipeline.explore.shown import Shown
from pipeline.ingest.ingest import ingest
from pipeline.ingest.labels.labels_csv import read_rows
from pipeline.ingest.raw import batches
from pipeline.params import override
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Override
from pipeline.workspace import Workspace
from tests.pipeline.conftest import read_files
from tests.pipeline.explore.conftest import HOSTILE_NAMES

FIRST, SECOND = "unlabeled/0001/00.png", "unlabeled/0001/02.png"


class Desk:
    """A person in front of the page."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.shown = workspace, Shown(workspace)
        self.decisions = Decisions(workspace, self.shown)

    def say(self, action: str, *paths: str, **more: Any) -> Mapping[str, Any]:
        given = {"rows": list(self.shown.listed(paths)), "who": "ada", "why": "seen", "label": "", **more}
        return self.decisions.actions[action](given)

    def labels(self) -> dict[str, tuple[str | None, str | None]]:
        table = self.workspace.inbox / "labels.csv"
        rows = read_rows("labels.csv", table.read_bytes()) if table.exists() else []
        return {row.path: (row.label, row.split) for row in rows}

    def ingested(self) -> dict[str, tuple[str, str | None]]:
        """Path → split and label of the newest batch."""
        ingest(self.workspace)
        return {path: (split, label) for _, path, split, label in read_files(batches(self.workspace.raw)[-1])}


@pytest.fixture
def desk(explored: Workspace) -> Desk:
    return Desk(explored)


def test_labels_are_rows_that_the_next_ingest_reads(desk: Desk) -> None:
    said = desk.say("label", FIRST, SECOND, label=" violet ", who="ada\nlovelace", why="seen, twice")
    assert said["done"].startswith("2 images labeled violet, a new class in inbox/labels.csv; it takes effect with")
    lines = (desk.workspace.inbox / "labels.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,label,split,who,when,why"
    assert lines[1].startswith(f"{FIRST},violet,,ada lovelace,{date.today().year}-")
    assert lines[1].endswith(',"seen, twice"')
    found = desk.ingested()
    assert found[FIRST] == found[SECOND] == ("train", "violet")
    assert found["unlabeled/0001/01.png"] == ("train", None)
    assert found["labeled/red/0.png"] == ("train", "red")


def test_images_with_hostile_names_can_be_labeled(desk: Desk) -> None:
    desk.say("label", *HOSTILE_NAMES, label="red")
    found = desk.ingested()
    assert {found[name] for name in HOSTILE_NAMES} == {("train", "red")}


def test_a_row_of_a_person_keeps_what_else_it_says(desk: Desk) -> None:
    table = desk.workspace.inbox / "labels.csv"
    table.write_text(f"path,label,split,group\n{FIRST},blue,test,7\n", encoding="utf-8")
    desk.say("label", FIRST, label="red")
    (row,) = read_rows("labels.csv", table.read_bytes())
    assert (row.label, row.split, row.group) == ("red", "test", "7")


def test_moving_to_test_warns_of_leaks_and_writes_when_confirmed(desk: Desk) -> None:
    near = "unlabeled/0001/01.png"  # of one group with 04.png
    warned = desk.say("test", near, label="green")
    assert "1 training image nearly the same" in warned["warnings"][0]
    assert "pretrained on these images" in warned["warnings"][1]
    assert desk.labels() == {}
    assert len(desk.say("test", near, "unlabeled/0001/04.png", label="green")["warnings"]) == 1
    desk.say("test", near, "labeled/red/0.png", label="green", confirmed=True)
    found = desk.ingested()
    assert (found[near], found["labeled/red/0.png"]) == (("test", "green"), ("test", "red"))


def test_a_test_image_needs_a_class(desk: Desk) -> None:
    with pytest.raises(IngestError, match="1 image of these without a class"):
        desk.say("test", FIRST, "labeled/red/0.png", confirmed=True)


def test_refusing_is_a_line_of_overrides(desk: Desk) -> None:
    said = desk.say("refuse", FIRST, "unlabeled/copy.png", why="a screenshot")
    assert "1 content refused in overrides.csv" in said["done"]
    (one,) = overrides.read(desk.workspace.overrides)
    assert (one.action, one.who, one.why, one.added) == ("deny", "ada", "a screenshot", date.today())
    assert one.sha256 == desk.shown.hashes(desk.shown.listed([FIRST]))[0]
    with pytest.raises(OverridesError, match="say why"):
        desk.say("refuse", SECOND, why=" ")


def test_undo_takes_back_the_last_decision_of_the_same_person(desk: Desk) -> None:
    desk.say("label", FIRST, label="red")
    desk.say("label", FIRST, SECOND, label="blue")
    desk.say("label", "labeled/red/0.png", label="green", who="grace")
    desk.say("undo")
    assert desk.labels() == {FIRST: ("red", None), "labeled/red/0.png": ("green", None)}
    desk.say("undo")
    assert desk.labels() == {"labeled/red/0.png": ("green", None)}
    with pytest.raises(IngestError, match="ada has decided nothing"):
        desk.say("undo")
    desk.say("undo", who="grace")
    assert desk.labels() == {}


def test_undo_after_an_ingest_says_what_was_before(desk: Desk) -> None:
    ingest(desk.workspace)
    desk.say("label", FIRST, label="red")
    assert desk.ingested()[FIRST] == ("train", "red")
    desk.say("undo")
    assert desk.labels() == {FIRST: (None, "train")}
    assert desk.ingested()[FIRST] == ("train", None)


def test_undo_leaves_alone_what_was_changed_since(desk: Desk) -> None:
    desk.say("label", FIRST, label="red")
    table = desk.workspace.inbox / "labels.csv"
    table.write_text(table.read_text().replace("red", "blue"))
    with pytest.raises(IngestError, match="changed since"):
        desk.say("undo")
    assert desk.labels() == {FIRST: ("blue", None)}


def test_undo_of_a_refusal_brings_back_the_earlier_decision(desk: Desk) -> None:
    (sha256,) = desk.shown.hashes(desk.shown.listed([FIRST]))
    earlier = Override(sha256, "allow", "grace", "night shots", date(2026, 11, 1))
    overrides.write(desk.workspace.overrides, [earlier])
    desk.say("refuse", FIRST, SECOND, why="blurred")
    desk.say("undo")
    assert overrides.read(desk.workspace.overrides) == (earlier,)
    desk.say("refuse", FIRST, why="blurred")
    overrides.write(desk.workspace.overrides, [])
    with pytest.raises(OverridesError, match="decided otherwise since"):
        desk.say("undo")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": ""}, "give the class"),
        ({"who": ""}, "say who"),
        ({"rows": []}, "select images"),
        ({"rows": ["1"]}, "select images"),
        ({"rows": [-1]}, "select images"),
        ({"rows": [True]}, "select images"),
        ({"rows": list(range(20_001))}, "at most 20,000"),
        ({"label": "lynx"}, "allows: red, green"),
    ],
)
def test_what_cannot_be_decided_says_why_and_writes_nothing(desk: Desk, given: dict[str, Any], said: str) -> None:
    override(desk.workspace, {"ingest.classes": "[red, green]"})
    with pytest.raises(IngestError, match=said):
        desk.say("label", FIRST, **{"label": "red", **given})
    assert not (desk.workspace.inbox / "labels.csv").exists()


def test_a_class_that_ingest_would_refuse_is_not_written(desk: Desk) -> None:
    with pytest.raises(IngestError, match="control character"):
        desk.say("label", FIRST, label="cat\x00")
    assert desk.labels() == {}


def test_images_that_are_not_in_the_inbox_are_named(desk: Desk) -> None:
    (desk.workspace.inbox / FIRST).unlink()
    (desk.workspace.inbox / SECOND).write_bytes(b"something else")
    with pytest.raises(
        IngestError, match=r"2 images not in the inbox any more, or with other bytes, such as '.*0\.png'"
    ):
        desk.say("label", FIRST, SECOND, "unlabeled/0001/03.png", label="red")
    assert desk.labels() == {}


def test_an_image_that_another_table_names_is_left_to_that(desk: Desk) -> None:
    table = desk.workspace.inbox / "unlabeled" / "labels.csv"
    table.write_text("path,label\n0001/00.png,red\n", encoding="utf-8")
    with pytest.raises(IngestError, match=r"inbox/unlabeled/labels\.csv names 'unlabeled/0001/00\.png'"):
        desk.say("label", FIRST, label="blue")
    desk.say("label", SECOND, label="blue")


def test_two_at_once_lose_nothing(desk: Desk) -> None:
    other = Desk(desk.workspace)  # another `simclr explore`
    paths = [f"unlabeled/0001/{number:02d}.png" for number in range(12)]

    def decide(at: Desk, own: list[str]) -> None:
        for path in own:
            at.say("label", path, label="red")
            at.say("refuse", path, why="twice")

    threads = [threading.Thread(target=decide, args=one) for one in ((desk, paths[::2]), (other, paths[1::2]))]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert set(desk.labels()) == set(paths)
    assert len(overrides.read(desk.workspace.overrides)) == 12
