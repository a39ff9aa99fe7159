import os
import subprocess
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.validation.verdict import near_duplicates
from pipeline.validation.verdict.near_duplicates import (
    ASPECT_RATIO,
    COLOR_DISTANCE,
    CROWD,
    DHASH_DISTANCE,
    GROUPS,
    HOT_BUCKET,
    PAIRS,
    near_groups,
    near_pairs,
)

Array = np.ndarray


def table(phash: Array, **others: Array) -> pl.DataFrame:
    """Contents that look alike but for what is given; row n is named n."""
    same = {"dhash": np.uint64(5), "red_mean": 90.0, "green_mean": 80.0, "blue_mean": 70.0, "aspect": 1.5}
    columns = {name: others.get(name, np.full(len(phash), value)) for name, value in same.items()}
    return pl.DataFrame({"sha256": [name(row) for row in range(len(phash))], "phash": phash, **columns})


def name(row: int) -> str:
    return f"{row:064x}"


def uniform(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def flipped(hashes: Array, bits: Iterable[int], seed: int = 1) -> Array:
    """Each hash with this number of its bits changed."""
    random = np.random.default_rng(seed)
    powers = [1 << random.permutation(64)[:count].astype(np.uint64) for count in bits]
    return hashes ^ np.array([np.bitwise_or.reduce(power, initial=np.uint64(0)) for power in powers])


def brute_force(hashes: Array, distance: int) -> set[tuple[str, str, int]]:
    found = set()
    for row, one in enumerate(hashes):
        bits = np.bitwise_count(one ^ hashes[row + 1 :])
        found |= {(name(row), name(row + 1 + other), int(bits[other])) for other in np.flatnonzero(bits <= distance)}
    return found


def planted(count: int) -> Array:
    """Random hashes, a tenth of them copies of others with 0..4 bits changed, in random order."""
    originals = uniform(count * 9 // 10)
    copies = flipped(originals[: count // 10], np.arange(count // 10) % 5)
    return np.random.default_rng(2).permutation(np.concatenate([originals, copies]))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("distance", "many", "portion"), [(0, 10**7, 2**22), (1, 10**7, 999), (3, 10**7, 2**22), (3, 0, 999)]
)
def test_the_search_equals_comparing_every_pair(
    distance: int, many: int, portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of four blocks and by two of five, of all rows at once and of portions."""
    monkeypatch.setattr(near_duplicates, "MANY_ROWS", many)
    monkeypatch.setattr(near_duplicates, "PORTION", portion)
    hashes = planted(20_000)
    pairs, cut_short = near_pairs(table(hashes), distance)
    assert set(pairs.iter_rows()) == brute_force(hashes, distance)
    assert len(pairs) == len(brute_force(hashes, distance)) >= 400 * (distance + 1)
    assert (pairs.schema, cut_short) == (PAIRS, 0)


def test_the_order_of_the_rows_changes_nothing() -> None:
    contents = table(planted(2000))
    pairs, _ = near_pairs(contents)
    shuffled, _ = near_pairs(contents.sample(fraction=1, shuffle=True, seed=0))
    assert pairs.equals(shuffled)
    assert pairs.equals(pairs.sort("first", "second"))


@pytest.mark.parametrize("rows", [1, 10**9])
def test_whichever_three_bits_differ_the_front_of_a_key_agrees(rows: int) -> None:
    """Blocks, which are what counts, are chosen in every way: the three that differ, and those in front."""
    for key in (keys := near_duplicates._keys(rows)):
        assert sorted(bit for lowest, width in key.blocks for bit in range(lowest, lowest + width)) == list(range(64))
    fronts = []
    for key in keys:
        count = [sum(width for _, width in key.blocks[:number]) for number in range(5)].index(key.front)
        fronts.append(set(key.blocks[:count]))
    assert all(any(front.isdisjoint(spoiled) for front in fronts) for spoiled in combinations(keys[0].blocks, 3))


@pytest.mark.seconds
def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    table(planted(2000)).write_parquet(tmp_path / "hashes.parquet")
    code = """if True:
        import sys, polars as pl
        from pipeline.validation.verdict.near_duplicates import near_groups, near_pairs
        pairs, _ = near_pairs(pl.read_parquet(sys.argv[1]))
        print(pl.thread_pool_size(), pairs.write_csv(), near_groups(pairs).write_csv())
    """
    command = [sys.executable, "-c", code, str(tmp_path / "hashes.parquet")]
    outputs = [
        subprocess.check_output(command, env=os.environ | {"POLARS_MAX_THREADS": threads}, text=True).split()
        for threads in ("1", "4")
    ]
    (one, *expected), (four, *found) = outputs
    assert (one, four) == ("1", "4")
    assert found == expected
    assert len(found) > 300


@pytest.mark.parametrize(
    ("column", "limit"),
    [
        *((f"{channel}_mean", [70.0, 70 + COLOR_DISTANCE]) for channel in ("red", "green", "blue")),
        ("aspect", [1.5, 1.5 * ASPECT_RATIO]),
        ("aspect", [1.5, 1.5 / ASPECT_RATIO]),
    ],
)
def test_pictures_of_different_color_or_shape_are_not_joined(column: str, limit: list[float]) -> None:
    inside, outside = 0.99, 1.01
    for reach, joined in ((inside, 1), (outside, 0)):
        values = np.array([limit[0], limit[0] + reach * (limit[1] - limit[0])])
        pairs, _ = near_pairs(table(uniform(1).repeat(2), **{column: values}))
        assert len(pairs) == joined


@pytest.mark.parametrize(("bits", "joined"), [(DHASH_DISTANCE, 1), (DHASH_DISTANCE + 1, 0)])
def test_pictures_with_different_gradients_are_not_joined(bits: int, joined: int) -> None:
    dhash = uniform(1).repeat(2)
    pairs, _ = near_pairs(table(uniform(1).repeat(2), dhash=flipped(dhash, [0, bits])))
    assert len(pairs) == joined


def test_no_contents_have_no_pairs_and_no_groups() -> None:
    for count in (0, 1):
        pairs, cut_short = near_pairs(table(uniform(count)))
        assert pairs.equals(PAIRS.to_frame())
        assert near_groups(pairs).equals(GROUPS.to_frame())
        assert cut_short == 0


def test_groups_are_those_of_a_union_find() -> None:
    ends = np.sort(np.random.default_rng(3).integers(0, 1000, (450, 2)), axis=1)
    parent = {row: row for row in set(ends.ravel().tolist())}

    def root(row: int) -> int:
        return row if parent[row] == row else root(parent[row])

    for first, second in ends.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    roots = {row: root(row) for row in sorted(parent)}
    expected = [(name(row), name(top), list(roots.values()).count(top)) for row, top in roots.items()]
    pairs = pl.DataFrame([(name(first), name(second), 0) for first, second in ends], PAIRS, orient="row")
    groups = near_groups(pairs)
    assert groups.schema == GROUPS
    assert groups.rows() == expected
    assert 5 < max(size for *_, size in expected) < 1000


@pytest.mark.slow
def test_fifty_thousand_equal_hashes_are_one_group_of_few_pairs() -> None:
    pairs, cut_short = near_pairs(table(uniform(1).repeat(50_000)))
    assert len(pairs) <= CROWD * 50_000
    assert near_groups(pairs)["near_group_size"].to_list() == [50_000] * 50_000
    assert cut_short > 49_000


@pytest.mark.seconds
def test_many_nearly_equal_hashes_are_one_group() -> None:
    center = uniform(1).repeat(5000)
    pairs, _ = near_pairs(table(flipped(center, [1] * 5000)))
    groups = near_groups(pairs)
    assert len(groups) == groups["near_group_size"][0] == 5000


@pytest.mark.seconds
def test_many_candidates_that_fail_the_other_tests_do_not_hide_a_copy() -> None:
    dhash = np.append(uniform(1000), flipped(uniform(1000)[400:401], [DHASH_DISTANCE]))
    pairs, cut_short = near_pairs(table(uniform(1).repeat(1001), dhash=dhash))
    assert (name(400), name(1000), 0) in pairs.rows()
    assert (len(pairs) < 10, cut_short) == (True, 0)


def test_a_hot_bucket_is_searched_in_part_and_that_is_reported() -> None:
    hot = uniform(10 * HOT_BUCKET) >> np.uint64(16)  # one bucket of the first band
    copies = flipped(hot[:2000], np.arange(2000) % 4)
    pairs, cut_short = near_pairs(table(np.concatenate([hot, copies])))
    found = {(first, second) for first, second, _ in pairs.iter_rows()}
    missed = [bits % 4 for bits in range(2000) if (name(bits), name(10 * HOT_BUCKET + bits)) not in found]
    assert set(missed) <= {3}, "only pairs that differ in every other band can be missed"
    assert len(missed) < 0.05 * 500
    assert cut_short > 9 * HOT_BUCKET


def test_rows_within_reach_of_a_bucket_are_not_counted_as_cut_short() -> None:
    hashes = uniform(HOT_BUCKET + 1) >> np.uint64(16)
    assert near_pairs(table(hashes))[1] == 0
    assert near_pairs(table(uniform(HOT_BUCKET + 2) >> np.uint64(16)))[1] == 1
