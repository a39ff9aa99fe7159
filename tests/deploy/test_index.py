"""The index answers as brute force does, ties included, and refuses what is damaged or cannot be compared."""

import json
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
from deploy import exact_search, index_files
from deploy.artifact import publish, verify
from deploy.bundle import Bundle
from deploy.encoder import Encoder
from deploy.errors import (
    ArgumentError,
    CorruptArtifactError,
    IndexFormatError,
    IndexMismatchError,
    MissingArtifactError,
    MissingExtraError,
)
from deploy.folder import embed_files
from deploy.index import Index, Matches
from tests.deploy.conftest import DIM, encoded, make_bundle, make_card, noise

ENCODER = "a" * 64


def random_vectors(rows: int, dim: int = 7, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"{row}.jpg" for row in range(count)]


def built(vectors: NDArray[Any], **options: Any) -> Index:
    return Index.build(vectors, names(len(vectors)), ENCODER, **options)


def saved(index: Index, directory: Path, **options: Any) -> Index:
    index.save(directory, **options)
    return Index.open(directory)


def brute_force(stored: NDArray[Any], query: NDArray[Any], k: int, allowed: list[int] | None = None) -> list[int]:
    """One dot product after the other, then a stable sort."""
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
    index, queries = built(random_vectors(150), metric=metric), random_vectors(9, seed=1)
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
    index = built(few[np.arange(200) % 3])
    for query in range(3):
        expected = [row for row in range(200) if row % 3 == query]
        assert index.search(few[query], 20).rows[0].tolist() == expected[:20]
        assert index.search(few[query], 66).rows[0].tolist() == expected[:66]


def test_rows_that_get_better_and_better_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which every tile holds better rows than all before it."""
    monkeypatch.setattr(exact_search, "TILE", 50)
    angles = np.linspace(1.5, 0.0, 500)
    index = built(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert index.search([1.0, 0.0], 5).rows.tolist() == [[499, 498, 497, 496, 495]]


def test_what_float32_cannot_tell_apart_is_ordered_by_float64() -> None:
    """Scores that differ by less than their float32 rounding, because large parts of the vectors cancel."""
    query = unit(random_vectors(1, 64)[0])
    across = random_vectors(500, 64, seed=1).astype(np.float64)
    across -= np.outer(across @ query, query)
    index = built(query + across, metric="inner_product")
    found = index.search(query, 10).rows[0].tolist()
    assert found == brute_force(index.vectors, query, 10)
    by_float32 = np.argsort(-(index.vectors @ query.astype(np.float32)), kind="stable")[:10].tolist()
    assert set(found) != set(by_float32), "the case must be able to tell"


def test_an_answer_does_not_depend_on_the_batch() -> None:
    index, queries = built(random_vectors(3000, 48)), random_vectors(40, 48, seed=1)
    together = index.search(queries, 7)
    for number, query in enumerate(queries):
        alone = index.search(query, 7)
        assert np.array_equal(alone.rows[0], together.rows[number])
        assert np.array_equal(alone.scores[0], together.scores[number])


def test_fewer_rows_than_k_and_none_at_all(tmp_path: Path) -> None:
    index = built(random_vectors(3))
    assert index.search(random_vectors(2), 10).rows.shape == (2, 3)
    empty = saved(built(random_vectors(0)), tmp_path / "empty")
    found = empty.search(random_vectors(2), 10)
    assert (len(empty), found.ids, found.rows.shape, found.scores.shape) == (0, [[], []], (2, 0), (2, 0))
    assert list(empty.duplicates()) == []
    nothing = index.search(random_vectors(0), 10)
    assert (nothing.ids, nothing.rows.shape) == ([], (0, 3))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_a_mask_searches_its_rows_only(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "TILE", 100)
    index, queries = built(random_vectors(400)), random_vectors(3, seed=1)
    mask = np.random.default_rng(2).random(400) < share
    expected = [brute_force(index.vectors, query, 5, np.flatnonzero(mask).tolist()) for query in unit(queries)]
    assert index.search(queries, 5, mask=mask).rows.tolist() == expected


def test_vectors_of_any_length_are_scaled_when_the_metric_is_cosine() -> None:
    vectors = random_vectors(30)
    scales = np.random.default_rng(3).uniform(0.01, 100, (30, 1)).astype(np.float32)
    one, other = built(vectors), built(vectors * scales)
    assert np.abs(np.linalg.norm(other.vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(one.vectors - other.vectors).max() < 1e-6
    assert one.search(vectors[4] * 9, 1).scores[0, 0] == pytest.approx(1, abs=1e-6)
    assert np.array_equal(built(vectors, metric="inner_product").vectors, vectors)


def test_saving_again_changes_no_byte(tmp_path: Path) -> None:
    saved(built(random_vectors(500, 3)), tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one" / "MANIFEST.sha256").read_text() == (tmp_path / "two" / "MANIFEST.sha256").read_text()


def test_an_opened_index_is_the_saved_one(tmp_path: Path) -> None:
    ids = ["späte Ernte/c,\n.webp", "", "caf\udce9.jpg", "日本.png"]
    index = Index.build(random_vectors(4), ids, ENCODER)
    index.save(tmp_path / "index")
    opened = Index.open(tmp_path / "index", ENCODER)
    assert list(opened.ids) == list(index.ids) == ids
    assert np.array_equal(opened.vectors, index.vectors)
    expected = {"encoder": ENCODER, "name": None, "dim": 7, "metric": "cosine", "dtype": "float32", "count": 4}
    assert opened.info == index.info == expected | {"approximate": False}
    assert len(opened) == 4
    with pytest.raises(IndexError):
        opened.ids[4]
    subprocess.run(["sha256sum", "--check", "--quiet", "MANIFEST.sha256"], cwd=tmp_path / "index", check=True)


def test_float16_halves_the_vectors_and_keeps_the_neighbours(tmp_path: Path) -> None:
    vectors = random_vectors(2000, 64)
    index = saved(built(vectors, dtype="float16"), tmp_path / "index")
    assert (tmp_path / "index" / "vectors.npy").stat().st_size == 128 + 2000 * 64 * 2
    assert index.search(vectors, 1).rows[:, 0].tolist() == list(range(2000))
    found = index.search(vectors[:20], 5)
    assert found.rows.tolist() == [brute_force(index.vectors, query, 5) for query in unit(vectors[:20])]
    assert np.abs(found.scores - built(vectors).search(vectors[:20], 5).scores).max() < 1e-3
    with pytest.raises(ArgumentError, match="too large for float16"):
        built(vectors * 1e6, metric="inner_product", dtype="float16")


def test_the_encoder_is_known_by_its_id(bundle: Path, publish_bundle: Callable[[Bundle], Path], tmp_path: Path) -> None:
    encoder = deploy.load(bundle)
    picture = encoded(noise(1))
    index = deploy.Index.build(encoder.embed([picture]).vectors, ["1.png"], encoder)
    index.save(tmp_path / "index")
    opened = deploy.Index.open(tmp_path / "index", encoder)
    assert (opened.encoder, opened.info["name"]) == (encoder.id, "mean-colour")
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
        built(random_vectors(3)).search(queries)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_values_that_are_no_number_are_refused(value: float) -> None:
    vectors = random_vectors(5).astype(np.float64)
    index = built(vectors)
    vectors[3, 2] = value
    with pytest.raises(ArgumentError, match=r"id '3\.jpg': a vector with NaN or values that are too large"):
        built(vectors)
    with pytest.raises(ArgumentError, match=r"query 3: a vector with NaN"):
        index.search(vectors)


def test_zero_has_no_direction_but_an_inner_product() -> None:
    vectors = random_vectors(5)
    vectors[1] = 0
    with pytest.raises(ArgumentError, match=r"id '1\.jpg': a vector of zeros has no direction"):
        built(vectors)
    with pytest.raises(ArgumentError, match=r"query 1: a vector of zeros"):
        built(random_vectors(5)).search(vectors)
    assert built(vectors, metric="inner_product").search(vectors[1], 2).scores.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "b"]}, "given 2 ids and vectors"),
        ({"ids": ["a", "b", "a"]}, "id 'a' is given twice"),
        ({"ids": ["a", "b", 3]}, "id 3 of row 2: is no text"),
        ({"ids": ["a", "b", "\0"]}, "without null characters"),
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
        built(random_vectors(3)).search(random_vectors(1), **change)


@pytest.mark.parametrize("name", ["vectors.npy", "ids.npy", "id_offsets.npy", "index.json", "neighbours.usearch"])
def test_a_changed_byte_is_found_at_open(name: str, tmp_path: Path) -> None:
    saved(built(random_vectors(20)), tmp_path / "index", approximate=True)
    content = bytearray((tmp_path / "index" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "index" / name).write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=name):
        Index.open(tmp_path / "index")


def rewritten(directory: Path, name: str, content: bytes | NDArray[Any]) -> None:
    """Exchange a file of a published directory, manifest and all."""
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "MANIFEST.sha256"}
    with publish(directory, replace=True) as work:
        for other, data in files.items():
            (work / other).write_bytes(data)
        if isinstance(content, bytes):
            (work / name).write_bytes(content)
        else:
            np.save(work / name, content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vectors.npy", b"", "build the index again"),
        ("vectors.npy", b"\x93NUMPY\x01\x00", "build the index again"),
        ("vectors.npy", np.ones((20, 8), np.float32), r"vectors\.npy is float32 \[20, 8\], not float32 \[20, 7\]"),
        ("vectors.npy", np.ones((20, 7)), "is float64"),
        ("vectors.npy", np.asfortranarray(np.ones((20, 7), np.float32)), "vectors.npy"),
        ("vectors.npy", np.array(["object"] * 20, object), "build the index again"),
        ("id_offsets.npy", np.arange(20), r"id_offsets\.npy is int64 \[20\]"),
        ("id_offsets.npy", np.r_[np.arange(20)[::-1], 110], "does not ascend"),
        ("id_offsets.npy", np.r_[np.arange(20), -5], r"ids\.npy is uint8"),
        ("ids.npy", np.ones(5, np.uint8), r"ids\.npy is uint8 \[5\]"),
        ("index.json", b"[]", "build the index again"),
        ("index.json", b"\xff", "build the index again"),
        ("index.json", b"{}", "format version None, this release reads 1"),
        ("index.json", b'{"format_version": 1, "encoder": "a"}', "build the index again"),
        ("index.json", b'{"format_version": 2}', "format version 2"),
    ],
)
def test_files_that_do_not_fit_are_refused_even_unverified(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    saved(built(random_vectors(20)), tmp_path / "index")
    rewritten(tmp_path / "index", name, content)
    for check in (True, False):
        with pytest.raises(IndexFormatError, match=message):
            Index.open(tmp_path / "index", verify=check)


def test_directories_that_are_no_index(tmp_path: Path) -> None:
    for check in (True, False):
        with pytest.raises(MissingArtifactError, match="no such directory"):
            Index.open(tmp_path / "none", verify=check)
        with pytest.raises(MissingArtifactError, match=r"has no MANIFEST\.sha256"):
            Index.open(tmp_path, verify=check)
    with publish(tmp_path / "other") as work:
        (work / "a.txt").write_text("a")
    with pytest.raises(IndexFormatError, match=r"index\.json"):
        Index.open(tmp_path / "other")
    with pytest.raises(IndexFormatError, match=r"has no embedding\.json; give a directory made by"):
        Index.merge([tmp_path / "other"], tmp_path / "out")


def test_an_unverified_index_reads_only_what_it_needs(tmp_path: Path) -> None:
    saved(built(random_vectors(20)), tmp_path / "index")
    content = bytearray((tmp_path / "index" / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "index" / "vectors.npy").write_bytes(content)
    assert len(Index.open(tmp_path / "index", verify=False)) == 20


def test_an_existing_index_is_replaced_only_when_asked(tmp_path: Path) -> None:
    old = saved(built(random_vectors(3)), tmp_path / "index")
    with pytest.raises(ArgumentError, match="exists already"):
        built(random_vectors(4)).save(tmp_path / "index")
    new = saved(built(random_vectors(4)), tmp_path / "index", replace=True)
    assert (len(old.search(random_vectors(1)).ids[0]), len(new)) == (3, 4), "who searches the old one goes on"
    (grown := Index.open(tmp_path / "index")).save(tmp_path / "index", replace=True)
    assert np.array_equal(Index.open(tmp_path / "index").vectors, grown.vectors)


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    parts = [(["a"], random_vectors(1)), (["a"], random_vectors(1))]
    with pytest.raises(ArgumentError, match="given twice"):
        Index.write(tmp_path / "index", parts, ENCODER, 7)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def embedded(bundle: Path, tmp_path: Path) -> tuple[Encoder, list[Path]]:
    """Two directories of embeddings, one of raw vectors."""
    encoder, folders = deploy.load(bundle, threads=1), []
    for number in range(2):
        photos = tmp_path / f"photos{number}"
        photos.mkdir()
        for seed in range(3):
            (photos / f"{seed},\n.png").write_bytes(encoded(noise(10 * number + seed)))
        (photos / "bad.png").write_bytes(b"")
        files = sorted(str(path) for path in photos.iterdir())
        embed_files(encoder, files, tmp_path / f"embeddings{number}", normalize=number == 0)
        folders.append(tmp_path / f"embeddings{number}")
    return encoder, folders


def test_embeddings_and_indexes_are_merged(embedded: tuple[Encoder, list[Path]], tmp_path: Path) -> None:
    encoder, folders = embedded
    Index.merge(folders[:1], tmp_path / "index", encoder)
    Index.merge([tmp_path / "index", folders[1]], tmp_path / "index", encoder, replace=True)
    index = Index.open(tmp_path / "index", encoder)
    verify(tmp_path / "index")
    expected = [str(tmp_path / f"photos{number}" / f"{seed},\n.png") for number in range(2) for seed in range(3)]
    assert list(index.ids) == expected
    for path in expected:
        found = index.search(encoder.embed(path).vectors, 1)
        assert found.ids == [[path]]
        assert found.scores[0, 0] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ArgumentError, match="is given twice"):
        Index.merge([tmp_path / "index", folders[1]], tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_what_does_not_belong_together_is_not_merged(embedded: tuple[Encoder, list[Path]], tmp_path: Path) -> None:
    encoder, folders = embedded
    with pytest.raises(IndexMismatchError, match="embeddings0: made by encoder"):
        Index.merge(folders, tmp_path / "index", "other")
    saved(built(random_vectors(2, DIM)), tmp_path / "foreign")
    with pytest.raises(IndexMismatchError, match="foreign: made by encoder aaaaaaaaaaaa, not"):
        Index.merge([*folders, tmp_path / "foreign"], tmp_path / "index")
    Index.build(random_vectors(1, DIM), ["a"], encoder, "inner_product").save(tmp_path / "inner")
    with pytest.raises(IndexMismatchError, match="inner: inner_product of float32"):
        Index.merge([*folders, tmp_path / "inner"], tmp_path / "index")
    with pytest.raises(ArgumentError, match="nothing to index"):
        Index.merge([], tmp_path / "index")
    content = bytearray((folders[1] / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (folders[1] / "vectors.npy").write_bytes(content)
    with pytest.raises(CorruptArtifactError):
        Index.merge(folders, tmp_path / "index")
    rewritten(folders[0], "ids.csv", b"row,path\n0,a\n")
    with pytest.raises(IndexFormatError, match=r"ids\.csv names 1 rows of 3"):
        Index.merge(folders[:1], tmp_path / "index")


@pytest.mark.parametrize("tile", [1 << 20, 64])
def test_duplicates_are_all_pairs_above_the_threshold(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "TILE", tile)
    monkeypatch.setattr(exact_search, "TILE_QUERIES", 16)
    vectors = random_vectors(120, 4)
    vectors[77], vectors[119] = vectors[5] * 3, vectors[5]
    index = built(vectors)
    cosines = unit(vectors) @ unit(vectors).T
    expected = {
        (f"{a}.jpg", f"{b}.jpg"): cosines[a, b] for a in range(120) for b in range(a + 1, 120) if cosines[a, b] >= 0.9
    }
    found = {(pair.first, pair.second): pair.cosine for pair in index.duplicates(0.9)}
    assert found == pytest.approx(expected, abs=1e-6)
    same = [(pair.first, pair.second) for pair in index.duplicates(1.0)]
    assert sorted(same) == [("5.jpg", "119.jpg"), ("5.jpg", "77.jpg"), ("77.jpg", "119.jpg")]


def test_duplicates_need_cosines() -> None:
    for index, threshold in ((built(random_vectors(3), metric="inner_product"), 0.9), (built(random_vectors(3)), 1.1)):
        with pytest.raises(ArgumentError, match="duplicates need the metric cosine and a threshold"):
            index.duplicates(threshold)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_is_bounded_whatever_is_asked(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TILE", "COPIED", "GATHERED"):
        monkeypatch.setattr(exact_search, name, 1 << 14)
    rows, dim = 5000, 256  # 5 MB as float32
    opened = saved(built(random_vectors(rows, dim), dtype=dtype), tmp_path / "index")
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


def test_many_threads_get_the_answers_of_one(tmp_path: Path) -> None:
    index = saved(built(random_vectors(4000, 32)), tmp_path / "index", approximate=True)
    queries = random_vectors(60, 32, seed=1)

    def answer(number: int) -> Matches:
        return index.search(queries[number], 5, approximate=number % 2 == 1)

    alone = [answer(number) for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(answer, list(range(60)) * 5)):
            assert np.array_equal(found.rows, alone[number % 60].rows)
            assert np.array_equal(found.scores, alone[number % 60].scores)


@pytest.mark.slow
def test_approximate_search_finds_nearly_all_of_20000_clustered_vectors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((200, 64))
    vectors, queries = (
        centres[random.integers(0, 200, rows)] + 0.7 * random.standard_normal((rows, 64)) for rows in (20_000, 300)
    )
    index = saved(built(vectors), tmp_path / "index", approximate=True)
    assert index.info["approximate"]
    exact, fast = index.search(queries, 10), index.search(queries, 10, approximate=True)
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(exact.rows, fast.rows, strict=True)])
    assert recall >= 0.95
    same = exact.rows == fast.rows
    assert np.array_equal(exact.scores[same], fast.scores[same]), "candidates are scored exactly"
    assert np.array_equal(index.search(queries[0], 10, approximate=True).rows[0], fast.rows[0])


def test_approximate_search_of_few_or_no_vectors_is_complete(tmp_path: Path) -> None:
    for count in (0, 1, 30):
        index = saved(built(random_vectors(count)), tmp_path / str(count), approximate=True)
        for queries in (random_vectors(0), random_vectors(1, seed=1), random_vectors(4, seed=1)):
            found, expected = index.search(queries, 40, approximate=True), index.search(queries, 40)
            assert found.ids == expected.ids
            assert np.array_equal(found.scores, expected.scores)


def test_what_a_graph_cannot_do_is_refused(tmp_path: Path) -> None:
    index = saved(built(random_vectors(20)), tmp_path / "index", approximate=True)
    with pytest.raises(ArgumentError, match="a mask needs exact search"):
        index.search(random_vectors(1), mask=np.ones(20, np.bool_), approximate=True)
    with pytest.raises(ArgumentError, match="needs vectors of one length: choose cosine"):
        built(random_vectors(3), metric="inner_product").save(tmp_path / "inner", approximate=True)
    other = saved(built(random_vectors(30)), tmp_path / "other", approximate=True)
    for content in (b"no graph", (tmp_path / "other" / "neighbours.usearch").read_bytes()):
        rewritten(tmp_path / "index", "neighbours.usearch", content)
        opened = Index.open(tmp_path / "index")
        assert len(opened.search(random_vectors(1)).ids[0]) == 10, "exact search needs no graph"
        with pytest.raises(IndexFormatError, match="build the index again"):
            opened.search(random_vectors(1), approximate=True)
    assert len(other) == 30


def test_without_usearch_only_approximate_search_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(built(random_vectors(20)), tmp_path / "index", approximate=True)
    for name in ("usearch", "usearch.index"):
        monkeypatch.setitem(sys.modules, name, None)
    opened = Index.open(tmp_path / "index")
    assert len(opened.search(random_vectors(1)).ids[0]) == 10
    for attempt in (
        lambda: opened.search(random_vectors(1), approximate=True),
        lambda: opened.save(tmp_path / "again", approximate=True),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'simclr-pipeline\[search\]'"):
            attempt()
    assert not (tmp_path / "again").exists()


def test_deploy_loads_the_index_only_when_it_is_used() -> None:
    code = (
        "import deploy, sys; before = 'deploy.index' in sys.modules; deploy.Index\n"
        "print(before, 'deploy.index' in sys.modules, 'usearch' in sys.modules, hasattr(deploy, 'Nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False", "False"]


def test_the_card_says_what_the_files_are(tmp_path: Path) -> None:
    built(random_vectors(6)).save(tmp_path / "index")
    card = json.loads((tmp_path / "index" / "index.json").read_text())
    assert card.pop("longest") == pytest.approx(1, abs=1e-6)
    assert card.pop("format_version") == index_files.FORMAT_VERSION
    assert card == {"encoder": ENCODER, "name": None, "dim": 7, "metric": "cosine", "dtype": "float32", "count": 6}
