"""Logistic regression with an L2 sweep: the linear probe on cached features (SimCLR, section B.8).

minimize over W, b:  mean cross-entropy of softmax(x W + b)  +  l2 / 2 * |W|^2        (the bias is not penalized)

Where images have several labels, it is one logistic regression for each class against the rest: the cross-entropy is
then the sum over the classes of that of the sigmoid, and each column of W is a problem apart from the others.

L-BFGS needs hundreds of iterations on features whose axes differ in scale, and about ten in the coordinates used here.
The problem does not change when the features are shifted or rotated, so it is solved along their principal axes, where
the Hessian at W = 0 is diagonal: for class c and axis j it is f_c (1 - f_c) C / (C - 1) var_j + l2, with the share f_c
of the samples; for sigmoids without the factor of C. Each coordinate is then scaled so that it is 1. Elsewhere the
mean of p_c (1 - p_c) is smaller, since that of p_c stays near f_c; Bohning's bound (Bohning 1992, "Multinomial logistic
regression algorithm"), which holds for any p, has 1 / 2 in place of f_c, far too much where classes are many. Axes
without variance drop out: 80 labeled images of 2,352 pixels are a problem of 79 dimensions.

Problems on the same samples, such as those of the folds of a cross-validation, are minimized together: on few samples
what takes time is the number of calls, and on many it is reading the features. The gradient is written out and summed
block by block, so that no copy of the features is needed, nor of what the classifiers say of them. From one penalty to
the next the loss and its gradient are known where the search begins: strong penalties cost no pass at all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from simclr_core.evaluation.regression.lbfgs import Point, minimize
from simclr_core.evaluation.regression.standardized import Standardized, unchanged

STRONGEST_L2, WEAKEST_L2 = 1e5, 1e-6  # the paper's range, section B.8
GRADIENT_TOLERANCE = 3e-5  # its length, in coordinates where the Hessian is near 1: 1e-9 of cross-entropy
CHOOSING_TOLERANCE = 1e-2  # the same while a penalty is chosen, 1e-4 of cross-entropy: neighbors differ by more
TURNED_ELEMENTS = 2**24  # up to here the features are turned once, which takes a copy; above, the weights are
SAMPLES_PER_AXIS = 8  # above: the axes are those of this number, since they only have to be good enough to start from
GIVEN_UP = 0.1  # of the best penalty so far: below, none is tried once the loss has risen, where searches take longest
RAREST = 1e-6  # share of a class that does not occur, of which the bias would have no end
RISEN = 1e-3  # of cross-entropy: what a search that ends early can add is less


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


def regularization_path(
    features: Tensor, labels: Tensor, classes: int, l2: Sequence[float], tolerance: float = GRADIENT_TOLERANCE
) -> list[LinearHead]:
    """The optimum for each value of ``l2``, each started from the one before.

    ``features`` [n, d] in float32 or float64, ``labels`` int64 [n], or bool [n, classes] where a sample may have
    several. A class without samples is never the answer. ``tolerance`` is how long the gradient may be (``minimize``).
    """
    everything = torch.ones(1, len(features), dtype=torch.bool)
    paths = regularization_paths(unchanged(features), labels, classes, l2, everything, tolerance)
    return [head for (head,) in paths]


def regularization_paths(
    features: Standardized,
    labels: Tensor,
    classes: int,
    l2: Sequence[float],
    seen: Tensor,
    tolerance: float = GRADIENT_TOLERANCE,
) -> Iterator[list[LinearHead]]:
    """The same for several problems at once: each row of ``seen``, bool [m, n], says which samples one of them has.

    Yields the m optima of each value.
    """
    inputs = _turned(features)
    for coefficients in _path(inputs, _Targets.of(labels, classes, seen), l2, tolerance):
        yield [inputs.unturned(one) for one in coefficients]


def select_and_fit(
    features: Standardized, labels: Tensor, classes: int, l2: Sequence[float], held: Tensor
) -> tuple[float, LinearHead]:
    """The value of ``l2`` with the lowest cross-entropy on held-out samples, and the optimum on all samples with it;
    the first value if nothing is held out.

    Each row of ``held``, bool [m, n], are samples that are predicted from all others. Not by accuracy: on 80 labels it
    moves in steps of 1.25 points and is the same over decades of regularization. Values from strong to weak; once the
    loss has risen far below the best so far, none is tried. What is chosen is fitted more exactly, from the mean of
    what the folds had.
    """
    held = held[held.any(dim=1) & ~held.all(dim=1)].to(features.device)  # else there are fewer samples than folds
    labels = labels.to(features.device)
    inputs = _turned(features)
    everything = _Targets.of(labels, classes, torch.ones(1, len(features), dtype=torch.bool))
    chosen, start = l2[0], everything.start(inputs)
    if len(held):
        chosen, coefficients = _select(inputs, features, labels, classes, l2, held)
        start = coefficients.mean(dim=0, keepdim=True)
    best = _minimize(inputs, everything, chosen, _evaluate(inputs, everything, start), GRADIENT_TOLERANCE)
    return chosen, inputs.unturned(best.at[0])


def _select(
    inputs: "_Inputs", features: Standardized, labels: Tensor, classes: int, l2: Sequence[float], held: Tensor
) -> tuple[float, Tensor]:
    """The value with the lowest loss on what is held out, and its coefficients [m, classes, r + 1]."""
    asked, fitted, known, seen = held.any(dim=0), inputs, labels, ~held
    if len(held) == 1:  # many samples: those that are held out are not looked at for nothing
        fitted, known, seen = inputs.of(seen[0]), labels[seen[0]], seen[:, seen[0]]
    targets = _Targets.of(known, classes, seen)
    path = _path(fitted, targets, l2, CHOOSING_TOLERANCE)
    least, found = math.inf, (l2[0], targets.start(inputs))
    before: Tensor | None = None
    for value, coefficients in zip(l2, path, strict=False):
        if coefficients is before:  # nothing to learn under this penalty either: the loss is the same
            continue
        heads = [inputs.unturned(one) for one in coefficients]
        loss = _held_out_loss(features.of(asked), labels[asked], heads, held[:, asked])
        if loss < least:
            least, found = loss, (value, coefficients)
        if value < 1.5 * GIVEN_UP * found[0] and loss > least + RISEN:
            break
        before = coefficients
    return found


def _held_out_loss(features: Standardized, labels: Tensor, heads: Sequence[LinearHead], held: Tensor) -> float:
    """The mean over what is held out."""
    total = 0.0
    for rows, block in features.blocks():
        for head, out in zip(heads, held[:, rows], strict=True):
            total += float(_cross_entropy(head.logits(block[out]), labels[rows][out]))
    return total / float(held.sum())


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

    def of(self, seen: Tensor) -> Self:
        """The samples for which ``seen``, bool [n], is true."""
        samples = self.samples.of(seen) if self.turning else unchanged(self.samples.raw[seen])
        return replace(self, samples=samples)

    def unturned(self, coefficients: Tensor) -> LinearHead:
        """The head on standardized features, of ``coefficients`` [classes, r + 1] along the axes and of the bias."""
        weight = self.axes @ coefficients[:, :-1].T
        return LinearHead(weight, coefficients[:, -1] - self.center @ weight)


@dataclass(frozen=True)
class _Targets:
    """What is to be learned of samples: ``labels`` int64 [n] or bool [n, classes], how often each class occurs among
    them, ``shares`` [classes] between 0 and 1, and of m problems which samples each of them has, ``seen`` bool [m, n].
    """

    labels: Tensor
    shares: Tensor
    seen: Tensor

    @classmethod
    def of(cls, labels: Tensor, classes: int, seen: Tensor) -> Self:
        """Of a class without samples the share is not 0: one sample more is counted of each."""
        if labels.dim() == 1:
            counts = labels.new_zeros(classes).scatter_add_(0, labels, torch.ones_like(labels))
        else:
            counts = labels.sum(dim=0)
        return cls(labels, (counts + 1) / (len(labels) + classes + 1), seen.to(labels.device))

    @property
    def is_single(self) -> bool:
        """Whether a sample has one label."""
        return self.labels.dim() == 1

    def start(self, inputs: _Inputs) -> Tensor:
        """Coefficients [m, classes, r + 1] that say how often each class occurs in each problem: the optimum without
        weights. With shares of all samples, a fold that lacks one of a class would seem to know of it."""
        found = inputs.variances.new_zeros(len(self.seen), len(self.shares), len(inputs.variances) + 1)
        shares = torch.stack([self._count(row) / row.sum() for row in self.seen]).clamp(RAREST, 1 - RAREST)
        found[..., -1] = shares.log() if self.is_single else shares.logit()
        return found

    def _count(self, seen: Tensor) -> Tensor:
        """How many of the samples have each class, [classes]."""
        if self.is_single:
            counts = torch.zeros(len(self.shares), dtype=torch.float64, device=seen.device)
            return counts.index_add_(0, self.labels, seen.double())
        return (self.labels & seen[:, None]).sum(dim=0).double()

    def curvature(self, inputs: _Inputs) -> Tensor:
        """The diagonal [classes, r + 1] of the Hessian of the loss where all weights are 0."""
        classes = len(self.shares)
        of_class = self.shares * (1 - self.shares) * (classes / max(1, classes - 1) if self.is_single else 1.0)
        of_axis = torch.cat([inputs.variances, inputs.variances.new_ones(1)])
        return of_class[:, None].to(of_axis) * of_axis


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
    features = features.of(torch.ones(len(features), dtype=torch.bool))  # with rows, which are shifted
    few = features.spread(SAMPLES_PER_AXIS * width)
    center = torch.zeros(width, dtype=torch.float64, device=features.device)
    for _, block in few.blocks():
        center += block.sum(dim=0)
    center /= len(few)
    centered = replace(features, mean=features.mean + center * features.std)
    gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for _, block in replace(few, mean=centered.mean).blocks():
        gram += block.T @ block
    values, vectors = torch.linalg.eigh(gram / len(few))
    return _Inputs(centered.kept(), vectors.to(kind), values.clamp_min(0).to(kind), center.to(kind), turning=True)


def _path(inputs: _Inputs, targets: _Targets, l2: Sequence[float], tolerance: float) -> Iterator[Tensor]:
    """Coefficients [m, classes, r + 1] for each value; the same object again where they stay."""
    here = _evaluate(inputs, targets, targets.start(inputs))
    for value in l2:
        here = _minimize(inputs, targets, value, here, tolerance)
        yield here.at


def _minimize(inputs: _Inputs, targets: _Targets, l2: float, start: Point, tolerance: float) -> Point:
    """From coefficients [m, classes, r + 1], with the loss and its gradient there, to those that minimize the penalized
    loss of each problem; loss and gradient are without the penalty.

    The problems have nothing in common, so the minimum of their sum is that of each.
    """
    penalty = torch.full_like(start.at[0], l2)
    penalty[:, -1] = 0  # the bias
    scale = (targets.curvature(inputs) + penalty).rsqrt()
    scaled_penalty = penalty * scale.square()

    def penalized(at: Tensor, loss: float, slope: Tensor) -> Point:
        pulls = at * scaled_penalty
        return Point(at, loss + float((pulls * at).sum()) / 2, slope * scale + pulls)

    def objective(at: Tensor) -> tuple[float, Tensor]:
        found = _evaluate(inputs, targets, at * scale)
        scaled = penalized(at, found.value, found.gradient)
        return scaled.value, scaled.gradient

    begin = penalized(start.at / scale, start.value, start.gradient)
    end = minimize(objective, begin, tolerance)
    if end is begin:
        return start
    pulls = end.at * scaled_penalty
    return Point(end.at * scale, end.value - float((pulls * end.at).sum()) / 2, (end.gradient - pulls) / scale)


def _evaluate(inputs: _Inputs, targets: _Targets, coefficients: Tensor) -> Point:
    """The cross-entropy, the mean over the samples of each problem, summed over problems, and its gradient by
    ``coefficients`` [m, classes, r + 1]."""
    weights = targets.seen.to(coefficients.dtype)
    weights /= weights.sum(dim=1, keepdim=True)
    flat = coefficients.flatten(0, 1)
    matrix, bias = flat[:, :-1].T, flat[:, -1]
    matrix = inputs.axes @ matrix if inputs.turning else matrix
    loss, slope, slope_of_bias = 0.0, torch.zeros_like(matrix), torch.zeros_like(bias)
    for rows, block in inputs.samples.blocks():
        logits = torch.addmm(bias, block, matrix).view(len(block), *coefficients.shape[:2])
        part, difference = _cross_entropy_and_slope(logits, targets.labels[rows], weights[:, rows].T)
        difference = difference.flatten(1)
        loss += part
        slope.addmm_(block.T, difference)
        slope_of_bias += difference.sum(dim=0)
    slope = inputs.axes.T @ slope if inputs.turning else slope
    return Point(coefficients, loss, torch.cat([slope.T, slope_of_bias[:, None]], dim=1).view_as(coefficients))


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
