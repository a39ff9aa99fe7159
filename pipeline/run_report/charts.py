"""Lines of the page as paths of an inline SVG: one number over the epochs, accuracies over the number of labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simclr_core.evaluation_reports import BudgetAccuracies

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


def over_labels(budgets: Mapping[str, BudgetAccuracies]) -> Chart | None:
    """Accuracy of the linear probe by the number of labels, which is drawn logarithmically, with 95 % intervals."""
    ordered = sorted(budgets.values(), key=lambda one: one.labels)
    if len({one.labels for one in ordered}) < 2:
        return None
    found = {title: [(math.log(one.labels), getattr(one, name)) for one in ordered] for name, title in FEATURES.items()}
    every = [bound for points in found.values() for _, one in points for bound in (one.low, one.high)]
    scale = _Scale([x for x, _ in found["SimCLR"]], every)
    lines = {title: scale.line([(x, one.top1) for x, one in points]) for title, points in found.items()}
    bands = {
        title: scale.line([*((x, one.low) for x, one in points), *((x, one.high) for x, one in reversed(points))]) + "Z"
        for title, points in found.items()
    }
    ends = (f"{ordered[0].labels:,} labels", f"{ordered[-1].labels:,} labels")
    return Chart("top-1 of the linear probe", f"{scale.low:.0f} %", f"{scale.high:.0f} %", *ends, lines, bands)


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
