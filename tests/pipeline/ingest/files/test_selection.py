"""ingest.include and ingest.exclude decide which files are taken, everywhere in the same way."""

from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.errors import ParamsError
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.ingest import ingest
from pipeline.proposal.collection import examine
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put, read_files
from tests.pipeline.costs.examples import MEASURED


def select(workspace: Workspace, **patterns: list[str]) -> None:
    values = yaml.safe_load(workspace.params.read_text())
    values["ingest"] |= {"include": [], "exclude": [], **patterns}
    workspace.params.write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("include", "exclude", "path", "taken"),
    [
        ([], [], "a/b.png", True),
        (["*.jpg"], [], "a/IMG_1.JPG", True),
        (["*.jpg"], [], "a/b.png", False),
        ([], ["masks/"], "cats/Masks/1.png", False),
        ([], ["masks/"], "cats/masks.png", True),
        ([], ["/masks/"], "cats/masks/1.png", True),
        ([], ["*_thumb.*", "!keep_thumb.*"], "a/keep_thumb.png", True),
        ([], ["*_thumb.*", "!keep_thumb.*"], "a/1_thumb.png", False),
        (["camera 7/"], ["*.png"], "camera 7/1.png", False),
        (["camera 7/"], ["*.png"], "camera 7/1.jpg", True),
        (["2026/**/*.png"], [], "2026/11/03/1.png", True),
        (["2026/**/*.png"], [], "2025/11/03/1.png", False),
        ([], ["caf\u00e9/"], "cafe\u0301/1.png", False),
        (["CAFE\u0301/"], [], "caf\u00e9/1.png", True),
    ],
)
def test_patterns_are_those_of_gitignore_without_capitals(
    include: list[str], exclude: list[str], path: str, taken: bool
) -> None:
    assert Selection(include, exclude).leaves_out(path) is not taken


@pytest.mark.parametrize("pattern", ["!", "", "# a comment", "a\\", "./masks/", "../inbox/masks/", "!./keep.png"])
def test_a_pattern_that_means_nothing_is_refused(workspace: Workspace, pattern: str) -> None:
    select(workspace, exclude=[pattern])
    with pytest.raises(ParamsError, match=r"ingest.exclude: .* patterns as in .gitignore"):
        params.read(workspace)


@pytest.mark.seconds
def test_what_is_left_out_is_counted_in_one_line_and_waits_nowhere(filled: Workspace) -> None:
    select(filled, include=["unlabeled/", "labeled/"], exclude=["camera 1/"])
    result = ingest(filled)
    paths = [path for _, path, *_ in read_files(filled.raw / "0001")]
    assert paths
    assert all(path.startswith(("unlabeled/camera 0", "labeled/")) for path in paths)
    (line,) = (line for line in result.understood if "left out" in line)
    assert line.startswith("skipped 20 (each left out by ingest.include or ingest.exclude): 'test/circle/")
    assert survey(filled, ["inbox"]).new_files == 0
    assert examine(filled.root, ["inbox"], Selection([], ["camera 1/"])).images == 28


def test_a_table_may_name_what_is_left_out(workspace: Workspace) -> None:
    for number in range(3):
        put(workspace, f"{number}.png", encode(draw(0, number)))
    put(workspace, "labels.csv", b"path,label\n0.png,cat\n1.png,dog\n")
    select(workspace, include=["*.png"], exclude=["1.png"])
    result = ingest(workspace)
    assert sorted(label or "" for *_, label in read_files(workspace.raw / "0001")) == ["", "cat"]
    assert not [line for line in result.understood if "names no file" in line or "name no file" in line]


@pytest.mark.seconds
def test_what_was_ingested_before_stays_with_its_label_and_is_named(filled: Workspace) -> None:
    ingest(filled)
    select(filled, exclude=["labeled/"])
    for _ in range(2):
        result = ingest(filled)
        assert (result.batch, result.changes) == (None, ())
        assert any(
            line.startswith("note: 8 files left out now, such as 'labeled/circle/") for line in result.understood
        )
    select(filled)
    result = ingest(filled)
    assert (result.batch, result.changes) == (None, ())


@pytest.mark.seconds
def test_the_first_run_keeps_the_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import workspace as workspaces
    from pipeline.proposal import choose

    monkeypatch.setattr(choose, "measure", lambda *_: MEASURED)
    workspace = workspaces.create(tmp_path / "new", "auto")
    for number in range(80):
        put(workspace, f"unlabeled/{number}.png", encode(draw(0, number)))
        put(workspace, f"unlabeled/masks/{number}.png", encode(draw(1, number)))
    text = workspace.params.read_text(encoding="utf-8")
    workspace.params.write_text(text.replace("exclude: []", "exclude: [masks/]"), encoding="utf-8")
    lines = choose.choose_at_first_run(workspace)
    assert lines[0].startswith("80 images"), lines
    assert params.read(workspace).ingest.exclude == ("masks/",)
