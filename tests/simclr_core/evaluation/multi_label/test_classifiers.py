"""kNN's votes by a naive loop, and the probe as one logistic regression for each class, against scikit-learn."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simclr_core.data.subsets import LabelDraw
from simclr_core.evaluation.calibration import sigmoid
from simclr_core.evaluation.linear_probe import Probe, fit_probe, probe_logits
from simclr_core.evaluation.logistic_regression import LinearHead, regularization_path, select_and_fit, unchanged
from simclr_core.evaluation.multi_label import results
from simclr_core.evaluation.multi_label.classifiers import vote
from simclr_core.evaluation.multi_label.images import LabelSets
from simclr_core.evaluation.multi_label.precision import exact_precision


def features(images: int, seed: int = 0, dim: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    found = generator.normal(size=(images, dim))
    truth = found[:, :classes] + 0.8 * generator.normal(size=(images, classes)) > np.linspace(-0.3, 1.0, classes)
    return found.astype(np.float32), truth


def test_each_neighbor_votes_on_each_class() -> None:
    bank, targets = features(40)
    queries, _ = features(7, seed=1)
    found = vote(bank, targets, queries, neighbors=5, temperature=0.1)
    normalized = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (bank, queries)]
    for query, row in zip(normalized[1], found, strict=True):
        similarities = normalized[0] @ query
        nearest = sorted(range(40), key=lambda one: -similarities[one])[:5]
        weights = [math.exp(float(similarities[one]) / 0.1) for one in nearest]
        expected = [sum(w for w, one in zip(weights, nearest, strict=True) if targets[one, c]) for c in range(3)]
        np.testing.assert_allclose(row, np.array(expected) / sum(weights), rtol=1e-4)


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_each_class_is_a_logistic_regression_for_itself(l2: float) -> None:
    inputs, truth = features(120)
    head = regularization_path(torch.from_numpy(inputs).double(), torch.from_numpy(truth), 3, [10.0, l2])[-1]
    for one in range(3):
        reference = LogisticRegression(C=1 / (l2 * len(inputs)), tol=1e-10, max_iter=10_000)
        reference.fit(inputs.astype(np.float64), truth[:, one])
        np.testing.assert_allclose(head.weight[:, one].numpy(), reference.coef_[0], atol=2e-3)
        np.testing.assert_allclose(head.bias[one].item(), reference.intercept_[0], atol=2e-3)


def test_the_penalty_has_the_lowest_cross_entropy_on_held_out_folds() -> None:
    inputs, truth = features(60)
    tensors = torch.from_numpy(inputs).double(), torch.from_numpy(truth)
    fold, values = np.arange(60) % 3, [10.0, 1.0, 0.1, 0.01]
    losses = []
    for l2 in values:
        loss = 0.0
        for number in range(3):
            held = fold == number
            for one in range(3):
                reference = LogisticRegression(C=1 / (l2 * (~held).sum()), tol=1e-10, max_iter=10_000)
                reference.fit(inputs[~held], truth[~held, one])
                likely = reference.predict_proba(inputs[held])[:, 1]
                loss -= float(np.log(np.where(truth[held, one], likely, 1 - likely)).sum())
        losses.append(loss)
    held_out = torch.from_numpy(np.array([fold == number for number in range(3)]))
    chosen, _ = select_and_fit(unchanged(tensors[0]), tensors[1], 3, values, held_out)
    assert chosen == values[int(np.argmin(losses))]


def test_a_class_that_all_or_no_images_have_is_sure() -> None:
    inputs, truth = features(50)
    truth[:, 0], truth[:, 1] = True, False
    keys = np.random.default_rng(0).integers(0, 256, (50, 32), dtype=np.uint8)
    probe = fit_probe(inputs, truth, keys, 3, LabelDraw("1.0", np.arange(50)), l2_count=4, seed=0)
    found = sigmoid(probe_logits(probe, inputs))
    assert found[:, 0].min() > 0.99
    assert found[:, 1].max() < 0.01
    assert np.isfinite(found).all()


def test_a_sigmoid_of_large_logits_does_not_overflow() -> None:
    logits = np.array([-1e4, -1.0, 0.0, 1.0, 1e4])
    with np.errstate(over="raise"):
        np.testing.assert_allclose(sigmoid(logits), [0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1], atol=1e-12)


def test_images_of_a_sure_probe_are_not_ranked_together() -> None:
    """Far from the border every probability is rounded to 1, and one wrong image among them cost all their ranks."""
    sure = Probe("1.0", 4, 1e-6, LinearHead(torch.tensor([[50.0]]), torch.zeros(1)))
    queries, truth = np.array([[3.0], [2.0], [1.0], [-1.0]], np.float32), np.array([[True], [True], [False], [False]])
    ranked = probe_logits(sure, queries)
    assert (sigmoid(ranked)[:3] == 1.0).all()
    assert exact_precision(sigmoid(ranked), truth) == pytest.approx(2 / 3)
    assert exact_precision(ranked, truth) == 1.0
    images: Any = SimpleNamespace(keys=np.zeros((4, 32), np.uint8))
    asked = LabelSets(images, truth)
    rows = results.table("test", asked, {}, {"knn": sigmoid(ranked), "probe": ranked}, ["cat"])
    assert exact_precision(np.array(rows["probe_log_odds"].to_pylist()), truth) == 1.0
    assert rows["probe"].to_pylist() == [["cat"], ["cat"], ["cat"], []]
