"""The second look at near copies: whether two pictures show the same in every place, by their sketches.

Perceptual hashes keep only the low frequencies, which all drawings on one outline share: folders with different
symbols, faces with different mouths. A copy differs from its original in a small shift, in size, brightness and
contrast, which are fitted here, and then by little anywhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline.validation.probe.facts import SKETCH_CELLS
from pipeline.validation.probe.hashes import sketch_planes

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCES, PER_STEP = (6.0, 8.0, 8.0), 0.12
"""Levels of 255 that a cell of a copy may differ in (brightness, blue, red), and the share of the largest step to a
neighboring cell that is added: what a shift by part of a pixel, or a JPEG, may change. docs/validation.md has rates."""

FLAT_CELLS = 8
"""A picture in which more cells than this, of 256, have exactly the brightness of all their neighbors is a flat
graphic. Three of four photographs have none; nearly all drawings and icons have more."""

NOT_FLAT_BRIGHTNESS = 45.0
"""Levels of 255 for two pictures that are not flat. Of those, the hashes take hardly any different ones for copies, and
a copy may have a watermark, or be gray."""

MOST_CONTRAST = 2.0
"""Times more or less; with none, everything would be the same as a blank page."""

AT_ONCE = 1024  # pairs: some 40 MB


def confirm(pairs: pl.DataFrame, sketches: pl.DataFrame) -> pl.DataFrame:
    """Those of the PAIRS whose pictures show the same.

    Args:
        sketches: sha256 and sketch, a row for each content of the pairs.
    """
    places = sketches.select("sha256").with_row_index("place")
    ends = [pairs.select(sha256=end).join(places, on="sha256", maintain_order="left")["place"] for end in ENDS]
    slices = [slice(start, start + AT_ONCE) for start in range(0, pairs.height, AT_ONCE)]
    same = [show_the_same(*(sketch_planes(sketches["sketch"].gather(end[part])) for end in ends)) for part in slices]
    return pairs.filter(np.concatenate(same)) if same else pairs


def show_the_same(one: list[Array], other: list[Array]) -> Array:
    """Whether pictures show the same, pair by pair: two times the planes of n sketches, to bool [n]."""
    one, other = ([plane.astype(np.float64) for plane in planes] for planes in (one, other))
    found = _are_within([np.abs(first - second) for first, second in zip(one, other, strict=True)], TOLERANCES)
    open_ones = ~found  # fitted; in a crowd of copies, few need it
    found[open_ones] = _fit(*([plane[open_ones] for plane in planes] for planes in (one, other)))
    return found


def _fit(one: list[Array], other: list[Array]) -> Array:
    """``show_the_same`` of float64 planes, after what a copy may have has been fitted."""
    steps = [np.maximum(_steps(first), _steps(second)) for first, second in zip(one, other, strict=True)]
    allowed = [most + PER_STEP * step for most, step in zip(TOLERANCES, steps, strict=True)]
    flat = np.maximum(*((_steps(planes[0]) == 0).sum(axis=(1, 2)) for planes in (one, other))) > FLAT_CELLS
    same = np.zeros(len(flat), dtype=np.bool_)
    for source, target in ((one, other), (other, one)):  # a crop is a part of its original, and not the reverse
        rest, contrast = _misfit(source[0], target[0])
        found = [rest]
        for before, after in zip(source[1:], target[1:], strict=True):
            found.append(np.minimum(np.abs(after - before), np.abs(after - 128 - (before - 128) * contrast)))
        alike = _are_within(found, allowed) | (~flat & (rest.max(axis=(1, 2)) <= NOT_FLAT_BRIGHTNESS))
        same |= alike & (np.abs(np.log(contrast[:, 0, 0].clip(min=1e-9))) <= np.log(MOST_CONTRAST))
    return same


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


def _misfit(source: Array, target: Array) -> tuple[Array, Array]:
    """How far, cell by cell, the source is from the target when it is moved, resized, and given another brightness.

    By least squares in what changes to first order: offset, contrast and curve of brightness, shift and size across
    and down. Also returns the contrast, [n, 1, 1].
    """
    above, below, left, right = _neighbors(source)
    across, down = (right - left) / 2, (below - above) / 2
    changes = (np.ones_like(source), source, (source - 128) ** 2 / 128, across, down, across * _X, down * _Y)
    terms = np.stack(changes, axis=1).reshape(len(source), len(changes), _Y.size)
    difference = (target - source).reshape(len(source), _Y.size, 1)
    fitted = np.linalg.solve(terms @ terms.transpose(0, 2, 1) + _RIDGE, terms @ difference)
    rest = np.abs(difference - terms.transpose(0, 2, 1) @ fitted).reshape(source.shape)
    return rest.round(3), (1 + fitted[:, 1:2]).round(3)  # in whatever order a processor adds


ENDS = ("first", "second")  # of PAIRS
_Y, _X = np.mgrid[: SKETCH_CELLS[0], : SKETCH_CELLS[0]] - (SKETCH_CELLS[0] - 1) / 2
_RIDGE = np.diag([0.01, 0.01, 1, 10, 10, 10, 10])  # solvable for every picture; what is flat is not moved far
