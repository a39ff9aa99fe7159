"""A winner is better only where the seeds say so."""

import numpy as np
import pytest
from scipy import stats

from simclr_core.tune.comparison import compare


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    winner, present = np.array([71.0, 73.5, 72.0, 74.0]), np.array([70.0, 72.0, 71.5, 72.0])
    found = compare(winner, present)
    gains = winner - present
    low, high = stats.t.interval(0.9, 3, gains.mean(), stats.sem(gains))  # 95 % on either side
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)
    assert found.better


def test_of_equal_settings_one_in_twenty_looks_better() -> None:
    random = np.random.default_rng(0)
    runs = random.normal(70, 1, (2000, 2, 3))
    better = sum(compare(one, other).better for one, other in runs.tolist())
    assert 0.03 < better / len(runs) < 0.07
