"""The search for a minimum against closed forms and scipy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as search
from torch import Tensor

from simclr_core.evaluation.regression.lbfgs import Objective, Point, minimize


class Counted:
    """An objective from a function of autograd, and how often it was asked."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.asked = 0
        self._function = function

    def __call__(self, at: Tensor) -> tuple[float, Tensor]:
        self.asked += 1
        place = at.detach().clone().requires_grad_()
        value = self._function(place)
        (gradient,) = torch.autograd.grad(value, place)
        return value.item(), gradient


def begin(objective: Objective, at: Tensor) -> Point:
    return Point(at, *objective(at))


def bowl(curvatures: Tensor) -> Counted:
    """Its minimum is 0, where all coordinates are 1."""
    return Counted(lambda at: (curvatures * (at - 1).square()).sum() / 2)


@pytest.mark.parametrize("steepest", [0.01, 1.0, 1e4], ids=["flat", "unit", "steep"])
def test_a_quadratic_function_has_its_minimum_where_it_is_solved(steepest: float) -> None:
    objective = bowl(torch.linspace(0.1, 1, 12, dtype=torch.float64) * steepest)
    found = minimize(objective, begin(objective, torch.zeros(3, 4, dtype=torch.float64).flatten()), 1e-6)
    assert found.gradient.norm() <= 1e-6
    torch.testing.assert_close(found.at, torch.ones(12, dtype=torch.float64), atol=1e-2, rtol=0)


def test_a_hessian_near_1_takes_about_one_evaluation_a_step() -> None:
    objective = bowl(torch.linspace(0.3, 1, 50, dtype=torch.float64))
    minimize(objective, begin(objective, torch.zeros(50, dtype=torch.float64)), 1e-5)
    assert objective.asked <= 15


def test_a_convex_function_has_the_minimum_that_scipy_finds() -> None:
    random = torch.Generator().manual_seed(0)
    lines = torch.randn(60, 8, dtype=torch.float64, generator=random)
    offsets = torch.randn(60, dtype=torch.float64, generator=random)

    def function(at: Tensor) -> Tensor:
        return (lines @ (30 * at) + offsets).logsumexp(dim=0) + at.square().sum() / 2

    def as_numbers(at: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = Counted(function)(torch.from_numpy(at))
        return value, gradient.numpy()

    objective = Counted(function)
    found = minimize(objective, begin(objective, torch.full((8,), 5.0, dtype=torch.float64)), 1e-6)
    expected = search(as_numbers, np.zeros(8), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert found.value == pytest.approx(expected.fun, rel=1e-9)


def test_a_good_start_comes_back_without_an_evaluation() -> None:
    objective = bowl(torch.ones(4))
    start = begin(objective, torch.ones(4) + 1e-4)
    assert minimize(objective, start, 1e-3) is start
    assert objective.asked == 1


def test_iterations_are_bounded() -> None:
    objective = bowl(torch.logspace(0, -6, 30, dtype=torch.float64))
    minimize(objective, begin(objective, torch.zeros(30, dtype=torch.float64)), 0.0, iterations=5)
    assert objective.asked <= 1 + 2 * 5


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_where_nothing_goes_down_the_start_is_the_end(value: float) -> None:
    """As when rounding is all that is left, or a step overflows."""
    start = Point(torch.zeros(3), 0.0, torch.ones(3))
    assert minimize(lambda at: (value, torch.full_like(at, -value)), start, 1e-6) is start


def test_rounding_ends_the_descent() -> None:
    objective = Counted(lambda at: 1000 + (at.float() - 1).square().sum() * 1e-6)
    start = begin(objective, torch.zeros(5))
    assert minimize(objective, start, 0.0).value <= start.value
    assert objective.asked < 60
