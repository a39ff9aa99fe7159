"""The learning rate against its description: linear warm-up, then half a cosine."""

import math

import pytest

from simclr_core.schedule import Schedule, learning_rate, peak_learning_rate


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


def test_a_warm_start_rises_from_zero_to_its_share_of_the_peak_and_falls_to_zero_again() -> None:
    schedule = Schedule(epochs=10, steps_per_epoch=6, warmup_epochs=0, peak=0.8)
    again = schedule.again(epochs=4, warmup_epochs=0.5, share=0.25)
    assert (schedule.steps, again.steps) == (60, 24)
    rates = [again.rate(step) for step in range(24)]
    assert rates[:3] == pytest.approx([0.2 / 3, 0.4 / 3, 0.2])
    assert rates[3:] == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 21)) for k in range(21)])
    assert max(rates) == pytest.approx(0.25 * max(schedule.rate(step) for step in range(60)))
    assert 0 < rates[-1] < 0.01 * max(rates)


def test_warm_starts_do_not_add_up() -> None:
    schedule = Schedule(epochs=10, steps_per_epoch=6, warmup_epochs=1, peak=0.8)
    assert schedule.again(4, 1, 1.0) == Schedule(4, 6, 1, 0.8)
    assert schedule.peak == 0.8
