"""What a run judges by gets a fifth of the time at most, above the least."""

import pytest

from pipeline.proposal.judging import LEVELS, MOST, Judging, choose_judging


@pytest.mark.parametrize(("budget", "tuning"), [(1250, 30), (1249, 20), (750, 20), (250, 10), (100, 5)])
def test_fine_tuning_gets_a_fifth_of_the_time_at_most(budget: float, tuning: int) -> None:
    """Above the least of five epochs; each takes ten seconds here."""
    assert choose_judging(budget, lambda one: 100 + 10 * one.tuning_epochs).tuning_epochs == tuning


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (11_000, MOST),
        (9_800, Judging(10, 3, MOST.labels_per_class)),
        (9_600, Judging(5, 3, MOST.labels_per_class)),
        (9_400, Judging(5, 1, MOST.labels_per_class)),
        (2_400, Judging(5, 1, (5, 25))),
        (1_400, Judging(5, 1, ())),
        (900, Judging(5, 1, (), (0,))),
    ],
)
def test_then_draws_and_budgets_of_labels_are_given_up(budget: float, chosen: Judging) -> None:
    """An epoch takes ten seconds; a seed, and a draw of a budget or of the shares, a hundred."""

    def cost(one: Judging) -> float:
        return 10 * one.tuning_epochs + 100 * len(one.seeds) + 100 * one.draws * (1 + len(one.labels_per_class))

    assert choose_judging(budget, cost) == chosen


def test_each_level_is_less_thorough() -> None:
    sizes = [(one.tuning_epochs, one.draws, len(one.labels_per_class), len(one.seeds)) for one in LEVELS]
    assert sizes == sorted(sizes, reverse=True)
