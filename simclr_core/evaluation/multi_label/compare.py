"""Candidate and champion on the same test images, where an image may have several labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simclr_core.config import CompareConfig
from simclr_core.data.subsets import LabelDraw, subset
from simclr_core.evaluation.knn import nearest
from simclr_core.evaluation.linear_probe import fit_probe, probe_logits
from simclr_core.evaluation.multi_label.classifiers import KNN, PROBE, vote
from simclr_core.evaluation.multi_label.images import LabelSets
from simclr_core.evaluation.multi_label.precision import exact_precision, gain, mean_precision
from simclr_core.evaluation_reports import Gain, OldIndex

CANDIDATE, CHAMPION = "candidate", "champion"
ALL_LABELS, SEED = "1.0", 0


class Embedded(Protocol):
    """What one encoder makes of the labeled images of both splits: float32 [n, d]."""

    @property
    def train(self) -> NDArray[np.float32]: ...
    @property
    def test(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Compared:
    """By classifier, the candidate's mean average precision in percent, and what it gains on the champion, paired by
    image; nothing without labels or a champion."""

    precision: dict[str, float] = field(default_factory=dict)
    gains: dict[str, Gain] = field(default_factory=dict)


def compare_precision(
    embedded: Mapping[str, Embedded], train: LabelSets, test: LabelSets, config: CompareConfig
) -> Compared:
    """Fit both classifiers on either encoder's embeddings, and ask them for the classes of the test images."""
    if not embedded:
        return Compared()
    answers = {
        f"{name} {classifier}": found
        for name, one in embedded.items()
        for classifier, found in _answer(one, train, config).items()
    }
    found = mean_precision(answers, test.targets, SEED)
    precision = {one: round(100 * found[f"{CANDIDATE} {one}"].value, 3) for one in (KNN, PROBE)}
    if len(embedded) < 2:
        return Compared(precision)
    gains = {one: gain(found[f"{CANDIDATE} {one}"], [found[f"{CHAMPION} {one}"]], 1.0) for one in (KNN, PROBE)}
    return Compared(precision, gains)


def ask_old_index(
    embedded: Mapping[str, Embedded], train: LabelSets, test: LabelSets, config: CompareConfig
) -> OldIndex:
    """kNN in the champion's embeddings of the training images, asked with its own and with the candidate's of the test;
    both are mean average precisions. Vectors of different lengths cannot be compared."""
    if len(embedded) < 2:
        return OldIndex()
    index, queries = embedded[CHAMPION].train, [embedded[name].test for name in (CHAMPION, CANDIDATE)]
    if queries[0].shape[1] != queries[1].shape[1]:
        return OldIndex()
    old, new = (
        exact_precision(vote(index, train.targets, one, config.knn_neighbours, config.knn_temperature), test.targets)
        for one in queries
    )
    first_old, first_new = (nearest(index, one, 1)[1].numpy() for one in queries)
    same = float((first_old == first_new).mean())
    return OldIndex(True, *(round(100 * number, 3) for number in (old, new, same)))


def _answer(embedded: Embedded, train: LabelSets, config: CompareConfig) -> dict[str, NDArray[np.float64]]:
    """Both classifiers, fitted on all labeled training images, on the test images: [n, classes] each."""
    images, classes = train.images, train.targets.shape[1]
    draw = LabelDraw(ALL_LABELS, subset(images.labels, images.keys, ALL_LABELS, SEED))
    probe = fit_probe(embedded.train, train.targets, images.group_keys, classes, draw, config.l2_count, SEED)
    votes = vote(embedded.train, train.targets, embedded.test, config.knn_neighbours, config.knn_temperature)
    return {KNN: votes, PROBE: probe_logits(probe, embedded.test)}
