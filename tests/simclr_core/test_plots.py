"""Pictures: readable PNGs of bounded size, the same bytes for the same input."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simclr_core import plots

EPOCHS = [1, 2, 3, 4, 5]
COLUMNS = {"loss": [5 / n for n in EPOCHS], "learning rate": [0.1] * 5, "kNN": [None] * 5, "rank": [3.0] * 5}
RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(300, 2))
SMALL = [[RANDOM.integers(0, 256, (28, 28, 3), np.uint8) for _ in range(3)] for _ in range(2)]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.seconds
@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.curves(path, EPOCHS, COLUMNS),
        lambda path: plots.image_grid(path, SMALL, ["cat", "a name that is much too long for this"]),
        lambda path: plots.confusion_matrix(path, np.array([[5, 1], [0, 3]]), ["cat", "dog"]),
        lambda path: plots.scatter(path, POINTS, np.arange(300) % 3 - 1, ["_cat", "$dog$"]),
        lambda path: plots.note(path, "no labels"),
    ],
    ids=["curves", "grid", "confusion", "scatter", "note"],
)
def test_the_same_input_gives_the_same_bytes_without_a_version(draw: Callable[[Path], None], tmp_path: Path) -> None:
    draw(tmp_path / "one.png")
    draw(tmp_path / "two.png")
    content = (tmp_path / "one.png").read_bytes()
    assert content == (tmp_path / "two.png").read_bytes()
    assert b"atplotlib" not in content
    assert len(content) < plots.MAX_BYTES


@pytest.mark.seconds
def test_curves_need_no_label_and_no_epoch(tmp_path: Path) -> None:
    for epochs in (0, 1, 5):
        columns = {title: column[:epochs] for title, column in COLUMNS.items()}
        plots.curves(tmp_path / "curves.png", EPOCHS[:epochs], columns)
        assert len(np.unique(read(tmp_path / "curves.png"))) > 1


def test_small_images_are_shown_pixel_by_pixel(tmp_path: Path) -> None:
    plots.image_grid(tmp_path / "grid.png", SMALL)
    picture, factor = read(tmp_path / "grid.png"), plots.TILE // 28
    for row, images in enumerate(SMALL):
        for column, image in enumerate(images):
            top, left = (plots.GAP + place * (plots.TILE + plots.GAP) for place in (row, column))
            tile = picture[top : top + plots.TILE, left : left + plots.TILE]
            np.testing.assert_array_equal(tile, image.repeat(factor, axis=0).repeat(factor, axis=1))


def test_borders_frame_the_right_tiles(tmp_path: Path) -> None:
    whole, broken = plots.Border("#00ff00"), plots.Border("#ff0000", broken=True)
    plots.image_grid(tmp_path / "grid.png", SMALL, borders=[[None, whole, None], [broken, None, None]])
    picture = read(tmp_path / "grid.png")
    step, inside = plots.TILE + plots.GAP, plots.GAP - 1  # the pixel row just above the first tiles
    assert picture[inside, plots.GAP + step + 5].tolist() == [0, 255, 0]
    edge = picture[inside + step, plots.GAP : plots.GAP + plots.TILE].tolist()
    assert {tuple(pixel) for pixel in edge} == {(255, 0, 0), (255, 255, 255)}
    assert picture[inside, plots.GAP + 5].tolist() == [255, 255, 255]


@pytest.mark.seconds
def test_photographs_of_any_shape_stay_below_the_limit(tmp_path: Path) -> None:
    shapes = [(300, 200, 3), (200, 300, 3), (64, 256, 3), (256, 256, 3)] * 3
    rows = [[RANDOM.integers(0, 256, shape, np.uint8) for shape in shapes] for _ in range(10)]
    plots.image_grid(tmp_path / "grid.png", rows)  # noise, the worst case for PNG
    assert (tmp_path / "grid.png").stat().st_size <= plots.MAX_BYTES
    assert read(tmp_path / "grid.png").shape[1] > 400


@pytest.mark.slow
def test_the_confusion_matrix_holds_a_class_without_images_and_hundreds_of_classes(tmp_path: Path) -> None:
    for count in (1, 3, 30, 300):
        matrix = np.eye(count, dtype=int) * 9
        matrix[0] = 0
        plots.confusion_matrix(tmp_path / "matrix.png", matrix, [f"class {number}" for number in range(count)])
        assert (tmp_path / "matrix.png").stat().st_size <= plots.MAX_BYTES


def colors(path: Path) -> set[tuple[int, int, int]]:
    return {tuple(pixel) for pixel in np.unique(read(path).reshape(-1, 3), axis=0).tolist()}


@pytest.mark.seconds
@pytest.mark.parametrize("found", [[0], [0, 1], [-1, 0, 1], range(20), range(-1, 39)], ids=len)
def test_a_scatter_names_every_class_that_occurs(tmp_path: Path, found: Sequence[int]) -> None:
    """Nothing but the names is black, and each is its own line."""
    plots.scatter(tmp_path / "map.png", POINTS, np.resize(found, 300), ["HHHHHH"] * 40)
    black = (read(tmp_path / "map.png")[:, -40:].max(axis=2) < 130).any(axis=1)
    assert np.sum(black[1:] & ~black[:-1]) == len(found)


@pytest.mark.seconds
@pytest.mark.parametrize("count", [2, 10, 11, 20, 21, 100])
def test_a_scatter_of_any_number_of_classes_tells_them_apart(tmp_path: Path, count: int) -> None:
    assert len({plots._class_color(label, count) for label in range(-1, count)}) == count + 1
    plots.scatter(tmp_path / "map.png", POINTS, np.arange(300) % count, [f"class {n}" for n in range(count)])
    assert (tmp_path / "map.png").stat().st_size <= plots.MAX_BYTES


@pytest.mark.seconds
def test_images_without_labels_are_gray(tmp_path: Path) -> None:
    plots.scatter(tmp_path / "map.png", POINTS, np.full(300, -1), ["cat"])
    assert all(max(pixel) - min(pixel) <= 2 for pixel in colors(tmp_path / "map.png"))
    plots.scatter(tmp_path / "map.png", POINTS, np.zeros(300, int), ["cat"])
    assert any(max(pixel) - min(pixel) > 50 for pixel in colors(tmp_path / "map.png"))
