"""Pictures that a person looks at: training curves, grids of images, confusion matrices, maps.

They are DVC outputs, so equal input gives equal bytes: no display, no global state of matplotlib, no software version
in the file. They are shown inside the Dagster UI, so each stays below 200 kB. A title says what is good, and
every color has a mark with it.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from deploy.artifact import write_atomically

MAX_BYTES = 200_000
DPI = 100
BLUE = "#1f5fa8"
UNLABELED = "#c8c8c8"
ORANGE = "#c85200"
MARKERS = "osD^vP*X<>"  # in addition to colors, of which some people cannot tell all apart

TILE, GAP, FRAME = 84, 8, 3  # pixels: largest side of a tile, space between tiles, width of a colored border
DASH = 6  # pixels: of a broken border, and of its gaps
LETTER, LINE = 7, 16  # pixels: width of a letter of a title, height of its line
ANNOTATED_CLASSES, NAMED_CLASSES = 20, 40  # above these a confusion matrix shows no counts, and no class names


class Border(NamedTuple):
    """Of an image in a grid: a color of matplotlib, and whether it is broken."""

    color: str
    broken: bool = False


SAME, OTHER = Border(BLUE), Border(ORANGE, broken=True)
"""Of neighbors of the same and of another class."""


def curves(path: Path, epochs: Sequence[int], columns: Mapping[str, Sequence[float | None]], title: str = "") -> None:
    """One panel for each of ``columns``, by its title, that has a value; each has one of every epoch."""
    found = {
        title: [(epoch, value) for epoch, value in zip(epochs, column, strict=True) if value is not None]
        for title, column in columns.items()
    }
    shown = [(title, points) for title, points in found.items() if points]
    if not shown:
        note(path, "no epoch has been finished")
        return
    rows = (len(shown) + 1) // 2
    figure = Figure(figsize=(8, 2.7 * rows), dpi=DPI, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    for axes, panel in zip(figure.subplots(rows, 2, squeeze=False).flat, [*shown, None], strict=False):
        if panel is None:
            axes.set_axis_off()
        else:
            _curve(axes, *panel)
    _save(path, figure)


def image_grid(
    path: Path,
    images: Sequence[Sequence[NDArray[np.uint8]]],
    row_titles: Sequence[str] | None = None,
    borders: Sequence[Sequence[Border | None]] | None = None,
    title: str = "",
) -> None:
    """Rows of images, uint8 [h, w, 3] of any size, all scaled by the same factor to tiles of at most 84 pixels.

    ``row_titles`` stand to the left, ``title`` above, in the lines that it takes; ``borders`` [rows][columns] are
    None for no border.
    """
    titles = list(row_titles) if row_titles is not None else [""] * len(images)
    side = max((max(image.shape[:2]) for row in images for image in row), default=1)
    scale = TILE // side if side <= TILE else TILE / side  # whole factors keep small images crisp
    tile = round(side * scale)
    step = tile + GAP
    canvas = np.full((GAP + step * len(images), GAP + step * max(map(len, images), default=0), 3), 255, np.uint8)
    for row, members in enumerate(images):
        for column, image in enumerate(members):
            top, left = GAP + row * step, GAP + column * step
            border = borders[row][column] if borders is not None else None
            if border is not None:
                _frame(canvas[top - FRAME : top + tile + FRAME, left - FRAME : left + tile + FRAME], border)
            scaled = _scaled(image, scale)
            top, left = top + (tile - scaled.shape[0]) // 2, left + (tile - scaled.shape[1]) // 2
            canvas[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled

    margin = 9 * max((len(_shortened(title)) for title in titles), default=0)  # pixels; a digit has about 8
    width = canvas.shape[1] + margin
    lines = wrap(title, width // LETTER)
    height = canvas.shape[0] + LINE * len(lines)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((margin / width, 0, canvas.shape[1] / width, canvas.shape[0] / height))
    figure.text(GAP / width, 1 - 0.5 * GAP / height, "\n".join(lines), va="top", fontsize=9, parse_math=False)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, title in enumerate(titles):
        middle = (canvas.shape[0] - (GAP + row * step + tile / 2)) / height
        figure.text((margin - 2) / width, middle, _shortened(title), ha="right", va="center", fontsize=9)
    _save(path, figure)


def confusion_matrix(path: Path, matrix: NDArray[np.integer], classes: Sequence[str], title: str = "") -> None:
    """``matrix`` [actual, predicted] counts test images; color is the share of each actual class."""
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    inches = min(max(3.6, 0.42 * count + 1.8), 9)
    figure = Figure(figsize=(inches + 0.6, inches), dpi=DPI, layout="compressed")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the actual class", fraction=0.046)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.set_title("\n".join(wrap(title, int(inches * DPI) // LETTER)), fontsize=9, loc="left", parse_math=False)
    if count <= NAMED_CLASSES:
        names = [_shortened(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(count), names, fontsize=8)
    if count <= ANNOTATED_CLASSES:
        for actual, predicted in np.argwhere(matrix > 0):
            color = "white" if shares[actual, predicted] > 0.5 else "black"
            text = str(matrix[actual, predicted])
            axes.text(predicted, actual, text, ha="center", va="center", color=color, fontsize=7)
    _save(path, figure)


def scatter(
    path: Path, points: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[str], title: str = ""
) -> None:
    """``points`` [n, 2] with a color and a mark by ``labels`` [n], with a legend of the classes that occur; -1 means
    unlabeled, and is gray."""
    figure = Figure(figsize=(8.4, 6.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    found = [int(label) for label in np.unique(labels)]
    for label in found:
        members = points[labels == label]
        color = _class_color(label, len(classes))
        mark = MARKERS[label % len(MARKERS)] if label >= 0 else "."
        axes.scatter(members[:, 0], members[:, 1], s=11, color=color, marker=mark, linewidths=0, alpha=0.8)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, loc="left")
    if len(found) <= NAMED_CLASSES:
        names = [_shortened(classes[label]) if label >= 0 else "no label" for label in found]
        legend = figure.legend(
            axes.collections,
            names,
            loc="outside right upper",
            frameon=False,
            markerscale=2.5,
            fontsize=10 if len(found) <= 20 else 7,  # so small, NAMED_CLASSES lines fit
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    _save(path, figure)


def note(path: Path, text: str) -> None:
    """A picture that says why there is no picture: a declared output must exist."""
    figure = Figure(figsize=(5, 1.2), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#555555", wrap=True)
    _save(path, figure)


def _frame(canvas: NDArray[np.uint8], border: Border) -> None:
    """Draw a border on the edges of ``canvas`` [h, w, 3], whose inside becomes white."""
    height, width = canvas.shape[:2]
    drawn = np.ones((height, width), bool)
    if border.broken:
        drawn = ((np.arange(height)[:, None] + np.arange(width)) // DASH) % 2 == 0
    canvas[drawn] = np.round(255 * np.array(to_rgb(border.color))).astype(np.uint8)
    canvas[FRAME:-FRAME, FRAME:-FRAME] = 255


def _curve(axes: Axes, title: str, points: Sequence[tuple[float, float]]) -> None:
    epochs, values = zip(*points, strict=True)
    axes.plot(epochs, values, color=BLUE, linewidth=1.8, marker="o" if len(points) <= 30 else None, markersize=3.5)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_xlim(0, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _class_color(label: int, classes: int) -> Any:
    if label < 0:
        return UNLABELED
    if classes <= 20:
        return colormaps["tab10" if classes <= 10 else "tab20"](label)
    return colormaps["gist_ncar"](0.95 * label / classes)  # ends in white


def _scaled(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def _save(path: Path, figure: Figure) -> None:
    """Write a PNG below MAX_BYTES: photographs first lose colors, then size."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    image = Image.open(content).convert("RGB")
    while len(content.getvalue()) > MAX_BYTES:
        content = io.BytesIO()
        image.quantize(256).save(content, "PNG", optimize=True)
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)
    write_atomically(path, content.getvalue())
