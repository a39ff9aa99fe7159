"""What a student minimizes: forward, loss and backward of a step, on the view that the teacher sees too.

It is equation 2 of SimCLRv2 (Chen et al. 2020b, arXiv 2006.10029), with the temperature t in both softmaxes, and the
weights of its section 3 where labels have a part in it:

    loss = a · 1/n sum_x -sum_y P_T(y | x; t) log P_S(y | x; t)  +  (1 - a) · 1/n sum_(labeled x, y) -log P_S(y | x; 1)

Both sums are over the n images of the batch, so a labeled one counts as much as what the teacher says of one image. The
authors' notebook multiplies the first by t², which the paper does not; LARS takes no notice of it at a = 1.

A teacher that is an encoder has vectors in place of classes. Then a linear map of the student's h learns their
direction: the squared distance of the two on the unit sphere, 2 - 2 cos.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize

from simclr_core.loss.momentum_queue import mean_over_processes
from simclr_core.loss.nt_xent import own_share
from simclr_core.loss.objective import Outcome, Views, as_it_is, by_size, project
from simclr_core.stopwatch import part

UNLABELED = -1

Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""The loss, by what the student says [n, k], what the teacher says [n, k], and the labels [n] if they have a part."""


class FromTeacher:
    """An ``Objective``: the student's outputs for one view of each image come near to those of ``teacher``.

    ``teacher`` takes the same normalized views, and has no part in the gradient.
    """

    def __init__(
        self,
        teacher: nn.Module,
        compare: Compare,
        precision: torch.dtype,
        scaled: Callable[[Tensor], Tensor] = as_it_is,
    ) -> None:
        """``scaled`` makes of the loss what is back-propagated: see ``precision.LossScaler``."""
        self._teacher = teacher
        self._compare = compare
        self._precision = precision
        self._scaled = scaled

    def backward(self, model: nn.Module, views: Views, marks: Tensor | None = None, /) -> Outcome:
        """``marks`` are the labels of the images of all processes, -1 for none; None: labels have no part."""
        with part("forward"):
            (seen,) = by_size(views)
            with torch.no_grad():
                targets = project(self._teacher, seen, self._precision).float()
            outputs = project(model, seen, self._precision).float()
            labels = None if marks is None else own_share(marks, len(outputs))
            loss = self._compare(outputs, targets, labels)
        with part("backward"):
            torch.autograd.backward(self._scaled(loss))
        return Outcome(mean_over_processes(loss.detach()), outputs.detach(), targets)

    def update(self) -> None:
        """Nothing lasts from one step to the next."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        assert not tensors, sorted(tensors)


def distillation_loss(
    logits: Tensor, targets: Tensor, labels: Tensor | None = None, temperature: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """The loss above, a mean over n images. ``logits`` and ``targets`` [n, classes] are of student and teacher,
    ``labels`` int64 [n], -1 for none; None: ``alpha`` is 1.

    Examples:
        >>> sure, unsure = torch.tensor([[4.0, 0.0]]), torch.zeros(1, 2)
        >>> round(distillation_loss(unsure, sure).item(), 4)  # log 2
        0.6931
        >>> round(distillation_loss(sure, sure, temperature=0.1).item(), 4)
        0.0
        >>> round(distillation_loss(unsure, sure, torch.tensor([-1]), alpha=0.5).item(), 4)
        0.3466
    """
    assert logits.shape == targets.shape, (logits.shape, targets.shape)
    answers = (targets / temperature).softmax(dim=1)
    loss = -(answers * log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()
    if labels is None:
        return loss
    right = cross_entropy(logits, labels, ignore_index=UNLABELED, reduction="sum") / len(logits)
    return alpha * loss + (1 - alpha) * right


def direction_loss(mapped: Tensor, targets: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mean squared distance of the rows of ``mapped`` and ``targets`` [n, d] on the unit sphere, 0 to 4.

    Examples:
        >>> direction_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
        2.0
    """
    assert labels is None, "an encoder gives no classes"
    return (normalize(mapped) - normalize(targets)).square().sum(dim=1).mean()
