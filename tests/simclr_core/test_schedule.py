"""The learning rate against its description: linear warm-up, then half a cosine."""

import math

import pytest

from simclr_core.schedule import learning_rate, peak_learning_rate


def test_linear_then_cosine() -> None:
    rates = [learning_rate(step, steps=20, warmup_steps=4, peak=0.8) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:] == pytest.approx([0.4 * (1 + math.cos(math.pi * k / 16)) for k in range(16)])
    assert rates[12] == pytest.approx(0.4)  # half the peak half-way down
    assert all(rate > 0 for rate in rates)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_no_warm_up_starts_at_the_peak_and_all_warm_up_ends_there() -> None:
    assert learning_rate(0, steps=10, warmup_steps=0, peak=0.5) == 0.5
    assert learning_rate(9, steps=10, warmup_steps=10, peak=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 4.8), ("sqrt", 19.2), ("none", 0.3)])
def test_scaling_with_the_batch(scaling: str, expected: float) -> None:
    assert peak_learning_rate(0.3, 4096, scaling) == pytest.approx(expected)  # type: ignore[arg-type]
    assert peak_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)  # SimCLR section B.1: equal at 4096
