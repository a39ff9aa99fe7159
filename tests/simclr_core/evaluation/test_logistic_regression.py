"""The probe's optimum against first principles: a zero gradient, gradient descent, and a closed form."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from simclr_core.evaluation import logistic_regression
from simclr_core.evaluation.logistic_regression import (
    GIVEN_UP,
    LinearHead,
    l2_values,
    regularization_path,
    regularization_paths,
    select_and_fit,
)
from simclr_core.evaluation.regression import standardized
from simclr_core.evaluation.regression.standardized import standardization, standardize, unchanged
from tests.simclr_core.fake_cuda import fake_cuda


def problem(
    samples: int, dimensions: int, classes: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Overlapping classes, features of very different scale, not centered."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    centers = torch.randn(classes, dimensions, generator=generator, dtype=torch.float64)
    features = centers[labels] + 2 * torch.randn(samples, dimensions, generator=generator, dtype=torch.float64)
    return (features * torch.logspace(0, -2, dimensions, dtype=torch.float64) + 0.3).to(dtype), labels


def objective(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, l2: float) -> Tensor:
    return cross_entropy(features @ weight + bias, labels) + l2 / 2 * weight.square().sum()


@pytest.mark.parametrize(("samples", "dimensions"), [(90, 5), (12, 30)], ids=["tall", "wide"])
def test_the_gradient_with_the_penalty_is_zero_at_every_point_of_the_path(samples: int, dimensions: int) -> None:
    features, labels = problem(samples, dimensions)
    strengths = [10.0, 1.0, 0.1, 0.01]
    for l2, head in zip(strengths, regularization_path(features, labels, 3, strengths), strict=True):
        weight, bias = (tensor.clone().requires_grad_() for tensor in (head.weight, head.bias))
        torch.autograd.backward(objective(weight, bias, features, labels, l2))
        assert weight.grad is not None
        assert bias.grad is not None
        assert max(weight.grad.abs().max().item(), bias.grad.abs().max().item()) < 1e-4


@pytest.mark.seconds
def test_the_optimum_is_that_of_long_gradient_descent() -> None:
    features, labels = problem(60, 3)
    weight = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.SGD([weight, bias], lr=0.4)
    for _ in range(4000):
        descent.zero_grad()
        torch.autograd.backward(objective(weight, bias, features, labels, 0.1))
        descent.step()
    head = regularization_path(features, labels, 3, [0.1])[0]
    torch.testing.assert_close(head.weight, weight.detach(), atol=1e-4, rtol=0)
    # The bias is not penalized, so it is known up to a constant.
    torch.testing.assert_close(head.bias - head.bias.mean(), bias.detach() - bias.detach().mean(), atol=1e-4, rtol=0)


def test_strong_regularization_leaves_the_class_frequencies() -> None:
    features, _ = problem(60, 3)
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    probabilities = regularization_path(features, labels, 3, [1e5])[0].logits(features).softmax(dim=1)
    torch.testing.assert_close(probabilities.mean(dim=0), torch.tensor([3, 2, 1]).double() / 6, atol=1e-4, rtol=0)
    assert probabilities.std(dim=0).max() < 1e-4


def test_float32_finds_the_optimum_of_float64() -> None:
    features, labels = problem(200, 20)
    exact = regularization_path(features, labels, 3, [1.0, 0.1, 0.01])
    single = regularization_path(features.float(), labels, 3, [1.0, 0.1, 0.01])
    for l2, one, other in zip([1.0, 0.1, 0.01], exact, single, strict=True):
        reached = objective(other.weight.double(), other.bias.double(), features, labels, l2)
        assert reached - objective(one.weight, one.bias, features, labels, l2) < 1e-6


def test_features_may_repeat_or_be_constant() -> None:
    features, labels = problem(60, 3)
    padded = torch.cat([features, features[:, :1], torch.full((60, 1), 7.0)], dim=1)
    head = regularization_path(padded, labels, 3, [0.1])[0]
    torch.testing.assert_close(head.weight[3], head.weight[0])  # the penalty shares equally
    assert head.weight[4].abs().max() < 1e-9


def test_a_class_without_samples_is_never_the_answer() -> None:
    features, labels = problem(60, 3)
    for head in regularization_path(features, labels, 5, [1.0, 0.01]):
        assert head.logits(features).argmax(dim=1).max() < 3


def test_folding_in_the_standardization_gives_the_same_logits() -> None:
    features, labels = problem(60, 6)
    features[:, 5] = 0.25
    mean, std = standardization(features)
    head = regularization_path((features - mean) / std, labels, 3, [0.1])[0]
    raw = head.on_raw_features(mean, std)
    torch.testing.assert_close(raw.logits(features), head.logits((features - mean) / std))
    assert std[5] == 1


def test_the_sweep_spans_the_papers_range_from_strong_to_weak() -> None:
    values = l2_values(45)
    assert len(values) == 45
    assert math.isclose(values[0], 1e5)
    assert math.isclose(values[-1], 1e-6)
    np.testing.assert_allclose(np.diff(np.log(values)), np.log(1e-11) / 44)


def test_the_strength_chosen_is_best_on_the_held_out_folds() -> None:
    features, labels = problem(50, 20)
    fold, strengths = torch.arange(50) % 5, [10.0, 1.0, 0.1, 0.01, 0.001]
    held = torch.stack([fold == 0, fold == 3])
    losses = []
    for l2 in strengths:
        heads = [regularization_path(features[~one], labels[~one], 3, [l2])[0] for one in held]
        pairs = zip(heads, held, strict=True)
        losses.append(
            sum(cross_entropy(head.logits(features[one]), labels[one], reduction="sum") for head, one in pairs)
        )
    chosen, head = select_and_fit(unchanged(features), labels, 3, strengths, held)
    assert chosen == strengths[int(np.argmin(losses))]
    expected = regularization_path(features, labels, 3, [one for one in strengths if one >= chosen])[-1]
    torch.testing.assert_close(head.logits(features), expected.logits(features), atol=1e-3, rtol=0)


def test_a_path_ends_far_below_the_best_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(50, 20)
    held, strengths = (torch.arange(50) % 5 == 0)[None], l2_values(45)
    tried: list[float] = []
    minimize = logistic_regression._minimize

    def spy(*given: Any) -> Tensor:
        tried.append(given[2])
        return minimize(*given)

    monkeypatch.setattr(logistic_regression, "_minimize", spy)
    chosen, _ = select_and_fit(unchanged(features), labels, 3, strengths, held)
    assert 1e-3 < chosen < 1e4, "neither end, so that there is something to leave out"
    assert 0.5 * GIVEN_UP * chosen < min(tried) < 2 * GIVEN_UP * chosen


@pytest.mark.parametrize("several", [False, True])
def test_blocks_of_many_samples_give_the_optima_of_all_at_once(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(300, 12)
    if several:
        labels = torch.stack([labels == 0, labels <= 1, features[:, 0] > 0], dim=1)
    rows = torch.arange(300)[torch.randperm(300, generator=torch.Generator().manual_seed(1))[:250]]
    held = torch.stack([torch.arange(250) % 5 == number for number in range(2)])
    strengths = [10.0, 1.0, 0.1, 0.01]
    small = select_and_fit(standardize(features, rows), labels[rows], 3, strengths, held)
    monkeypatch.setattr(logistic_regression, "TURNED_ELEMENTS", 0)
    monkeypatch.setattr(standardized, "BLOCK_ELEMENTS", 12 * 64)
    large = select_and_fit(standardize(features, rows), labels[rows], 3, strengths, held)
    assert small[0] == large[0]
    mean, std = standardization(features)
    logits = [one.logits((features - mean) / std) for one in (small[1], large[1])]
    torch.testing.assert_close(*[one if several else one.log_softmax(dim=1) for one in logits], atol=1e-3, rtol=0)


@pytest.mark.seconds
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_a_gpu_computes_on_what_the_host_keeps(monkeypatch: pytest.MonkeyPatch, large: bool, kept: bool) -> None:
    features, labels = problem(60, 8)
    rows, held = torch.arange(50), (torch.arange(50) % 5 == 0)[None]
    monkeypatch.setattr(logistic_regression, "TURNED_ELEMENTS", 0 if large else 2**24)
    monkeypatch.setattr(standardized, "free_bytes", lambda _: 10**9 if kept else 0)
    with fake_cuda() as gpu:
        inputs = standardize(features, rows, gpu)
        assert inputs.device == gpu
        assert (inputs.kept().raw.device == gpu) == kept
        _, head = select_and_fit(inputs, labels[rows], 3, [1.0, 0.1], held)
        raw = head.on_raw_features(inputs.mean, inputs.std)
    assert (raw.weight.device, raw.bias.device) == (gpu, gpu)


@pytest.mark.parametrize("dimensions", [5, 60], ids=["tall", "wide"])
def test_several_labels_are_one_regression_for_each_class(dimensions: int) -> None:
    features, labels = problem(40, dimensions)
    truth = torch.stack([labels == 0, labels <= 1, features[:, 0] > 0.5], dim=1)
    (head,) = regularization_path(features, truth, 3, [0.1])
    weight, bias = (tensor.clone().requires_grad_() for tensor in (head.weight, head.bias))
    losses = binary_cross_entropy_with_logits(features @ weight + bias, truth.double(), reduction="none").sum(dim=1)
    torch.autograd.backward(losses.mean() + 0.05 * weight.square().sum())
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max().item(), bias.grad.abs().max().item()) < 1e-4


@pytest.mark.seconds
@pytest.mark.parametrize(("samples", "dimensions"), [(90, 5), (24, 30)], ids=["tall", "wide"])
def test_problems_that_are_solved_at_once_have_the_optima_of_each_alone(samples: int, dimensions: int) -> None:
    features, labels = problem(samples, dimensions)
    seen = torch.stack([torch.arange(samples) % 4 != number for number in range(3)])
    strengths = [10.0, 0.1, 0.001]
    for l2, heads in zip(strengths, regularization_paths(unchanged(features), labels, 3, strengths, seen), strict=True):
        for head, rows in zip(heads, seen, strict=True):
            alone = regularization_path(features[rows], labels[rows], 3, strengths[: strengths.index(l2) + 1])[-1]
            reached, best = (objective(one.weight, one.bias, features[rows], labels[rows], l2) for one in (head, alone))
            assert abs(reached - best) < 1e-7
            chances = [one.logits(features).softmax(dim=1) for one in (head, alone)]
            torch.testing.assert_close(*chances, atol=5e-3, rtol=0)


def test_without_held_out_samples_the_strongest_penalty_is_chosen() -> None:
    features, labels = problem(1, 4)
    held = torch.from_numpy(np.array([np.zeros(1, int) == number for number in range(5)]))
    assert select_and_fit(unchanged(features), labels, 3, [10.0, 0.1], held)[0] == 10.0


def held_out_losses(features: Tensor, labels: Tensor, heads: Sequence[LinearHead], held: Tensor) -> list[float]:
    return [float(cross_entropy(one.logits(features[held]), labels[held])) for one in heads]


@pytest.mark.seconds
@pytest.mark.parametrize("is_large", [True, False])
def test_with_many_classes_the_penalty_is_that_of_exact_fits(monkeypatch: pytest.MonkeyPatch, is_large: bool) -> None:
    """Each class is a small share of the samples, and the gradient by each weight is as small: under a strong penalty
    nothing is learned, which must not look like the best that can be learned."""
    monkeypatch.setattr(logistic_regression, "TURNED_ELEMENTS", 0 if is_large else 2**24)
    classes, each, dimensions = 100, 5, 12
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(each)
    centers = torch.randn(classes, dimensions, generator=generator)
    features = centers[labels] + 2 * torch.randn(len(labels), dimensions, generator=generator)
    held, strengths = torch.arange(len(labels)) % 5 == 0, l2_values(12)
    exact = regularization_path(features[~held].double(), labels[~held], classes, strengths[4:9])
    losses = held_out_losses(features.double(), labels, exact, held)
    chosen, head = select_and_fit(unchanged(features), labels, classes, strengths, held[None])
    assert chosen == strengths[4 + int(np.argmin(losses))]
    assert 1e-3 < chosen < 1, "neither end of those that were compared"
    (fitted,) = regularization_path(features.double(), labels, classes, [chosen])
    torch.testing.assert_close(
        head.logits(features).double().softmax(1), fitted.logits(features.double()).softmax(1), atol=2e-3, rtol=0
    )


def test_with_two_samples_of_each_class_the_penalty_is_that_of_exact_fits() -> None:
    """A fold that lacks one of two has a bias against its class, also under penalties that leave no weights."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30).repeat_interleave(2)
    centers = torch.randn(30, 60, generator=generator, dtype=torch.float64)
    features = (centers[labels] + 2 * torch.randn(60, 60, generator=generator, dtype=torch.float64)).float()
    held = torch.stack([torch.arange(60) % 5 == fold for fold in range(5)])
    values = l2_values(12)
    losses = torch.zeros(len(values))
    for out in held:
        heads = regularization_path(features[~out].double(), labels[~out], 30, values)
        losses += torch.tensor(
            [float(cross_entropy(head.logits(features[out].double()), labels[out], reduction="sum")) for head in heads]
        )
    chosen, _ = select_and_fit(unchanged(features), labels, 30, values, held)
    assert losses[0] > losses.min() + 0.3 * len(labels)
    assert losses[values.index(chosen)] <= losses.min() + 0.01 * len(labels)


def test_many_samples_that_are_not_centered_have_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(80, 6)
    (small,) = regularization_path(features + 3, labels, 3, [0.1])
    monkeypatch.setattr(logistic_regression, "TURNED_ELEMENTS", 0)
    monkeypatch.setattr(logistic_regression, "SAMPLES_PER_AXIS", 2)
    (large,) = regularization_path(features + 3, labels, 3, [0.1])
    logits = [one.logits(features + 3).log_softmax(dim=1) for one in (small, large)]
    torch.testing.assert_close(*logits, atol=1e-3, rtol=0)


def test_penalties_under_which_nothing_is_learned_take_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(90, 5)
    passes, evaluate = [], logistic_regression._evaluate

    def spy(*given: Any) -> Any:
        passes.append(given)
        return evaluate(*given)

    monkeypatch.setattr(logistic_regression, "_evaluate", spy)
    first, *_, last = regularization_path(features, labels, 3, [1e13, 1e12, 1e11])
    assert len(passes) == 1
    assert torch.equal(first.weight, last.weight)
