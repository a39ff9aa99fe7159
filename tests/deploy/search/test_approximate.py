"""Approximate search finds nearly all neighbors, and refuses what a graph does not support."""

import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import ArgumentError, IndexFormatError, MissingExtraError
from deploy.search.index import Index
from tests.deploy.conftest import build, random_vectors, rewrite, save_and_open


@pytest.mark.slow
def test_approximate_search_finds_nearly_all_of_20000_clustered_vectors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    centers = random.standard_normal((200, 64))
    vectors, queries = (
        centers[random.integers(0, 200, rows)] + 0.7 * random.standard_normal((rows, 64)) for rows in (20_000, 300)
    )
    index = save_and_open(build(vectors), tmp_path / "index", approximate=True)
    assert index.info["approximate"]
    exact, fast = index.search(queries, 10), index.search(queries, 10, approximate=True)
    recall = np.mean([len(set(true) & set(found)) / 10 for true, found in zip(exact.rows, fast.rows, strict=True)])
    assert recall >= 0.95
    same = exact.rows == fast.rows
    assert np.array_equal(exact.scores[same], fast.scores[same]), "candidates are scored exactly"
    assert np.array_equal(index.search(queries[0], 10, approximate=True).rows[0], fast.rows[0])


def test_approximate_search_of_few_or_no_vectors_is_complete(tmp_path: Path) -> None:
    for count in (0, 1, 30):
        index = save_and_open(build(random_vectors(count)), tmp_path / str(count), approximate=True)
        for queries in (random_vectors(0), random_vectors(1, seed=1), random_vectors(4, seed=1)):
            found, expected = index.search(queries, 40, approximate=True), index.search(queries, 40)
            assert found.ids == expected.ids
            assert np.array_equal(found.scores, expected.scores)


def test_unsupported_searches_and_damaged_graphs_are_refused(tmp_path: Path) -> None:
    save_and_open(build(random_vectors(20)), tmp_path / "index", approximate=True)
    with pytest.raises(ArgumentError, match="needs vectors of equal length: choose cosine"):
        build(random_vectors(3), metric="inner_product").save(tmp_path / "inner", approximate=True)
    other = save_and_open(build(random_vectors(30)), tmp_path / "other", approximate=True)
    for content in (b"no graph", (tmp_path / "other" / "neighbours.usearch").read_bytes()):
        rewrite(tmp_path / "index", "neighbours.usearch", content)
        opened = Index.open(tmp_path / "index")
        assert len(opened.search(random_vectors(1)).ids[0]) == 10, "exact search needs no graph"
        with pytest.raises(IndexFormatError, match="build the index again"):
            opened.search(random_vectors(1), approximate=True)
    assert len(other) == 30


def test_without_usearch_only_approximate_search_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_and_open(build(random_vectors(20)), tmp_path / "index", approximate=True)
    for name in ("usearch", "usearch.index"):
        monkeypatch.setitem(sys.modules, name, None)
    opened = Index.open(tmp_path / "index")
    assert len(opened.search(random_vectors(1)).ids[0]) == 10
    for attempt in (
        lambda: opened.search(random_vectors(1), approximate=True),
        lambda: opened.save(tmp_path / "again", approximate=True),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install '\.\[search\]'` in a clone of the repository"):
            attempt()
    assert not (tmp_path / "again").exists()
