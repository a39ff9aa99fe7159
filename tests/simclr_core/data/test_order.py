"""The epoch's order is a permutation, and every draw is a pure function of seed, epoch, sample and view."""

import subprocess
import sys
from collections import Counter
from math import factorial, sqrt

import numpy as np
import pytest

from simclr_core.data.order import GOLDEN, ShardOrder, _mix, permuted, uniform


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 16, 17, 97, 100, 1009, 65536, 1_000_000])
def test_order_is_a_permutation(n: int) -> None:
    order = permuted(3, 1, np.arange(n), n)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


def test_order_known_answer() -> None:
    """Pinned: another order would change what every resumed run sees."""
    assert permuted(7, 3, np.arange(10), 10).tolist() == [9, 4, 5, 7, 0, 3, 8, 1, 2, 6]
    assert permuted(0, 0, [0, 1, 999_999], 10**6).tolist() == [244110, 208954, 605912]


def test_order_differs_by_seed_and_epoch() -> None:
    slots = np.arange(1000)
    orders = [permuted(seed, epoch, slots, 1000) for seed in (0, 1, -1, 2**64 - 2) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 20  # 1 expected


def test_order_does_not_depend_on_the_number_of_ranks() -> None:
    n, batch = 1003, 120
    whole = permuted(5, 2, np.arange(n), n)
    for ranks in (1, 2, 3, 5, 8):
        share = batch // ranks
        steps = [range(start, min(start + batch, n)) for start in range(0, n, batch)]
        parts = [permuted(5, 2, step[r * share : (r + 1) * share], n) for step in steps for r in range(ranks)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_one_slot_of_a_huge_epoch() -> None:
    n = 10**12
    assert 0 <= permuted(0, 0, [n - 1], n)[0] < n


def test_slots_beyond_the_epoch_are_a_programming_error() -> None:
    with pytest.raises(AssertionError, match=r"\[0, 10\)"):
        permuted(0, 0, [10], 10)


@pytest.mark.seconds
@pytest.mark.parametrize("n", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))])
def test_every_order_of_a_few_samples_is_equally_likely(n: int) -> None:
    epochs = 2000
    seen = Counter(tuple(permuted(0, epoch, np.arange(n), n)) for epoch in range(epochs))
    assert len(seen) == factorial(n)
    assert_even(np.array(list(seen.values())))


@pytest.mark.seconds
def test_every_sample_is_equally_likely_at_every_slot() -> None:
    n, epochs = 50, 1500
    orders = np.stack([permuted(1, epoch, np.arange(n), n) for epoch in range(epochs)])
    assert_even(np.stack([np.bincount(orders[:, slot], minlength=n) for slot in range(n)]).ravel())
    steps = np.bincount((np.diff(orders, axis=1) % n).ravel(), minlength=n)
    assert_even(steps[1:])  # neighbors are not kept together


LAYOUTS = {  # images of each shard
    "equal": [10] * 12,
    "uneven": [1, 40, 3, 3, 17, 1, 1, 25, 8, 2],
    "one": [30],
    "of one image each": [1] * 30,
}


def by_shards(counts: list[int], window_bytes: int, seed: int = 0) -> ShardOrder:
    """Images of 7 bytes."""
    shards = np.repeat(np.arange(len(counts)), counts).astype(np.uint16)
    return ShardOrder(seed, shards, np.full(len(shards), 7, np.uint32), window_bytes)


@pytest.mark.parametrize("window_bytes", [1, 100, 500, 2**31])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shard_by_shard_each_image_comes_once_and_few_shards_at_a_time(layout: str, window_bytes: int) -> None:
    counts = LAYOUTS[layout]
    order, shard_of = by_shards(counts, window_bytes), np.repeat(np.arange(len(counts)), counts)
    for epoch in range(3):
        whole = order.positions(epoch, range(len(shard_of)))
        assert sorted(whole.tolist()) == list(range(len(shard_of)))
        begun = 0
        shards, windows = order.windows(epoch)
        assert sorted(shards.tolist()) == list(range(len(counts)))
        for window in np.unique(windows):
            here = shards[windows == window]
            assert 7 * sum(counts[shard] for shard in here[:-1]) < window_bytes
            images = sum(counts[shard] for shard in here)
            assert {*shard_of[whole[begun : begun + images]]} == {*here}
            begun += images


def test_shard_by_shard_any_slot_is_found_at_once() -> None:
    order = by_shards(LAYOUTS["uneven"], 200)
    whole = order.positions(4, range(101))
    some = np.random.default_rng(0).permutation(101)[:40]
    assert order.positions(4, some).tolist() == whole[some].tolist()
    assert [order.positions(4, slot).item() for slot in (0, 100)] == [whole[0], whole[100]]
    batches = [order.positions(4, range(start, start + 20)[rank * 10 :][:10]) for start in (0, 20) for rank in (0, 1)]
    assert np.concatenate(batches).tolist() == whole[:40].tolist()


def test_shard_by_shard_the_order_differs_by_seed_and_epoch_and_mixes_a_window() -> None:
    orders = [by_shards([50] * 20, 3500, seed).positions(epoch, range(1000)) for seed in (0, 1) for epoch in (0, 1)]
    for number, one in enumerate(orders):
        assert all(np.count_nonzero(one == other) < 20 for other in orders[:number])
    firsts = [one[0] // 50 for one in orders]
    assert len(set(firsts)) > 1
    same = np.mean([np.mean(np.diff(one // 50) == 0) for one in orders])
    assert same == pytest.approx(0.1, abs=0.03)  # ten shards a window


def test_shard_by_shard_known_answer() -> None:
    """Pinned, as the other order."""
    assert by_shards([3, 2, 4, 1], 30, seed=5).positions(2, range(10)).tolist() == [1, 3, 2, 0, 4, 8, 6, 7, 5, 9]


def test_hash_is_splitmix64() -> None:
    """The first outputs of Vigna's reference implementation from seed 0."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert _mix(GOLDEN * np.arange(1, 4).astype(np.uint64)).tolist() == published


def test_uniform_known_answer() -> None:
    expected = [0.47966464613171655, 0.12022784612068027, 0.8187267455193059]
    assert uniform(9, 4, [123], 1, 3)[0].tolist() == expected


def test_uniform_reads_the_same_for_any_batch() -> None:
    samples = np.array([5, 0, 2**40, 17])
    together = uniform(1, 2, samples, 0, 6)
    assert together.shape == (4, 6)
    for row, sample in zip(together, samples, strict=True):
        assert np.array_equal(uniform(1, 2, [sample], 0, 6)[0], row)
        assert np.array_equal(uniform(1, 2, [sample], 0, 3)[0], row[:3])


def test_uniform_is_uniform_and_independent() -> None:
    draws = np.concatenate([uniform(0, epoch, np.arange(2000), view, 5) for epoch in range(5) for view in (0, 1)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert_even(np.bincount((draws * 100).astype(int).ravel(), minlength=100))
    correlation = np.corrcoef(draws.T) - np.eye(5)
    assert np.abs(correlation).max() < 4 / sqrt(len(draws))
    along_samples = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert abs(along_samples) < 4 / sqrt(len(draws))


def test_uniform_changes_with_every_argument() -> None:
    variants = [uniform(0, 0, [0], 0, 1), uniform(1, 0, [0], 0, 1), uniform(0, 1, [0], 0, 1)]
    variants += [uniform(0, 0, [1], 0, 1), uniform(0, 0, [0], 1, 1)]
    assert len({variant.item() for variant in variants}) == 5


def test_order_imports_no_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import simclr_core.data.order, sys; assert 'torch' not in sys.modules"], check=True
    )


def assert_even(counts: np.ndarray) -> None:
    """Pearson's chi-square against equal counts, by Wilson and Hilferty's normal approximation: under 4.5 sigma."""
    expected = counts.mean()
    free = counts.size - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    sigma = ((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / sqrt(2 / (9 * free))
    assert sigma < 4.5, f"chi-square {statistic:.1f} of {free} degrees of freedom"
