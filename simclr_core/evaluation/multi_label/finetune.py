"""What fine-tuned networks are worth where an image may have several labels, next to training from random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.multi_label.classifiers import EVEN, PROBE
from simclr_core.evaluation.multi_label.images import LabelSets, Targets
from simclr_core.evaluation.multi_label.precision import Precision, gain, mean_of_draws, mean_precision
from simclr_core.evaluation.multi_label.scoring import score
from simclr_core.evaluation_reports import FinetunePrecision, Gain, Measured

SEED = 0  # of the resamples

LogOdds = Sequence[NDArray[np.float64]]
"""For each seed, of each class for each test image: [n, classes]."""


@dataclass(frozen=True)
class Tuned:
    """What the networks that began with the encoder say of the test images, those from scratch, and linear probes;
    ``labels`` [n, classes] are what the first seed learned from."""

    pretrained: LogOdds
    scratch: LogOdds
    probe: LogOdds
    labels: Targets


def describe_precision(tuned: Tuned, test: LabelSets, classes: Sequence[str]) -> FinetunePrecision:
    """Means over the seeds, which draw their labels separately."""
    ways = {"pretrained": tuned.pretrained, "scratch": tuned.scratch, "probe": tuned.probe}
    answers = {f"{way} {seed}": one for way, of_seeds in ways.items() for seed, one in enumerate(of_seeds)}
    found = mean_precision(answers, test.targets, SEED)
    by_way = {way: [found[f"{way} {seed}"] for seed in range(len(of_seeds))] for way, of_seeds in ways.items()}
    reached = {way: _mean(of_seeds, len(tuned.labels)) for way, of_seeds in by_way.items()}
    ours, theirs = by_way["pretrained"], by_way["scratch"]
    return FinetunePrecision(
        simclr=reached["pretrained"],
        scratch=reached["scratch"],
        probe=reached["probe"],
        gain=_mean_gain(ours, theirs),
        gain_per_seed=tuple(round(100 * (a.value - b.value), 3) for a, b in zip(ours, theirs, strict=True)),
        scores=score(tuned.pretrained[0], EVEN[PROBE], ours[0], test.targets, tuned.labels, classes),
    )


def _mean(of_seeds: Sequence[Precision], labels: int) -> Measured:
    return mean_of_draws([one.value for one in of_seeds], of_seeds[0], 1.0, labels)


def _mean_gain(ours: Sequence[Precision], theirs: Sequence[Precision]) -> Gain:
    mean = Precision(fmean(one.value for one in ours), np.mean([one.resampled for one in ours], axis=0), ours[0].images)
    return gain(mean, theirs, 1.0)
