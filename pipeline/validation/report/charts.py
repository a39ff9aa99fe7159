"""Charts of the report: histograms as paths of an inline SVG, earlier images filled, new ones as an outline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.validation import tables
from pipeline.validation.drift.drift import MEANINGS, Drift

Array = np.ndarray[Any, Any]

BARS, WIDTH, HEIGHT = 40, 240, 90
HEADROOM = 2  # above the tallest bar
MOST_DRIFTED = 3

DISTRIBUTIONS = {
    "short_side": "shorter side, pixels",
    "aspect": "longer over shorter side",
    "size_bytes": "file size, bytes (logarithmic)",
    "luma_mean": "brightness, 0 to 255",
    "luma_std": "contrast, 0 to 255",
    "entropy": "entropy of brightness, bits",
    "edge_energy": "edges, 0 to 255",
    "saturation": "saturation, 0 to 255",
}
"""The columns of the manifest that are drawn."""

LOGARITHMIC = {"size_bytes"}


@dataclass(frozen=True)
class Histogram:
    """Shares of images; ``outlines`` are SVG paths in a box of ``WIDTH`` x ``HEIGHT``, one per group of images."""

    title: str
    low: str
    high: str
    outlines: tuple[str, ...]


def distributions(manifest: tables.Manifest) -> list[Histogram]:
    """The accepted images: those of the newest batch upon those of the earlier ones, where there are both."""
    accepted = tables.some(manifest.lazy().filter(pl.col("verdict") != "quarantine"), "batch", *DISTRIBUTIONS)
    if accepted.is_empty():
        return []
    is_new = accepted["batch"] == tables.newest(manifest)
    groups = [group for group in (accepted.filter(~is_new), accepted.filter(is_new)) if len(group)]
    return [
        histogram(title, [group[column].to_numpy() for group in groups], logarithmic=column in LOGARITHMIC)
        for column, title in DISTRIBUTIONS.items()
    ]


def draw_drifted(drift: Drift) -> Iterator[Histogram]:
    """The numbers that are furthest from their thresholds."""
    numbers = [one for one in drift.statistics if one.name in drift.samples]
    for one in sorted(numbers, key=lambda one: -one.effect / one.threshold)[:MOST_DRIFTED]:
        yield histogram(MEANINGS[one.name], drift.samples[one.name])


def histogram(title: str, groups: Sequence[Array], *, logarithmic: bool = False) -> Histogram:
    """The central 98 % of each group; what is beyond is counted in the bars at the ends."""
    values = [np.log10(np.maximum(group, 1)) if logarithmic else group for group in groups]
    ends = np.array([np.percentile(each, [1, 99]) for each in values])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    shares = [np.histogram(each.clip(edges[0], edges[-1]), edges)[0] / each.size for each in values]
    unit = (HEIGHT - HEADROOM) / max(share.max() for share in shares)
    if logarithmic:
        low, high = 10**low, 10**high
    outlines = tuple(_outline(HEIGHT - share * unit) for share in shares)
    return Histogram(title, number(low), number(high), outlines)


def number(value: float) -> str:
    """Four digits, or as many as are before the point, those in threes."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _outline(tops: Array) -> str:
    width = WIDTH / BARS
    return f"M0 {HEIGHT}" + "".join(f"V{top:.2f}H{(bar + 1) * width:g}" for bar, top in enumerate(tops)) + f"V{HEIGHT}Z"
