"""What the page gets of a workspace: rows, pictures and neighbors, by number."""

import io

import numpy as np
import pytest
from PIL import Image

from deploy.errors import ImageError, IndexMismatchError
from pipeline.errors import WorkspaceError
from pipeline.explore.shown import Shown
from pipeline.workspace import Workspace
from tests.deploy.conftest import make_bundle, make_card
from tests.deploy.explore.test_app import unpack
from tests.pipeline.explore.conftest import HOSTILE_NAMES, color, files, make


@pytest.fixture
def shown(explored: Workspace) -> Shown:
    return Shown(explored)


def row_of(shown: Shown, path: str) -> int:
    (row,) = shown.listed([path])
    return row


def test_before_the_stage_ran_the_error_says_what_to_do(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="simclr run --select explore"):
        Shown(workspace)


def test_the_points_are_those_of_the_table(shown: Shown) -> None:
    header, columns = unpack(shown.points)
    table = shown.table
    assert header["count"] == len(table) == len(files())
    for name in ("label", "prediction", "split", "state", "reason", "champion", "batch"):
        values = [None, *next(one["values"] for one in header["columns"] if one["name"] == name)]
        assert [values[code] for code in columns[name]] == table[name].to_list(), name
    for name in ("x", "y", "confidence", "novelty"):
        np.testing.assert_array_equal(columns[name], table[name].fill_null(np.nan).to_numpy().astype(np.float32))
    assert (columns["near_group"] > 0).sum() == 2
    assert ((columns["tile"] == 0) == table["cell"].is_null().to_numpy()).all()


def test_the_nearest_of_an_image_are_of_its_color_and_not_itself(shown: Shown) -> None:
    row = row_of(shown, "unlabeled/0001/00.png")
    found = shown.near(row, 5)
    assert len(found.rows) == len(found.cosines) == 5
    assert row not in found.rows
    assert {one["prediction"] for one in shown.details(found.rows)} == {"red"}
    assert list(found.cosines) == sorted(found.cosines, reverse=True)
    assert shown.near(row_of(shown, "unlabeled/cut off.jpg"), 5).rows == []
    assert shown.near(10_000, 5).rows == []


def test_a_dropped_picture_is_found(shown: Shown) -> None:
    one = next(one for one in files() if one["path"] == "unlabeled/0002/40.png")
    found = shown.find(one["data"], 5)
    assert {other["prediction"] for other in shown.details(found.rows)} == {"green"}
    assert found.cosines[0] == pytest.approx(1, abs=2e-3)
    with pytest.raises(ImageError):
        shown.find(b"no image", 5)


def test_a_picture_is_looked_for_with_the_encoder_of_the_map(explored: Workspace) -> None:
    shown = Shown(explored)
    make(explored, files(), make_bundle(make_card(name="another")))
    with pytest.raises(IndexMismatchError):
        shown.find(color("red", 1), 5)


def test_pictures_are_shown_of_what_is_used(shown: Shown) -> None:
    one = next(one for one in files() if one["path"] == "unlabeled/0001/05.png")
    picture = shown.picture(row_of(shown, one["path"]))
    assert picture is not None
    assert (picture.data, picture.kind) == (one["data"], "image/png")
    assert shown.picture(row_of(shown, "unlabeled/cut off.jpg")) is None
    assert shown.picture(10_000) is None
    sheet = shown.sheet(0)
    assert sheet is not None
    assert Image.open(io.BytesIO(sheet.data)).format == "JPEG"
    assert shown.sheet(1) is None


def test_paths_are_searched_as_they_are_and_without_capitals(shown: Shown) -> None:
    assert {one["path"] for one in shown.details(shown.search("TEST/red/"))} == {
        one["path"] for one in files() if one["path"].startswith("test/red/")
    }
    assert shown.search("") == []
    assert shown.search("[.*") == []
    for name in HOSTILE_NAMES:
        assert [one["path"] for one in shown.details(shown.listed([name]))] == [name]


def test_details_name_the_nearest_labeled_images_by_their_rows(shown: Shown) -> None:
    (one,) = shown.details([row_of(shown, "unlabeled/0001/00.png")])
    assert {other["label"] for other in shown.details(one["neighbors"][:2])} == {"red"}
    assert shown.details([10_000]) == []
