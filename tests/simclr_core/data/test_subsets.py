"""Label budgets: exact sizes, balanced, nested, and a pure function of keys and seed."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from simclr_core.data.subsets import draw_labels, folds, per_class_subset, subset


def keys(count: int) -> np.ndarray:
    digests = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def labels(*counts: int) -> np.ndarray:
    """Class after class, shuffled."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int16)


def counts(chosen: np.ndarray, of: np.ndarray) -> list[int]:
    return np.bincount(of[chosen], minlength=of.max() + 1).tolist()


def test_one_percent_of_eight_thousand_is_eight_of_each_class() -> None:
    known = labels(*[800] * 10)
    assert counts(subset(known, keys(8000), "0.01", 0), known) == [8] * 10
    assert counts(subset(known, keys(8000), "0.1", 0), known) == [80] * 10
    assert subset(known, keys(8000), "1.0", 0).tolist() == list(range(8000))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_smaller_fractions_are_contained_in_larger_ones(seed: int) -> None:
    known = labels(37, 1, 203, 12, 9)
    sets = [set(subset(known, keys(262), fraction, seed)) for fraction in ("0.01", "0.05", "0.1", "0.5", "0.99", "1.0")]
    assert all(smaller <= larger for smaller, larger in pairwise(sets))
    assert len(sets[-1]) == 262


def test_each_class_gives_its_rounded_share_and_at_least_one() -> None:
    known = labels(37, 1, 203, 15, 9)
    assert counts(subset(known, keys(265), "0.1", 0), known) == [4, 1, 20, 2, 1]


def test_unlabeled_samples_are_never_chosen() -> None:
    known = labels(50, 50)
    known[::2] = -1
    assert (known[subset(known, keys(100), "1.0", 0)] >= 0).all()
    assert len(subset(known, keys(100), "1.0", 0)) == 50
    assert len(subset(np.full(100, -1), keys(100), "0.5", 0)) == 0


def test_the_choice_follows_the_keys_and_not_the_order() -> None:
    known, names = labels(40, 60), keys(100)
    order = np.random.default_rng(1).permutation(100)
    chosen = {bytes(names[i]) for i in subset(known, names, "0.2", 3)}
    reordered = {bytes(names[order][i]) for i in subset(known[order], names[order], "0.2", 3)}
    assert chosen == reordered


def test_another_seed_is_another_choice() -> None:
    known = labels(100, 100)
    chosen = [tuple(subset(known, keys(200), "0.1", seed)) for seed in range(5)]
    assert len(set(chosen)) == 5


def test_seeds_choose_every_sample_about_equally_often() -> None:
    known = labels(40)
    times = sum(np.isin(np.arange(40), subset(known, keys(40), "0.25", seed)).astype(int) for seed in range(400))
    # Binomial with 400 draws of probability 1/4: 100 +- 8.7; five standard deviations on either side.
    assert 57 <= times.min() <= times.max() <= 143


def test_folds_are_balanced_by_class_and_as_a_whole() -> None:
    known = labels(8, 8, 8, 3, 1)
    fold = folds(known, keys(28), 5, 0)
    for number in range(5):
        per_class = np.bincount(known[fold == number], minlength=5)
        assert all(abs(have - total / 5) < 1 for have, total in zip(per_class, [8, 8, 8, 3, 1], strict=True))
    sizes = np.bincount(fold, minlength=5)
    assert sizes.max() - sizes.min() <= 1


def test_samples_with_the_same_key_are_in_one_fold_and_count_as_one() -> None:
    known, names = labels(20, 20), keys(40).copy()
    names[:15], names[30:33] = names[7], names[31]
    fold = folds(known, names, 5, 0)
    assert len({*fold[:15]}) == len({*fold[30:33]}) == 1
    alone = np.concatenate([fold[14:30], fold[32:]])
    assert np.ptp(np.bincount(alone, minlength=5)) <= 1


def test_a_number_per_class_takes_it_of_each_class_or_all_there_are() -> None:
    known = labels(37, 1, 203, 3)
    assert counts(per_class_subset(known, keys(244), 5, 0), known) == [5, 1, 5, 3]
    assert set(per_class_subset(known, keys(244), 2, 7)) < set(per_class_subset(known, keys(244), 5, 7))
    assert len(per_class_subset(np.full(9, -1), keys(9), 5, 0)) == 0


def test_budgets_are_drawn_by_seed_and_those_of_more_than_half_of_the_labels_once() -> None:
    known, names = labels(20, 20), keys(40).copy()
    drawn = draw_labels(known, names, ("0.1", "1.0"), (1, 12, 25), 3, seed=5)
    assert {budget: len(draws) for budget, draws in drawn.items()} == {
        "0.1": 3,
        "1.0": 1,
        "1 per class": 3,
        "12 per class": 1,
    }
    for number, one in enumerate(drawn["1 per class"]):
        assert one.positions.tolist() == per_class_subset(known, names, 1, 5 + number).tolist()
    assert drawn["0.1"][2].positions.tolist() == subset(known, names, "0.1", 7).tolist()
    assert {one.budget for one in drawn["0.1"]} == {"0.1"}


@pytest.mark.parametrize(("fraction", "number"), [("0.00125", 1), ("0.00625", 5), ("0.03125", 25)])
def test_a_share_takes_the_labels_of_the_number_per_class_that_it_comes_to(fraction: str, number: int) -> None:
    """So fine-tuning on a share has the labels of a probe, and both are on one curve."""
    known = labels(*[800] * 10)
    expected = per_class_subset(known, keys(8000), number, 1)
    assert subset(known, keys(8000), fraction, 1).tolist() == expected.tolist()
