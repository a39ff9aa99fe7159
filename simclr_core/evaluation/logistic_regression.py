"""Logistic regression with an L2 sweep: the linear probe on cached features (SimCLR, section B.8).

minimize over W, b:  mean cross-entropy of softmax(x W + b)  +  l2 / 2 * |W|^2        (the bias is not penalized)

Where images have several labels, it is one logistic regression for each class against the rest: the cross-entropy is
then the sum over the classes of that of the sigmoid, and each column of W is a problem apart from the others.

L-BFGS needs hundreds of iterations on features whose axes differ in scale, and about ten in the coordinates used here.
The problem does not change when the features are shifted or rotated, so it is solved along their principal axes, where
Bohning's bound on the Hessian, (x^2 mean) / 2 + l2 (Bohning 1992, "Multinomial logistic regression algorithm"), is
diagonal; each axis is then scaled so that the bound is 1. Axes without variance drop out: 80 labeled images of 2,352
pixels are a problem of 79 dimensions.

Problems on the same samples, such as those of the folds of a cross-validation, are minimized together: on few samples
what takes time is the number of calls, and on many it is reading the features. The gradient is written out and summed
block by block, so that no copy of the features is needed, nor of what the classifiers say of them. A GPU gets the
blocks from the memory of the host, unless its own has room for all of them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

STRONGEST_L2, WEAKEST_L2 = 1e5, 1e-6  # the paper's range, section B.8
MAX_ITERATIONS = 200  # reached only by separable data with next to no regularization, where the optimum is far away
HISTORY = 10  # steps that a direction is made of; with torch's 100 its arithmetic takes longer than the loss
GRADIENT_TOLERANCE = 1e-5  # of the largest component, in coordinates where the Hessian is at most 1
CHOOSING_TOLERANCE = 1e-3  # the same while a penalty is chosen: neighbors differ by a factor of ten
BLOCK_ELEMENTS = 2**20  # of features at a time: they stay in a processor's cache
ON_GPU = 64  # times as many there, where a small block costs as much as a large one
TURNED_ELEMENTS = 2**24  # up to here the features are turned once, which takes a copy; above, the weights are
GIVEN_UP = 1e-2  # of the best penalty so far: below, none is tried, where searches take longest
KEPT_SHARE = 0.5  # of a GPU's free memory that features may take


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


@dataclass(frozen=True)
class Standardized:
    """The features that a classifier is fitted on: ``rows`` [n] of ``raw`` [N, d], less ``mean`` [d], over ``std`` [d].

    Without rows, all of ``raw`` as it is. ``raw`` may be mapped from a file: it is read in blocks. Where ``mean`` and
    ``std`` are is where the classifier is computed; ``raw`` and ``rows`` may be in the memory of the host.
    """

    raw: Tensor
    rows: Tensor | None
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.raw if self.rows is None else self.rows)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Which of the samples, and their standardized features."""
        size, kind = _block_size(self.raw, self.device), self.raw.dtype
        mean, scale = self.mean.to(kind), self.std.reciprocal().to(kind)
        for start in range(0, len(self), size):
            block = slice(start, start + size)
            if self.rows is None:
                yield block, self.raw[block]
            else:
                yield block, self.raw[self.rows[block]].to(self.device).sub_(mean).mul_(scale)

    def kept(self) -> "Standardized":
        """The same, in the memory of a GPU if that has room for all; else as it is."""
        elements = len(self) * self.raw.shape[1]
        if self.device.type != "cuda" or elements * self.raw.element_size() > KEPT_SHARE * free_bytes(self.device):
            return self
        whole = self.raw.new_empty(len(self), self.raw.shape[1], device=self.device)
        for rows, block in self.blocks():
            whole[rows] = block
        return unchanged(whole)


def free_bytes(device: torch.device) -> int:
    """What a GPU's memory has left."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def standardize(features: Tensor, rows: Tensor, device: torch.device | None = None) -> Standardized:
    """``rows`` [n] of ``features`` [N, d], by the mean and the deviation of all N; computed on ``device``, by default
    where the features are."""
    return Standardized(features, rows, *standardization(features, device))


def unchanged(features: Tensor) -> Standardized:
    """All of ``features`` [n, d], as they are."""
    width = features.shape[1]
    return Standardized(features, None, features.new_zeros(width), features.new_ones(width))


def _block_size(features: Tensor, device: torch.device) -> int:
    elements = BLOCK_ELEMENTS * (ON_GPU if device.type == "cuda" else 1)
    return max(1, elements // max(1, features.shape[1]))


def l2_values(count: int) -> list[float]:
    """``count`` log-spaced values, from strong to weak, so that each solution is a good start for the next."""
    return [float(value) for value in np.geomspace(STRONGEST_L2, WEAKEST_L2, count)]


def standardization(features: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d] of each feature, float64; 1 for a feature that is constant but for rounding."""
    device = device or features.device
    blocks = torch.split(features, _block_size(features, device))
    mean = torch.stack([block.to(device).double().sum(dim=0) for block in blocks]).sum(dim=0) / len(features)
    squares = torch.stack([(block.to(device).double() - mean).square().sum(dim=0) for block in blocks]).sum(dim=0)
    std = (squares / len(features)).sqrt()
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0)


def regularization_path(features: Tensor, labels: Tensor, classes: int, l2: Sequence[float]) -> list[LinearHead]:
    """The optimum for each value of ``l2``, each started from the one before.

    ``features`` [n, d] in float32 or float64, ``labels`` int64 [n], or bool [n, classes] where a sample may have
    several. A class without samples is never the answer.
    """
    everything = torch.ones(1, len(features), dtype=torch.bool)
    return [head for (head,) in regularization_paths(unchanged(features), labels, classes, l2, everything)]


def regularization_paths(
    features: Standardized, labels: Tensor, classes: int, l2: Sequence[float], seen: Tensor
) -> Iterator[list[LinearHead]]:
    """The same for several problems at once: each row of ``seen``, bool [m, n], says which samples one of them has.

    Yields the m optima of each value.
    """
    inputs = _turned(features)
    for coefficients in _path(inputs, labels, classes, l2, seen, GRADIENT_TOLERANCE):
        yield [inputs.unturned(one) for one in coefficients]


def _path(
    inputs: "_Inputs", labels: Tensor, classes: int, l2: Sequence[float], seen: Tensor, tolerance: float
) -> Iterator[Tensor]:
    """Coefficients [m, classes, r + 1] for each value."""
    weights = _weights(inputs, seen)
    coefficients = inputs.variances.new_zeros(len(seen), classes, len(inputs.variances) + 1)
    for value in l2:
        coefficients = _minimize(inputs, labels, weights, value, coefficients, tolerance)
        yield coefficients


def _weights(inputs: "_Inputs", seen: Tensor) -> Tensor:
    """Of each sample in the mean loss of each problem, [m, n]."""
    weights = seen.to(inputs.variances.device, inputs.variances.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


def select_and_fit(
    features: Standardized, labels: Tensor, classes: int, l2: Sequence[float], held: Tensor
) -> tuple[float, LinearHead]:
    """The value of ``l2`` with the lowest cross-entropy on held-out samples, and the optimum on all samples with it;
    the first value if nothing is held out.

    Each row of ``held``, bool [m, n], are samples that are predicted from all others. Not by accuracy: on 80 labels it
    moves in steps of 1.25 points and is the same over decades of regularization. Values from strong to weak; those far
    below the best so far are not tried. What is chosen is fitted more exactly, from the mean of what the folds had.
    """
    held = held[held.any(dim=1) & ~held.all(dim=1)].to(features.device)  # else there are fewer samples than folds
    labels = labels.to(features.device)
    inputs, least, chosen = _turned(features), math.inf, l2[0]
    start = inputs.variances.new_zeros(1, classes, len(inputs.variances) + 1)
    path = _path(inputs, labels, classes, l2, ~held, CHOOSING_TOLERANCE) if len(held) else ()
    for value, coefficients in zip(l2, path, strict=False):
        loss = _held_out_loss(features, labels, [inputs.unturned(one) for one in coefficients], held)
        if loss < least:
            least, chosen, start = loss, value, coefficients.mean(dim=0, keepdim=True)
        if value < 1.5 * GIVEN_UP * chosen:
            break
    everything = _weights(inputs, torch.ones(1, len(features), dtype=torch.bool))
    [best] = _minimize(inputs, labels, everything, chosen, start, GRADIENT_TOLERANCE)
    return chosen, inputs.unturned(best)


def _held_out_loss(features: Standardized, labels: Tensor, heads: Sequence[LinearHead], held: Tensor) -> float:
    total = 0.0
    for rows, block in features.blocks():
        for head, out in zip(heads, held[:, rows], strict=True):
            total += float(_cross_entropy(head.logits(block[out]), labels[rows][out]))
    return total


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over the samples."""
    if labels.dim() == 1:
        return cross_entropy(logits, labels, reduction="sum")
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")


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


@dataclass(frozen=True)
class _Inputs:
    """Features, less their ``center`` [d], along principal ``axes`` [d, r] with these ``variances`` [r].

    The ``samples`` are turned already, or the weights have to be (``turning``).
    """

    samples: Standardized
    axes: Tensor
    variances: Tensor
    center: Tensor
    turning: bool

    def unturned(self, coefficients: Tensor) -> LinearHead:
        """The head on standardized features, of ``coefficients`` [classes, r + 1] along the axes and of the bias."""
        weight = self.axes @ coefficients[:, :-1].T
        return LinearHead(weight, coefficients[:, -1] - self.center @ weight)


def _turned(features: Standardized) -> _Inputs:
    """Turned once where that is a small copy. Of many samples all axes are kept: their directions only have to be good
    enough to start from."""
    kind, width = features.raw.dtype, features.raw.shape[1]
    if len(features) * width <= TURNED_ELEMENTS or len(features) < width:
        whole = torch.cat([block for _, block in features.blocks()])
        center = whole.mean(dim=0)
        axes = principal_axes(whole - center)
        turned = (whole - center) @ axes
        return _Inputs(unchanged(turned), axes, turned.square().mean(dim=0), center, turning=False)
    center = torch.zeros(width, dtype=torch.float64, device=features.device)
    for _, block in features.blocks():
        center += block.double().sum(dim=0)
    center /= len(features)
    samples = Standardized(features.raw, features.rows, features.mean + center * features.std, features.std).kept()
    gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for _, block in samples.blocks():
        gram += block.T @ block
    values, vectors = torch.linalg.eigh(gram / len(features))
    return _Inputs(samples, vectors.to(kind), values.clamp_min(0).to(kind), center.to(kind), turning=True)


def _minimize(inputs: _Inputs, labels: Tensor, weights: Tensor, l2: float, start: Tensor, tolerance: float) -> Tensor:
    """Coefficients [m, classes, r + 1] that minimize the penalized cross-entropy for each row of ``weights`` [m, n].

    The problems have nothing in common, so the minimum of their sum is that of each.
    """
    one = inputs.variances.new_ones(1)  # the bias, as one more axis, without penalty
    penalty = torch.cat([torch.full_like(inputs.variances, l2), one - one])
    scale = (torch.cat([inputs.variances, one]) / 2 + penalty).rsqrt()  # of sigmoids the bound is half of that
    scaled_penalty = penalty * scale.square()
    variable = (start / scale).requires_grad_()
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [variable],
        max_iter=MAX_ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=tolerance,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def objective() -> float:
        loss, slope = _loss_and_slope(inputs, labels, weights, variable * scale)
        variable.grad = slope * scale + variable * scaled_penalty
        return loss + float((variable.square() * scaled_penalty).sum()) / 2

    optimizer.step(objective)
    return variable.detach() * scale


def _loss_and_slope(inputs: _Inputs, labels: Tensor, weights: Tensor, coefficients: Tensor) -> tuple[float, Tensor]:
    """The weighted cross-entropy, summed over problems, and its gradient by ``coefficients`` [m, classes, r + 1]."""
    flat = coefficients.flatten(0, 1)
    matrix, bias = flat[:, :-1].T, flat[:, -1]
    matrix = inputs.axes @ matrix if inputs.turning else matrix
    loss, slope, slope_of_bias = 0.0, torch.zeros_like(matrix), torch.zeros_like(bias)
    for rows, block in inputs.samples.blocks():
        logits = torch.addmm(bias, block, matrix).view(len(block), *coefficients.shape[:2])
        part, difference = _cross_entropy_and_slope(logits, labels[rows], weights[:, rows].T)
        difference = difference.flatten(1)
        loss += part
        slope.addmm_(block.T, difference)
        slope_of_bias += difference.sum(dim=0)
    slope = inputs.axes.T @ slope if inputs.turning else slope
    return loss, torch.cat([slope.T, slope_of_bias[:, None]], dim=1).view_as(coefficients)


def _cross_entropy_and_slope(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """Of ``logits`` [n, m, classes] with ``weights`` [n, m]: the sum, and its gradient, which takes their place."""
    if labels.dim() == 1:
        chosen = labels[:, None, None].expand(-1, logits.shape[1], 1)
        normalizer = logits.logsumexp(dim=2, keepdim=True)
        loss = ((normalizer - logits.gather(2, chosen))[..., 0] * weights).sum()
        slope = logits.sub_(normalizer).exp_()
        slope.scatter_add_(2, chosen, slope.new_full((), -1.0).expand(chosen.shape))
    else:
        truth = labels[:, None].to(logits.dtype)
        loss = ((softplus(logits) - logits * truth).sum(dim=2) * weights).sum()
        slope = logits.sigmoid_().sub_(truth)
    return float(loss), slope.mul_(weights[..., None])
