"""Calibration: how far a statistic may be from nothing before it means something.

The statistics are effect sizes: p-values would call every large batch different. What chance alone does to them is
measured on random splits of images that belong together into parts of the sizes that are compared, and a threshold is
never below that, nor below a floor that says what is too small to matter.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.reports import Statistic
from pipeline.validation.drift.distances import Array

SPLITS = 200
FALSE_ALARMS = 0.01
"""How often a batch like the earlier ones may be called different, whatever the number of statistics."""

CLASSIFIER = "domain_classifier"
CHANCE = {CLASSIFIER: 0.5}  # what a statistic is where nothing differs, if not zero


def random_splits(count: int, part: int) -> Array:
    """Masks [SPLITS, count], always the same ones, each of which calls ``part`` of the rows new."""
    random = np.random.default_rng(0)
    return random.permuted(np.tile(np.arange(count) < part, (SPLITS, 1)), axis=1)


def calibrate(
    effects: Mapping[str, float], chance: Mapping[str, Array], floors: Mapping[str, float]
) -> Iterator[Statistic]:
    """Hold each effect against what chance reaches in all but ``FALSE_ALARMS`` of the splits, and against its floor.

    Args:
        effects: how far each statistic is from what it is where nothing differs.
        chance: the same of random splits, each [SPLITS]; a statistic keeps its place in every array.
        floors: the largest effects that are not drift, however many images show them.
    """
    # One factor for all statistics keeps the rate of false alarms of all of them together: it bounds, in all but
    # FALSE_ALARMS of the splits, the largest effect, each measured in what it reaches by chance or its floor.
    scales = {name: max(floor, float(np.quantile(chance[name], 0.95))) for name, floor in floors.items()}
    largest = np.max([chance[name] / scale for name, scale in scales.items()], axis=0)
    factor = max(1.0, float(np.quantile(largest, 1 - FALSE_ALARMS, method="higher")))
    for name, scale in scales.items():
        effect, threshold = (
            round(CHANCE.get(name, 0.0) + value, 4) for value in (float(effects[name]), factor * scale)
        )
        yield Statistic(name, effect, threshold, effect > threshold)
