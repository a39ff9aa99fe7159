"""The index gives the same answers as brute force, including ties, and refuses vectors that cannot be compared."""

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import deploy
from deploy.bundle import Bundle
from deploy.errors import ArgumentError, IndexMismatchError
from deploy.search import duplicates as duplicate_search
from deploy.search import exact as exact_search
from deploy.search.index import Index, Matches
from tests.deploy.conftest import (
    DIM,
    ENCODER,
    build,
    encoded,
    make_bundle,
    make_card,
    noise,
    random_vectors,
    save_and_open,
)


def brute_force(stored: NDArray[Any], query: NDArray[Any], k: int, allowed: list[int] | None = None) -> list[int]:
    """Compute one dot product after another, then sort stably."""
    query = np.asarray(query, np.float32).astype(np.float64)
    rows = range(len(stored)) if allowed is None else allowed
    scores = {row: float((stored[row].astype(np.float64) * query).sum()) for row in rows}
    return sorted(scores, key=lambda row: (-scores[row], row))[:k]


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    doubles = vectors.astype(np.float64)
    return doubles / np.linalg.norm(doubles, axis=-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 3, 10, 50, 200])
@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
@pytest.mark.parametrize("tile", [1 << 20, 64])
def test_search_equals_brute_force(k: int, metric: Any, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "TILE", tile)
    monkeypatch.setattr(exact_search, "TILE_QUERIES", 4)
    index, queries = build(random_vectors(150), metric=metric), random_vectors(9, seed=1)
    found = index.search(queries, k)
    used = unit(queries) if metric == "cosine" else queries
    assert found.rows.tolist() == [brute_force(index.vectors, query, k) for query in used]
    assert found.ids == [[f"{row}.jpg" for row in rows] for rows in found.rows]
    exact = np.einsum("qkd,qd->qk", index.vectors[found.rows].astype(np.float64), used)
    assert np.abs(found.scores - exact).max() < 1e-5
    assert found.scores.dtype == np.float32


@pytest.mark.parametrize("tile", [1 << 20, 32])
def test_ties_go_to_the_first_row_wherever_the_tiles_end(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "TILE", tile)
    few = random_vectors(3, dim=33)
    index = build(few[np.arange(200) % 3])
    for query in range(3):
        expected = [row for row in range(200) if row % 3 == query]
        assert index.search(few[query], 20).rows[0].tolist() == expected[:20]
        assert index.search(few[query], 66).rows[0].tolist() == expected[:66]


def test_rows_that_get_better_and_better_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in an order in which every tile has better rows than all previous tiles."""
    monkeypatch.setattr(exact_search, "TILE", 50)
    angles = np.linspace(1.5, 0.0, 500)
    index = build(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert index.search([1.0, 0.0], 5).rows.tolist() == [[499, 498, 497, 496, 495]]


def test_scores_that_differ_by_less_than_float32_are_ordered_by_float64() -> None:
    """Large parts of the vectors cancel, so that scores differ by less than the float32 rounding error."""
    query = unit(random_vectors(1, 64)[0])
    across = random_vectors(500, 64, seed=1).astype(np.float64)
    across -= np.outer(across @ query, query)
    index = build(query + across, metric="inner_product")
    found = index.search(query, 10).rows[0].tolist()
    assert found == brute_force(index.vectors, query, 10)
    by_float32 = np.argsort(-(index.vectors @ query.astype(np.float32)), kind="stable")[:10].tolist()
    assert set(found) != set(by_float32), "the case must show the difference"


def test_an_answer_does_not_depend_on_the_batch() -> None:
    index, queries = build(random_vectors(3000, 48)), random_vectors(40, 48, seed=1)
    batch = index.search(queries, 7)
    for number, query in enumerate(queries):
        single = index.search(query, 7)
        assert np.array_equal(single.rows[0], batch.rows[number])
        assert np.array_equal(single.scores[0], batch.scores[number])


def test_fewer_rows_than_k_and_none_at_all(tmp_path: Path) -> None:
    index = build(random_vectors(3))
    assert index.search(random_vectors(2), 10).rows.shape == (2, 3)
    empty = save_and_open(build(random_vectors(0)), tmp_path / "empty")
    found = empty.search(random_vectors(2), 10)
    assert (len(empty), found.ids, found.rows.shape, found.scores.shape) == (0, [[], []], (2, 0), (2, 0))
    assert list(empty.duplicates()) == []
    nothing = index.search(random_vectors(0), 10)
    assert (nothing.ids, nothing.rows.shape) == ([], (0, 3))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_a_mask_searches_its_rows_only(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "TILE", 100)
    index, queries = build(random_vectors(400)), random_vectors(3, seed=1)
    mask = np.random.default_rng(2).random(400) < share
    expected = [brute_force(index.vectors, query, 5, np.flatnonzero(mask).tolist()) for query in unit(queries)]
    assert index.search(queries, 5, mask=mask).rows.tolist() == expected


def test_vectors_of_any_length_are_scaled_when_the_metric_is_cosine() -> None:
    vectors = random_vectors(30)
    scales = np.random.default_rng(3).uniform(0.01, 100, (30, 1)).astype(np.float32)
    index, scaled = build(vectors), build(vectors * scales)
    assert np.abs(np.linalg.norm(scaled.vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(index.vectors - scaled.vectors).max() < 1e-6
    assert index.search(vectors[4] * 9, 1).scores[0, 0] == pytest.approx(1, abs=1e-6)
    assert np.array_equal(build(vectors, metric="inner_product").vectors, vectors)


@pytest.mark.seconds
def test_float16_halves_the_vectors_and_keeps_the_neighbors(tmp_path: Path) -> None:
    vectors = random_vectors(2000, 64)
    index = save_and_open(build(vectors, dtype="float16"), tmp_path / "index")
    assert (tmp_path / "index" / "vectors.npy").stat().st_size == 128 + 2000 * 64 * 2
    assert index.search(vectors, 1).rows[:, 0].tolist() == list(range(2000))
    found = index.search(vectors[:20], 5)
    assert found.rows.tolist() == [brute_force(index.vectors, query, 5) for query in unit(vectors[:20])]
    assert np.abs(found.scores - build(vectors).search(vectors[:20], 5).scores).max() < 1e-3
    with pytest.raises(ArgumentError, match="too large for float16"):
        build(vectors * 1e6, metric="inner_product", dtype="float16")
    build(vectors * 1e-3, metric="inner_product", dtype="float16")
    build(np.zeros_like(vectors), metric="inner_product", dtype="float16")
    for least, dtype in ((1e-6, "float16"), (1e-9, "float16"), (1e-43, "float32")):
        small = vectors.astype(np.float64)
        small[3] *= least
        with pytest.raises(ArgumentError, match=rf"id '3\.jpg': its vector is too small for {dtype}; "):
            build(small, metric="inner_product", dtype=dtype)


def test_an_index_refuses_another_encoder(
    bundle: Path, publish_bundle: Callable[[Bundle], Path], tmp_path: Path
) -> None:
    encoder = deploy.load(bundle)
    picture = encoded(noise(1))
    index = deploy.Index.build(encoder.embed([picture]).vectors, ["1.png"], encoder)
    index.save(tmp_path / "index")
    opened = deploy.Index.open(tmp_path / "index", encoder)
    assert (opened.encoder, opened.info["name"]) == (encoder.id, "mean-color")
    assert opened.search(encoder.embed(picture).vectors, encoder=encoder).ids == [["1.png"]]
    other = deploy.load(publish_bundle(make_bundle(make_card(name="another"))))
    for refused in (other, other.id, f"{encoder.id}:int8"):
        for attempt in (
            lambda refused=refused: deploy.Index.open(tmp_path / "index", refused),
            lambda refused=refused: opened.search(random_vectors(1, DIM), encoder=refused),
        ):
            with pytest.raises(IndexMismatchError, match=rf"made by encoder {encoder.id[:12]}, not .*index again"):
                attempt()


@pytest.mark.parametrize(
    "queries", [np.zeros((2, 6)), np.zeros((1, 2, 7)), np.zeros(8), np.array([["a"] * 7]), np.ones((1, 7), complex)]
)
def test_queries_of_another_kind_are_refused(queries: NDArray[Any]) -> None:
    with pytest.raises(IndexMismatchError, match=r"the index holds vectors \[7\]; give numbers \[q, 7\]"):
        build(random_vectors(3)).search(queries)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_nan_infinite_and_huge_values_are_refused(value: float) -> None:
    vectors = random_vectors(5).astype(np.float64)
    index = build(vectors)
    vectors[3, 2] = value
    with pytest.raises(ArgumentError, match=r"id '3\.jpg': the vector has NaN or values that are too large"):
        build(vectors)
    with pytest.raises(ArgumentError, match=r"query 3: the vector has NaN"):
        index.search(vectors)


def test_a_zero_vector_is_refused_for_cosine_and_allowed_for_inner_product() -> None:
    vectors = random_vectors(5)
    vectors[1] = 0
    with pytest.raises(ArgumentError, match=r"id '1\.jpg': the vector is zero and has no direction"):
        build(vectors)
    with pytest.raises(ArgumentError, match=r"query 1: the vector is zero"):
        build(random_vectors(5)).search(vectors)
    assert build(vectors, metric="inner_product").search(vectors[1], 2).scores.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "b"]}, "given 2 ids and vectors"),
        ({"ids": ["a", "b", "a"]}, "id 'a' is given twice"),
        ({"ids": ["a", "b", 3]}, "id 3 of row 2: not valid"),
        ({"ids": ["a", "b", "\0"]}, "without null characters"),
        ({"ids": "abc"}, "ids are of type str; give a list with one string for each vector"),
        ({"ids": {"a", "b", "c"}}, "ids are of type set"),
        ({"ids": dict.fromkeys("abc", 1)}, "ids are of type dict"),
        ({"ids": (name for name in "abc")}, "ids are of type generator"),
        ({"vectors": np.ones(3)}, "give one id for each row of vectors"),
        ({"vectors": np.ones((3, 0))}, "0 dimensions"),
        ({"metric": "euclid"}, "metric='euclid'; choose cosine or inner_product"),
        ({"dtype": "int8"}, "dtype='int8'; choose float32 or float16"),
        ({"encoder": ""}, "give the Encoder that made the vectors"),
    ],
)
def test_wrong_arguments_of_build(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"vectors": random_vectors(3), "ids": ["a", "b", "c"], "encoder": ENCODER}
    with pytest.raises(ArgumentError, match=message):
        Index.build(**arguments | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k=0; give an integer of 1 or more"),
        ({"k": 2.5}, r"k=2\.5"),
        ({"k": True}, "k=True"),
        ({"mask": np.ones(4, np.bool_)}, r"mask is bool \[4\]; give bool \[3\]"),
        ({"mask": np.ones(3)}, r"mask is float64 \[3\]"),
        ({"approximate": True}, "the index has no graph; save it with approximate=True"),
    ],
)
def test_wrong_arguments_of_search(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(random_vectors(3)).search(random_vectors(1), **change)


@pytest.mark.parametrize("tile", [1 << 20, 10])
def test_duplicates_are_all_pairs_above_the_threshold(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_search, "COLUMNS", tile)
    monkeypatch.setattr(duplicate_search, "ROWS", 16)
    vectors = random_vectors(120, 4)
    vectors[77], vectors[119] = vectors[5] * 3, vectors[5]
    index = build(vectors)
    cosines = unit(vectors) @ unit(vectors).T
    expected = {
        (f"{a}.jpg", f"{b}.jpg"): cosines[a, b] for a in range(120) for b in range(a + 1, 120) if cosines[a, b] >= 0.9
    }
    found = {(pair.first, pair.second): pair.cosine for pair in index.duplicates(0.9)}
    assert found == pytest.approx(expected, abs=1e-6)
    same = [(pair.first, pair.second) for pair in index.duplicates(1.0)]
    assert sorted(same) == [("5.jpg", "119.jpg"), ("5.jpg", "77.jpg"), ("77.jpg", "119.jpg")]


def test_duplicates_need_cosines() -> None:
    for index, threshold in ((build(random_vectors(3), metric="inner_product"), 0.9), (build(random_vectors(3)), 1.1)):
        with pytest.raises(ArgumentError, match="duplicates need the metric cosine and a threshold"):
            index.duplicates(threshold)


@pytest.mark.seconds
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_search_uses_bounded_memory(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TILE", "COPIED", "GATHERED"):
        monkeypatch.setattr(exact_search, name, 1 << 14)
    for name, value in (("SAMPLED", 1 << 14), ("ROWS", 64), ("COLUMNS", 256), ("BLOCK", 64)):
        monkeypatch.setattr(duplicate_search, name, value)
    rows, dim = 5000, 256  # 5 MB as float32
    opened = save_and_open(build(random_vectors(rows, dim), dtype=dtype), tmp_path / "index")
    queries = random_vectors(300, dim, seed=1)  # 6 MB of scores
    mask = np.ones(rows, np.bool_)
    for work in (
        lambda: opened.search(queries[0], 3),
        lambda: opened.search(queries[0], 3, mask=mask),
        lambda: opened.search(queries, 3, mask=mask),
        lambda: sum(1 for _ in opened.duplicates(0.5)),
    ):
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.5e6


def test_many_threads_get_the_same_answers_as_one(tmp_path: Path) -> None:
    index = save_and_open(build(random_vectors(4000, 32)), tmp_path / "index", approximate=True)
    queries = random_vectors(60, 32, seed=1)

    def answer(number: int) -> Matches:
        return index.search(queries[number], 5, approximate=number % 2 == 1)

    expected = [answer(number) for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(answer, list(range(60)) * 5)):
            assert np.array_equal(found.rows, expected[number % 60].rows)
            assert np.array_equal(found.scores, expected[number % 60].scores)


@pytest.mark.seconds
def test_deploy_loads_the_index_only_when_it_is_used() -> None:
    code = (
        "import deploy, sys; before = 'deploy.search.index' in sys.modules; deploy.Index\n"
        "print(before, 'deploy.search.index' in sys.modules, 'usearch' in sys.modules, hasattr(deploy, 'Nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False", "False"]
