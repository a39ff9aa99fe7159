"""L-BFGS for convex functions (Liu and Nocedal 1989, "On the limited memory BFGS method for large scale optimization").

For functions whose Hessian is near 1 in the coordinates they are given in, and that cost a pass over all samples each
time. torch's own search begins with a step of 1 / |gradient|_1, which in a million coordinates takes several passes to
grow, and evaluates once more where the search before it ended.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HISTORY = 10  # steps that a direction is made of; with torch's 100 its arithmetic takes longer than the loss
MAX_ITERATIONS = 200  # reached only by separable data with next to no penalty, where the optimum is far away
MAX_TRIES = 12  # lengths of one step
FLATTER = 0.9  # what a step leaves of the slope along it, at most: the curvature condition of Wolfe 1969
ROUNDING = 1e-6  # of a value: what float32 may add to it
STALLED = 1e-10  # of a value: a step that gains less is the last one

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""Value and gradient at a place."""


@dataclass(frozen=True)
class Point:
    """``value`` and ``gradient`` of a function ``at`` a place."""

    at: Tensor
    value: float
    gradient: Tensor


def minimize(objective: Objective, start: Point, tolerance: float, iterations: int = MAX_ITERATIONS) -> Point:
    """Where the gradient is no longer than ``tolerance``, or where rounding or ``iterations`` end the descent.

    Where the Hessian is 1, the value is then at most ``tolerance`` ** 2 / 2 above the minimum, whatever the number of
    coordinates. A start that is good enough comes back as it is, without an evaluation.
    """
    here, history = start, deque[tuple[Tensor, Tensor, float]](maxlen=HISTORY)
    for _ in range(iterations):
        if float(here.gradient.norm()) <= tolerance:
            break
        there = _step(objective, here, _direction(here.gradient, history))
        if there is None:
            if not history:
                break
            history.clear()  # and once more along the gradient
            continue
        moved, changed = there.at - here.at, there.gradient - here.gradient
        curvature = _dot(moved, changed)
        if curvature > 0:
            history.append((moved, changed, curvature))
        gained, here = here.value - there.value, there
        if gained <= STALLED * abs(here.value):
            break
    return here


def _direction(gradient: Tensor, history: deque[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Downward, by the curvature of the last steps: the two loops of Nocedal 1980."""
    direction, shares = -gradient, list[float]()
    for moved, changed, curvature in reversed(history):
        share = _dot(moved, direction) / curvature
        direction = direction.sub_(changed, alpha=share)
        shares.append(share)
    if history:
        _, changed, curvature = history[-1]
        direction *= curvature / _dot(changed, changed)
    for (moved, changed, curvature), share in zip(history, reversed(shares), strict=True):
        direction = direction.add_(moved, alpha=share - _dot(changed, direction) / curvature)
    return direction


def _step(objective: Objective, here: Point, direction: Tensor) -> Point | None:
    """The first length, 1 if it serves, that goes down and leaves less of the slope; None if none does.

    The slope of a convex function rises along a line, so its sign says on which side the minimum is.
    """
    slope = _dot(here.gradient, direction)
    if not slope < 0:
        return None
    low, high, length = (0.0, slope), None, 1.0
    for _ in range(MAX_TRIES):
        at = torch.add(here.at, direction, alpha=length)
        value, gradient = objective(at)
        steepness = _dot(gradient, direction)
        goes_down = value <= here.value + ROUNDING * abs(here.value)
        if goes_down and abs(steepness) <= -FLATTER * slope:
            return Point(at, value, gradient)
        if goes_down and steepness < 0:
            low = (length, steepness)
        else:
            high = (length, steepness)
        length = _between(low, high) if high else _beyond(low, slope)
    return None


def _between(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where the slope would be zero if it rose evenly, a tenth of the interval from its ends at least."""
    (near, falling), (far, rising) = low, high
    share = falling / (falling - rising) if math.isfinite(rising) and rising > 0 else 0.1
    return near + (far - near) * min(max(share, 0.1), 0.9)


def _beyond(low: tuple[float, float], slope: float) -> float:
    """The same, for a slope that has risen from ``slope`` and is not zero yet: two to ten times as far."""
    length, falling = low
    times = slope / (slope - falling) if falling > slope else 10.0
    return length * min(max(times, 2.0), 10.0)


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten(), other.flatten()))
