"""Multinomial logistic regression with an L2 sweep: the linear probe on cached features (SimCLR, section B.8).

minimize over W, b:  mean cross-entropy of softmax(x W + b)  +  l2 / 2 * |W|^2        (the bias is not penalized)

Where images have several labels, it is one logistic regression for each class against the rest: the cross-entropy is
then the sum over the classes of that of the sigmoid, and each column of W is a problem apart from the others.

L-BFGS needs hundreds of iterations on features whose axes differ in scale, and about ten in the coordinates used here.
The problem does not change when the features are shifted or rotated, so they are turned to their principal axes, where
Bohning's bound on the Hessian, (x^2 mean) / 2 + l2 (Bohning 1992, "Multinomial logistic regression algorithm"), is
diagonal; each axis is then scaled so that the bound is 1. Axes without variance drop out: 80 labeled images of 2,352
pixels are a problem of 79 dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, softplus

STRONGEST_L2, WEAKEST_L2 = 1e5, 1e-6  # the paper's range, section B.8
MAX_ITERATIONS = 200  # reached only by separable data with next to no regularization, where the optimum is far away
HISTORY = 10  # steps that a direction is made of; with torch's 100 its arithmetic takes longer than the loss
GRADIENT_TOLERANCE = 1e-5  # of the largest component, in coordinates where the Hessian is at most 1


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight + bias; ``weight`` [d, classes], ``bias`` [classes]."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias

    def on_raw_features(self, mean: Tensor, std: Tensor) -> Self:
        """The head that gives on x the logits that this one gives on (x - mean) / std."""
        weight = self.weight.double() / std.double()[:, None]
        bias = self.bias.double() - mean.double() @ weight
        return type(self)(weight.to(self.weight.dtype), bias.to(self.bias.dtype))


def l2_values(count: int) -> list[float]:
    """``count`` log-spaced values, from strong to weak, so that each solution is a good start for the next."""
    return [float(value) for value in np.geomspace(STRONGEST_L2, WEAKEST_L2, count)]


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d] of each feature, float64; 1 for a feature that is constant but for rounding."""
    std, mean = torch.std_mean(features.double(), dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0)


def regularization_path(features: Tensor, labels: Tensor, classes: int, l2: Sequence[float]) -> list[LinearHead]:
    """The optimum for each value of ``l2``, each started from the one before.

    ``features`` [n, d] in float32 or float64, ``labels`` int64 [n], or bool [n, classes] where a sample may have
    several. A class without samples is never the answer.
    """
    everything = torch.ones(1, len(features), dtype=torch.bool)
    return [head for (head,) in regularization_paths(features, labels, classes, l2, everything)]


def regularization_paths(
    features: Tensor, labels: Tensor, classes: int, l2: Sequence[float], seen: Tensor
) -> Iterator[list[LinearHead]]:
    """The same for several problems at once: each row of ``seen``, bool [m, n], says which samples one of them has.

    Yields the m optima of each value. What takes time on few samples is the number of calls, and these are shared.
    """
    center = features.mean(dim=0)
    axes = principal_axes(features - center)
    ones = features.new_ones(len(features), 1)  # the bias, as one more axis without penalty
    design = torch.cat([(features - center) @ axes, ones], dim=1).T.contiguous()
    weights = seen / seen.sum(dim=1, keepdim=True).to(features.dtype)
    coefficients = features.new_zeros(len(seen), classes, len(design))
    for value in l2:
        penalty = torch.cat([features.new_full((axes.shape[1],), value), features.new_zeros(1)])
        coefficients = _minimize(design, labels, weights, penalty, coefficients)
        yield [_unrotated(one, axes, center) for one in coefficients]


def _unrotated(coefficients: Tensor, axes: Tensor, center: Tensor) -> LinearHead:
    weight = axes @ coefficients[:, :-1].T
    return LinearHead(weight, coefficients[:, -1] - center @ weight)


def select_l2(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: Sequence[float],
    fold: NDArray[np.int64],
    held_out: Sequence[int],
) -> float:
    """The value of ``l2`` with the lowest cross-entropy on held-out folds; the first if there is nothing to hold out.

    ``fold`` [n] gives the fold of each sample; each fold in ``held_out`` is predicted from all the others. Not by
    accuracy: on 80 labels it moves in steps of 1.25 points and is the same over decades of regularization.
    """
    held = torch.from_numpy(np.array([fold == number for number in held_out]))
    held = held[held.any(dim=1) & ~held.all(dim=1)]  # else there are fewer samples than folds
    if not len(held):
        return l2[0]
    kept = ~held.all(dim=0)  # with a single fold, what it holds out is in no problem
    paths = regularization_paths(features[kept], labels[kept], classes, l2, ~held[:, kept])
    losses = [
        sum(_loss(head.logits(features[one]), labels[one]) for head, one in zip(heads, held, strict=True))
        for heads in paths
    ]
    return l2[int(np.argmin(losses))]


def _loss(logits: Tensor, labels: Tensor) -> float:
    """The sum over the samples."""
    if labels.dim() == 1:
        return float(cross_entropy(logits, labels, reduction="sum"))
    return float(binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum"))


def principal_axes(centered: Tensor) -> Tensor:
    """Orthonormal axes [d, r] along which ``centered`` [n, d] varies, from the smaller of its Gram matrices.

    In float64, because a Gram matrix squares the spread: float32 would lose axes that the classifier needs.
    """
    samples = centered.double()
    wide = samples.shape[0] < samples.shape[1]
    values, vectors = torch.linalg.eigh(samples @ samples.T if wide else samples.T @ samples)
    kept = values > values[-1] * max(samples.shape) * torch.finfo(samples.dtype).eps
    axes: Tensor = vectors[:, kept]
    if wide:
        axes = samples.T @ (axes * values[kept].rsqrt())
    return axes.to(centered.dtype)


def _minimize(design: Tensor, labels: Tensor, weights: Tensor, penalty: Tensor, start: Tensor) -> Tensor:
    """Coefficients [m, classes, r] that minimize the penalized cross-entropy of ``design`` [r, n] for each row of
    ``weights`` [m, n]. The problems have nothing in common, so the minimum of their sum is that of each."""
    exclusive = labels.dim() == 1  # of sigmoids the bound on the Hessian is half of this one
    scale = (weights @ design.square().T / 2 + penalty).rsqrt()[:, None]
    scaled_penalty = penalty * scale.square()
    truth = weights[:, None] * (one_hot(labels, start.shape[1]) if exclusive else labels).T
    variable = (start / scale).requires_grad_()
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [variable],
        max_iter=MAX_ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=GRADIENT_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def objective() -> float:
        optimizer.zero_grad()
        logits = (variable * scale).flatten(0, 1) @ design
        logits = logits.view(*start.shape[:2], -1)
        normalizers = logits.logsumexp(dim=1) if exclusive else softplus(logits).sum(dim=1)
        loss = (normalizers * weights).sum() - (logits * truth).sum()
        loss = loss + (variable.square() * scaled_penalty).sum() / 2
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(objective)
    return variable.detach() * scale
