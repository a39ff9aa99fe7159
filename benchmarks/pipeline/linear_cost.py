"""A cost as a sum: so much always, so much for each thing that is new, and so much for each that was there before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Coefficient:
    """By least squares, with the bounds of its interval of 95 %."""

    value: float
    low: float
    high: float


def fit(units: Sequence[ArrayLike], costs: ArrayLike) -> list[Coefficient]:
    """What is always paid, then what each unit costs.

    Args:
        units: for each kind, how many there were in each observation [n]; more observations than kinds by two.
        costs: of the observations [n].

    Raises:
        ValueError: the observations cannot tell the kinds apart, or are too few.
    """
    cost = np.asarray(costs, float)
    counts = np.column_stack([np.ones_like(cost), *(np.asarray(one, float) for one in units)])
    scale = np.maximum(np.abs(counts).max(axis=0), 1.0)  # counts of millions next to ones
    design = counts / scale
    spare = len(cost) - design.shape[1]
    if spare < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"{len(cost)} observations do not determine {design.shape[1]} coefficients")
    solved, *_ = np.linalg.lstsq(design, cost)
    residual = cost - design @ solved
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual / spare)
    half = t.ppf((1 + LEVEL) / 2, spare) * np.sqrt(np.diag(covariance))
    return [
        Coefficient(float(value), float(value - width), float(value + width))
        for value, width in zip(solved / scale, half / scale, strict=True)
    ]
