"""A graph whose file has a wrong number is refused before usearch follows it, which would read any memory."""

import struct
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import ArgumentError, IndexFormatError
from deploy.search.approximate import GRAPH
from deploy.search.graph_file import check_graph
from deploy.search.index import Index
from tests.deploy.conftest import ENCODER, build, random_vectors, rewrite

ENTRIES, DIM = 300, 7
HEAD = 8 + ENTRIES * DIM * 2
NUMBERS = HEAD + 64
LEVELS = NUMBERS + 40
NODES = LEVELS + 2 * ENTRIES


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("graph") / "index"
    build(random_vectors(ENTRIES)).save(directory, approximate=True)
    return (directory / GRAPH).read_bytes()


def changed(content: bytes, place: int, form: str, value: int) -> bytes:
    return content[:place] + struct.pack(form, value) + content[place + struct.calcsize(form) :]


@pytest.mark.parametrize("entries", [0, 1, 2, ENTRIES])
def test_what_usearch_wrote_is_accepted(entries: int, tmp_path: Path) -> None:
    build(random_vectors(entries)).save(tmp_path / "index", approximate=True)
    found = Index.open(tmp_path / "index").search(random_vectors(1), approximate=True)
    assert len(found.ids[0]) == min(entries, 10)


@pytest.mark.parametrize(
    ("place", "form", "value", "fault"),
    [
        (0, "<I", ENTRIES + 1, "has other vectors"),
        (4, "<I", 2 * DIM + 1, "has other vectors"),
        (HEAD, "<B", 0, "has no header"),
        (NUMBERS, "<Q", ENTRIES - 1, "has other nodes"),
        (NUMBERS + 8, "<Q", 2**40, "has other nodes"),
        (NUMBERS + 16, "<Q", 33, "is of another size"),
        (NUMBERS + 24, "<Q", 9, "has wrong levels"),
        (NUMBERS + 32, "<Q", ENTRIES, "begins at a wrong node"),
        (LEVELS, "<h", -1, "has wrong levels"),
        (LEVELS, "<h", 1, "is of another size"),
        (NODES, "<Q", ENTRIES, "has wrong keys"),
        (NODES, "<Q", 2**63, "has wrong keys"),
        (NODES + 8, "<h", 1, "differs"),
        (NODES + 10, "<I", 33, "has wrong links"),
        (NODES + 10, "<I", 2**32 - 1, "has wrong links"),
        (NODES + 14, "<I", ENTRIES, "has wrong links"),
    ],
)
def test_each_number_has_its_range(whole: bytes, place: int, form: str, value: int, fault: str) -> None:
    assert np.frombuffer(whole, "<i2", 1, LEVELS) == [0]  # the first node is of the lowest level
    with pytest.raises(ArgumentError, match=fault):
        check_graph(np.frombuffer(changed(whole, place, form, value), np.uint8), ENTRIES, DIM)


def test_links_of_higher_levels_stay_on_their_level(whole: bytes) -> None:
    levels = np.frombuffer(whole, "<i2", ENTRIES, LEVELS)
    base_links = struct.unpack_from("<Q", whole, NUMBERS + 16)[0]
    high = int(np.flatnonzero(levels)[0])  # before it, every node has the lowest level alone
    start = NODES + high * (14 + 4 * base_links) + 14 + 4 * base_links
    assert struct.unpack_from("<I", whole, start)[0] > 0
    with pytest.raises(ArgumentError, match="links a node at a level that it lacks"):
        check_graph(np.frombuffer(changed(whole, start + 4, "<I", 0), np.uint8), ENTRIES, DIM)


def test_a_file_that_ends_early_or_late_is_refused(whole: bytes) -> None:
    for content in (b"", whole[:7], whole[: NODES - 1], whole[:-1], whole + b"\0"):
        with pytest.raises(ArgumentError, match=r"ends early|is of another size"):
            check_graph(np.frombuffer(content, np.uint8), ENTRIES, DIM)


def test_an_index_with_such_a_graph_is_refused(whole: bytes, tmp_path: Path) -> None:
    build(random_vectors(ENTRIES)).save(tmp_path / "index", approximate=True)
    rewrite(tmp_path / "index", GRAPH, changed(whole, NODES + 14, "<I", 2**31))
    opened = Index.open(tmp_path / "index")
    assert len(opened.search(random_vectors(1)).ids[0]) == 10, "exact search needs no graph"
    with pytest.raises(IndexFormatError, match="the graph has wrong links; build"):
        opened.search(random_vectors(1), approximate=True)
    with pytest.raises(IndexFormatError, match="the graph has wrong links; build"):
        Index.add(tmp_path / "index", [(["new"], random_vectors(1))], ENCODER)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_vectors_longer_than_the_index_says_are_refused(value: float, tmp_path: Path) -> None:
    """Exact search relies on the length, and the search for duplicates on finite values."""
    build(random_vectors(ENTRIES)).save(tmp_path / "index")
    vectors = np.load(tmp_path / "index" / "vectors.npy")
    vectors[7, 3] = value
    rewrite(tmp_path / "index", "vectors.npy", vectors)
    with pytest.raises(IndexFormatError, match=r"vectors\.npy has a vector that is longer than 1, the most that"):
        Index.open(tmp_path / "index")
