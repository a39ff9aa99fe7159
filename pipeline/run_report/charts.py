"""Lines of the page as paths of an inline SVG: one number over the epochs, accuracies over the number of labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.run_report.labels_saved import Point

WIDTH, HEIGHT, MARGIN = 300, 120, 4
FEATURES = {"simclr": "SimCLR", "random_init": "random encoder", "pixels": "raw pixels"}


@dataclass(frozen=True)
class Chart:
    """``lines`` and ``bands`` are SVG paths in a box of ``WIDTH`` x ``HEIGHT``, by the name of what they show."""

    title: str
    low: str
    high: str
    left: str
    right: str
    lines: Mapping[str, str]
    bands: Mapping[str, str]


def over_epochs(title: str, name: str, rows: Sequence[Mapping[str, float]], unit: str = "") -> Chart | None:
    """One column of pretrain.csv; None where fewer than two epochs have it."""
    points = [(row["epoch"], row[name]) for row in rows if name in row and "epoch" in row]
    if len(points) < 2:
        return None
    scale = _Scale([x for x, _ in points], [y for _, y in points])
    ends = (f"epoch {points[0][0]:g}", f"epoch {points[-1][0]:g}")
    return Chart(title, f"{scale.low:.4g}{unit}", f"{scale.high:.4g}{unit}", *ends, {title: scale.line(points)}, {})


def over_labels(title: str, curves: Mapping[str, Sequence[Point]]) -> Chart | None:
    """Each curve by the number of labels, which is drawn logarithmically, with 95 % intervals."""
    every = [point for points in curves.values() for point in points]
    if len({point.labels for point in every}) < 2:
        return None
    bounds = [bound for point in every for bound in (point.low, point.high)]
    scale = _Scale([math.log(point.labels) for point in every], bounds)
    lines, bands = {}, {}
    for name, points in curves.items():
        places = [(math.log(point.labels), point) for point in points]
        lines[name] = scale.line([(x, point.value) for x, point in places])
        around = [*((x, point.low) for x, point in places), *((x, point.high) for x, point in reversed(places))]
        bands[name] = scale.line(around) + "Z"
    labels = sorted({point.labels for point in every})
    ends = (f"{labels[0]:,} labels", f"{labels[-1]:,} labels")
    return Chart(title, f"{scale.low:.0f} %", f"{scale.high:.0f} %", *ends, lines, bands)


class _Scale:
    """From numbers to places in the box; what does not vary is drawn in its middle."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.left, self.right, self.low, self.high = min(xs), max(xs), min(ys), max(ys)

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        places = [f"{self._share(x, self.left, self.right) * WIDTH:.1f} {self._top(y):.1f}" for x, y in points]
        return "M" + "L".join(places)

    def _top(self, value: float) -> float:
        return HEIGHT - MARGIN - self._share(value, self.low, self.high) * (HEIGHT - 2 * MARGIN)

    @staticmethod
    def _share(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5
