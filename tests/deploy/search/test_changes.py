"""A changed index answers as one built of the same rows; a kill leaves the old or the new one; one writer at a time."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.artifact import verify
from deploy.errors import ArgumentError, IndexMismatchError
from deploy.search.files import writing
from deploy.search.index import Index
from tests.deploy.conftest import ENCODER, build, names, random_vectors

ROOT = Path(__file__).parents[3]


@pytest.mark.seconds
@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_changed_index_answers_as_one_built_of_the_same_rows(approximate: bool, dtype: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    directory = tmp_path / "index"
    vectors = random_vectors(300)
    rows: dict[str, tuple[Any, Any]] = {name: (vectors[i], i % 5) for i, name in enumerate(names(300))}
    metadata = {"turn": [turn for _, turn in rows.values()]}
    Index.build(vectors, list(rows), ENCODER, dtype=dtype, metadata=metadata).save(directory, approximate)
    for turn in range(12):
        chosen = [str(name) for name in random.permutation(list(rows))[:40]]
        fresh = random_vectors(40, seed=turn + 10)
        if turn % 3 == 0:
            Index.delete(directory, chosen)
            rows = {name: row for name, row in rows.items() if name not in chosen}
        else:
            replaced = turn % 3 == 1
            given = chosen if replaced else [f"new {turn} {number}" for number in range(40)]
            change = Index.update if replaced else Index.add
            change(directory, [(given, fresh, {"turn": [turn] * 40, f"extra {turn}": given})], ENCODER)
            rows = {name: row for name, row in rows.items() if name not in given}
            rows |= {name: (fresh[number], turn) for number, name in enumerate(given)}
        verify(directory)
        opened = Index.open(directory, ENCODER)
        assert list(opened.ids) == list(rows)
        assert [opened.metadata(row)["turn"] for row in range(len(rows))] == [about for _, about in rows.values()]
        expected = Index.build(np.stack([vector for vector, _ in rows.values()]), list(rows), ENCODER, dtype=dtype)
        assert np.array_equal(opened.vectors, expected.vectors)
        queries = random_vectors(6, seed=99)
        found = opened.search(queries, 8, approximate=approximate)
        assert np.mean(found.rows == expected.search(queries, 8).rows) >= (0.95 if approximate else 1)
    assert opened.info["approximate"] == approximate
    assert list(tmp_path.iterdir()) == [directory]


def test_everything_can_be_deleted_and_added_again(tmp_path: Path) -> None:
    build(random_vectors(50)).save(tmp_path / "index", approximate=True)
    Index.delete(tmp_path / "index", names(50))
    for approximate in (False, True):
        found = Index.open(tmp_path / "index").search(random_vectors(2), 3, approximate=approximate)
        assert (found.ids, found.rows.shape) == ([[], []], (2, 0))
    Index.add(tmp_path / "index", [(["a"], random_vectors(1))], ENCODER)
    assert Index.open(tmp_path / "index").search(random_vectors(1), 3, approximate=True).ids == [["a"]]


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    build(random_vectors(5)).save(directory)
    before = (directory / "MANIFEST.sha256").read_bytes()
    one = random_vectors(1)
    broken = np.full((1, 7), np.nan)
    attempts: list[tuple[Any, type[Exception], str]] = [
        (lambda: Index.add(directory, [(["0.jpg"], one)], ENCODER), ArgumentError, "is in the index already"),
        (lambda: Index.add(directory, [(["a", "a"], random_vectors(2))], ENCODER), ArgumentError, "given twice"),
        (lambda: Index.add(directory, [(["a"], broken)], ENCODER), ArgumentError, "the vector has NaN"),
        (lambda: Index.add(directory, [(["a"], random_vectors(1, 6))], ENCODER), ArgumentError, r"\[n, 7\]"),
        (lambda: Index.add(directory, [(["a"], one)], "another"), IndexMismatchError, "not another"),
        (lambda: Index.update(directory, [(["a"], one)], ENCODER), ArgumentError, "not in the index: 'a'; give ids"),
        (lambda: Index.update(directory, [(["0.jpg"], one)], "another"), IndexMismatchError, "not another"),
        (lambda: Index.delete(directory, names(9)), ArgumentError, r"'5\.jpg', '6\.jpg', '7\.jpg' and 1 more"),
        (lambda: Index.delete(directory, "0.jpg"), ArgumentError, "give a list of ids"),
        (lambda: Index.delete(directory, ["0.jpg"], "another"), IndexMismatchError, "not another"),
    ]
    for attempt, kind, message in attempts:
        with pytest.raises(kind, match=message):
            attempt()
    assert (directory / "MANIFEST.sha256").read_bytes() == before
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize("place", ["artifact.flush", "artifact.rename", "artifact.renamed"])
def test_a_kill_leaves_the_old_or_the_new_index(place: str, tmp_path: Path) -> None:
    directory = tmp_path / "index"
    build(random_vectors(5)).save(directory)
    code = "import sys; from deploy.search.index import Index; Index.delete(sys.argv[1], ['1.jpg'])"
    environment = os.environ | {"SIMCLR_FAILPOINT": f"{place}:kill", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, directory], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(Index.open(directory)) == (4 if place == "artifact.renamed" else 5)
    Index.delete(directory, ["2.jpg"])
    assert "2.jpg" not in list(Index.open(directory).ids)
    assert list(tmp_path.iterdir()) == [directory], "the files of the killed writer are removed"


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    build(random_vectors(5)).save(directory)
    with writing(directory):
        for attempt in (
            lambda: Index.delete(directory, ["1.jpg"]),
            lambda: Index.add(directory, [(["a"], random_vectors(1))], ENCODER),
            lambda: build(random_vectors(3)).save(directory, replace=True),
        ):
            with pytest.raises(ArgumentError, match="another process is writing it; wait until it is done"):
                attempt()
    Index.delete(directory, ["1.jpg"])
    assert len(Index.open(directory)) == 4


def test_readers_have_one_state_while_a_writer_replaces_it(tmp_path: Path) -> None:
    """In each state the vectors, ids, metadata and graph belong together: row i is the vector of the state's number."""
    directory = tmp_path / "index"

    def state(number: int) -> tuple[list[str], Any, dict[str, Any]]:
        return [f"{number}.{i}" for i in range(20)], random_vectors(20, seed=number), {"state": [number] * 20}

    Index.write(directory, [state(0)], ENCODER, approximate=True)

    def write() -> None:
        for number in range(1, 15):
            Index.write(directory, [state(number)], ENCODER, approximate=True, replace=True)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        looks = 0
        while not writer.done() or looks < 3:
            index = Index.open(directory, verify=looks % 2 == 0)
            number = index.metadata(0)["state"]
            found = index.search(random_vectors(20, seed=int(number)), 1, approximate=True)
            assert [ids[0] for ids in found.ids] == [f"{number}.{i}" for i in range(20)]
            looks += 1
        writer.result()


def test_an_index_of_the_first_format_is_read_and_changed(tmp_path: Path) -> None:
    """It has neither metadata nor ``graph_rows.npy``, and its graph is of float16."""
    import json

    from usearch.index import Index as Graph

    from deploy.artifact import publish

    build(random_vectors(40)).save(tmp_path / "new")
    with publish(tmp_path / "old") as work:
        for name in ("vectors.npy", "ids.npy", "id_offsets.npy"):
            (work / name).write_bytes((tmp_path / "new" / name).read_bytes())
        card = json.loads((tmp_path / "new" / "index.json").read_text())
        del card["columns"], card["graph"]
        (work / "index.json").write_text(json.dumps(card | {"format_version": 1}))
        graph = Graph(ndim=7, metric="ip", dtype="f16")
        graph.add(np.arange(40, dtype=np.uint64), Index.open(tmp_path / "new").vectors)
        graph.save(str(work / "neighbours.usearch"))
    Index.delete(tmp_path / "old", ["3.jpg"])
    Index.add(tmp_path / "old", [(["a"], random_vectors(1, seed=5))], ENCODER)
    opened = Index.open(tmp_path / "old")
    assert opened.search(random_vectors(1, seed=5), 1, approximate=True).ids == [["a"]]
    assert "3.jpg" not in opened.search(random_vectors(40)[3], 40, approximate=True).ids[0]
