"""Equation 2 of SimCLRv2 and its gradient, against sums written out in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from simclr_core.distillation.objective import FromTeacher, direction_loss, distillation_loss


def written_out(
    logits: np.ndarray, targets: np.ndarray, labels: list[int] | None, temperature: float, alpha: float
) -> float:
    """The formula of the paper, image by image and class by class."""

    def softmax(row: np.ndarray, temperature: float) -> list[float]:
        powers = [math.exp(float(one) / temperature) for one in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for number, (said, taught) in enumerate(zip(logits, targets, strict=True)):
        pairs = zip(softmax(taught, temperature), softmax(said, temperature), strict=True)
        total += alpha * -sum(right * math.log(answer) for right, answer in pairs)
        if labels is not None and labels[number] >= 0:
            total += (1 - alpha) * -math.log(softmax(said, 1.0)[labels[number]])
    return total / len(logits)


@pytest.mark.parametrize(
    ("labels", "temperature", "alpha"),
    [(None, 1.0, 1.0), (None, 0.1, 1.0), (None, 4.0, 1.0), ([2, -1, 0, -1, 1], 1.0, 0.3), ([-1] * 5, 2.0, 0.5)],
)
def test_the_loss_and_its_gradient_are_those_of_equation_2(
    labels: list[int] | None, temperature: float, alpha: float
) -> None:
    random = np.random.default_rng(3)
    logits, targets = random.normal(0, 1, (2, 5, 3))
    known = None if labels is None else torch.tensor(labels)
    given = torch.tensor(logits, requires_grad=True)
    loss = distillation_loss(given, torch.tensor(targets), known, temperature, alpha)
    assert loss.item() == pytest.approx(written_out(logits, targets, labels, temperature, alpha), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, given)
    for place in np.ndindex(logits.shape):
        moved = [logits.copy(), logits.copy()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        up, down = (written_out(one, targets, labels, temperature, alpha) for one in moved)
        assert gradient[place].item() == pytest.approx((up - down) / 2e-6, abs=1e-8)


def test_the_gradient_is_the_difference_of_the_probabilities_over_the_temperature() -> None:
    """Which is zero where the student says what the teacher says, and 10 times as long at a temperature of 0.1."""
    logits, targets = torch.randn(2, 4, 6, dtype=torch.float64)
    for temperature in (0.1, 1.0):
        given = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distillation_loss(given, targets, temperature=temperature), given)
        difference = (logits / temperature).softmax(1) - (targets / temperature).softmax(1)
        torch.testing.assert_close(gradient, difference / temperature / 4)
    same = targets.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(same, targets), same)
    assert gradient.abs().max() < 1e-15


def test_the_direction_of_a_vector_counts_and_its_length_does_not() -> None:
    mapped, targets = torch.randn(2, 7, 5, dtype=torch.float64)
    cosine = nn.functional.cosine_similarity(mapped, targets)
    torch.testing.assert_close(direction_loss(mapped, targets), (2 - 2 * cosine).mean())
    torch.testing.assert_close(direction_loss(3 * mapped, targets / 5), direction_loss(mapped, targets))


def test_the_teacher_sees_the_view_of_the_student_and_gets_no_gradient() -> None:
    seen: list[torch.Tensor] = []
    teacher, student = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    teacher.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    views = torch.randn(6, 4, dtype=torch.float64)
    outcome = FromTeacher(teacher, distillation_loss, torch.float32).backward(student, views)
    assert seen[0] is views
    assert teacher.weight.grad is None
    assert student.weight.grad is not None
    torch.testing.assert_close(outcome.loss, distillation_loss(student(views).float(), teacher(views).float()))
    assert not outcome.first.requires_grad
    torch.testing.assert_close(outcome.second, teacher(views).float())
