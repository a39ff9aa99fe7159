"""The second look at near copies: whether two pictures show the same in every place, by their sketches.

Perceptual hashes keep only the low frequencies, which all drawings on one outline share: folders with different
symbols, faces with different mouths. A copy differs from its original in a small shift, in size, brightness and
contrast, which are fitted here, and then by little anywhere.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from pipeline.validation.probe.facts import SKETCH_CELLS
from pipeline.validation.probe.hashes import sketch_planes

Array = np.ndarray[Any, np.dtype[Any]]


class Pictures(NamedTuple):
    planes: list[Array]  # of n sketches: see ``sketch_planes``
    negentropy: Array  # float64 [n], bits: see ``DRAWN``


TOLERANCE, PER_STEP = 5.0, 0.06
"""Levels of 255 that brightness and color of a cell of a copy may differ in, and the share of the largest step to a
neighboring cell that is added: what a shift by part of a pixel, or a JPEG, may change. docs/validation.md has rates."""

DRAWN = 1.7
"""Bits by which the entropy of the luma histogram is below that of a normal distribution with the same deviation
(negentropy; no brightness or contrast changes it). 97 of 100 photographs have less, 97 of 100 drawings more."""

SAME_GROUND = 3.0
"""Levels of 255 between flat cells of two drawings, those with exactly the brightness of all their neighbors. If the
ground is as bright as it was, the whole was not made brighter, and a hand in another color makes another drawing."""

PHOTOGRAPH_TOLERANCE = 45.0
"""Levels of 255 for two photographs. Of those, the hashes take hardly any different ones for copies, and a copy may
have a watermark."""

GRAY = 4.0  # levels of chroma that a gray picture, saved as JPEG, has at most

MOST_CONTRAST = 2.0
"""Times more or less; with none, everything would be the same as a blank page."""

AT_ONCE = 1024  # pairs: some 40 MB


def confirm(pairs: pl.DataFrame, pictures: pl.DataFrame) -> pl.DataFrame:
    """Those of the PAIRS whose pictures show the same.

    Args:
        pictures: sha256, sketch, entropy and luma_std, a row for each content of the pairs.
    """
    places = pictures.select("sha256").with_row_index("place")
    ends = [pairs.select(sha256=end).join(places, on="sha256", maintain_order="left")["place"] for end in ENDS]
    same = [
        show_the_same(*(compare(pictures[end[start : start + AT_ONCE]]) for end in ends))
        for start in range(0, pairs.height, AT_ONCE)
    ]
    return pairs.filter(np.concatenate(same)) if same else pairs


def compare(pictures: pl.DataFrame) -> Pictures:
    """What pictures are compared by, of their sketch, entropy and luma_std."""
    normal = (pl.col("luma_std") * math.sqrt(2 * math.pi * math.e)).log(2)
    negentropy = pictures.select(normal - pl.col("entropy")).to_series().to_numpy()
    return Pictures(sketch_planes(pictures["sketch"]), negentropy)


def show_the_same(one: Pictures, other: Pictures) -> Array:
    """Whether pictures show the same, pair by pair, bool [n]."""
    first, second = ([plane.astype(np.float64) for plane in pictures.planes] for pictures in (one, other))
    found = _are_within([np.abs(plane - copy) for plane, copy in zip(first, second, strict=True)], [TOLERANCE] * 3)
    rest = ~found  # fitted; in a crowd of copies, few need it
    drawn = np.minimum(one.negentropy, other.negentropy)[rest] > DRAWN
    found[rest] = _fit([plane[rest] for plane in first], [plane[rest] for plane in second], drawn)
    return found


def _fit(one: list[Array], other: list[Array], drawn: Array) -> Array:
    """``show_the_same`` of float64 planes, after what a copy may have has been fitted."""
    steps = [np.maximum(_steps(first), _steps(second)) for first, second in zip(one, other, strict=True)]
    allowed = [TOLERANCE + PER_STEP * step for step in steps]
    ground = (steps[0] == 0) & (np.abs(one[0] - other[0]) <= SAME_GROUND)
    as_bright = drawn & ground.any(axis=(1, 2))
    gray = np.minimum(_most_color(one), _most_color(other)) <= GRAY
    same = np.zeros(len(drawn), dtype=np.bool_)
    for source, target in ((one, other), (other, one)):  # a crop is a part of its original, and not the reverse
        colors = [np.abs(after - before) for before, after in zip(source[1:], target[1:], strict=True)]
        moved, _ = _misfit(source[0], target[0], brightness=False)
        same |= _are_within([moved, *colors], allowed)
        rest, contrast = _misfit(source[0], target[0], brightness=True)
        in_contrast = [
            np.minimum(color, np.abs(after - 128 - (before - 128) * contrast))
            for color, before, after in zip(colors, source[1:], target[1:], strict=True)
        ]
        alike = _are_within([rest], allowed[:1]) & (gray | _are_within(in_contrast, allowed[1:]))
        marked = _are_within([rest], [PHOTOGRAPH_TOLERANCE])
        alike |= ~drawn & marked & (gray | _are_within(in_contrast, [PHOTOGRAPH_TOLERANCE] * 2))
        in_bounds = np.abs(np.log(contrast[:, 0, 0].clip(min=1e-9))) <= np.log(MOST_CONTRAST)
        same |= ~as_bright & alike & in_bounds
    return same


def _most_color(planes: list[Array]) -> Array:
    return np.asarray(np.max([np.abs(plane - 128).max(axis=(1, 2)) for plane in planes[1:]], axis=0))


def _are_within(differences: Sequence[Array], allowed: Sequence[Any]) -> Array:
    within = [(values <= most).all(axis=(1, 2)) for values, most in zip(differences, allowed, strict=True)]
    return np.asarray(np.logical_and.reduce(within))


def _steps(plane: Array) -> Array:
    """The largest difference of each cell to the four next to it, [n, cells, cells]."""
    around = _neighbors(plane)
    return np.asarray(np.max([np.abs(plane - each) for each in around], axis=0))


def _neighbors(plane: Array) -> tuple[Array, Array, Array, Array]:
    """Of each cell that above, that below, that to the left and that to the right; at an edge, the cell itself."""
    padded = np.pad(plane, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]


def _misfit(source: Array, target: Array, *, brightness: bool) -> tuple[Array, Array]:
    """How far, cell by cell, the source is from the target when it is moved, resized and, if BRIGHTNESS may differ,
    made brighter.

    By least squares in what changes to first order: shift and size across and down; offset, contrast and curve of
    brightness. Also returns the contrast, [n, 1, 1].
    """
    above, below, left, right = _neighbors(source)
    across, down = (right - left) / 2, (below - above) / 2
    moves = (across, down, across * _X, down * _Y)
    levels = (source, np.ones_like(source), (source - 128) ** 2 / 128)
    changes, ridge = ((*levels, *moves), _RIDGE) if brightness else (moves, _RIDGE[len(levels) :])
    terms = np.stack(changes, axis=1).reshape(len(source), len(changes), _Y.size)
    difference = (target - source).reshape(len(source), _Y.size, 1)
    fitted = np.linalg.solve(terms @ terms.transpose(0, 2, 1) + np.diag(ridge), terms @ difference)
    rest = np.abs(difference - terms.transpose(0, 2, 1) @ fitted).reshape(source.shape)
    contrast = 1 + fitted[:, :1] if brightness else np.ones((len(source), 1, 1))
    return rest.round(3), contrast.round(3)  # in whatever order a processor adds


ENDS = ("first", "second")  # of PAIRS
_Y, _X = np.mgrid[: SKETCH_CELLS[0], : SKETCH_CELLS[0]] - (SKETCH_CELLS[0] - 1) / 2
_RIDGE = (0.01, 0.01, 1, 10, 10, 10, 10)  # solvable for every picture; what is flat is not moved far
