"""Conditions on metadata give the same rows as comparing value by value, and refuse what a column does not hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import ArgumentError
from deploy.search.columns import make_columns
from deploy.search.filters import Range, parse_where, passing
from deploy.search.index import Index
from tests.deploy.conftest import ENCODER, names, random_vectors

VALUES: dict[str, list[Any]] = {
    "label": ["cat", "dog", None, "ape", "cat", "", "caf\udce9", "日本"],
    "year": [2024, 2026, 2025, None, -(2**63), 2**63 - 1, 2025, 0],
    "score": [0.5, 1, -2.5, 1e300, None, 0.5, 0.0, 3],
    "seen": [True, False, None, True, True, False, False, True],
    "none": [None] * 8,
}
CONDITIONS: list[dict[str, Any]] = [
    {},
    {"label": "cat"},
    {"label": ""},
    {"label": ["cat", "日本", "not there"]},
    {"label": ()},
    {"label": Range("b", "d")},
    {"label": Range()},
    {"year": 2025},
    {"year": {2025, 2026}},
    {"year": Range(2025)},
    {"year": Range(2024.5, 2025.5)},
    {"year": 2024.5},
    {"year": Range(most=-1e30)},
    {"year": Range(1e30)},
    {"year": Range(2**63 - 1)},
    {"score": 1},
    {"score": Range(0, 1)},
    {"score": Range(1, 0)},
    {"seen": True},
    {"seen": [True, False]},
    {"none": "x"},
    {"label": "cat", "year": Range(2000), "seen": True},
]


def holds(value: Any, condition: Any) -> bool:
    if value is None:
        return False
    if isinstance(condition, Range):
        least, most = condition.least, condition.most
        return (least is None or value >= least) and (most is None or value <= most)
    return value in condition if isinstance(condition, list | set | tuple) else bool(value == condition)


@pytest.mark.parametrize("where", CONDITIONS, ids=repr)
@pytest.mark.parametrize("saved", [False, True])
def test_rows_that_pass_are_those_whose_values_do(where: dict[str, Any], saved: bool, tmp_path: Path) -> None:
    index = Index.build(random_vectors(8), names(8), ENCODER, metadata=VALUES)
    if saved:
        index.save(tmp_path / "index")
        index = Index.open(tmp_path / "index")
    expected = [all(holds(VALUES[name][row], condition) for name, condition in where.items()) for row in range(8)]
    assert passing(index.columns, where, 8).tolist() == expected
    for row in range(8):
        assert index.metadata(row) == {name: values[row] for name, values in VALUES.items() if values[row] is not None}


def test_conditions_of_the_command_line() -> None:
    columns = make_columns(VALUES)
    given = ["label=cat", " label = a=b", "year>=2024", "year<=2026", "seen=TRUE", "score<=1e2"]
    assert parse_where(given, columns) == {
        "label": ["cat", "a=b"],
        "year": Range(2024, 2026),
        "seen": [True],
        "score": Range(most=100.0),
    }
    for wrong, message in (
        ("label", "give NAME=VALUE"),
        ("=cat", "give NAME=VALUE"),
        ("size=3", "no column 'size' in this index, which has label, none, score, seen, year"),
        ("year=soon", "'year' holds whole numbers; given 'soon'"),
        ("year=2025.5", "'year' holds whole numbers"),
        ("score=x", "'score' holds numbers"),
        ("seen=maybe", "'seen' holds true and false"),
        ("year=2025", "either values, or a lowest and a highest"),
        ("year>=2025", "given twice"),
    ):
        with pytest.raises(ArgumentError, match=message):
            parse_where(["year>=2024", wrong], columns)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"size": 3}, "no column 'size'"),
        ({"year": "2025"}, "holds whole numbers; given '2025'"),
        ({"year": True}, "holds whole numbers; given True"),
        ({"seen": 1}, "holds true and false; given 1"),
        ({"label": 3}, "holds text; given 3"),
        ({"label": [{}]}, "is not allowed"),
        ({"label": None}, "'label': None is not allowed"),
        ({"label": ["cat", None]}, "'label': None is not allowed"),
        ({"score": float("nan")}, "nan is not allowed"),
        ({"score": Range(float("inf"))}, "inf is not allowed"),
        ({"year": 2**70}, "is not allowed"),
        ({"label": {"a": 1}}, "is not allowed"),
        ("label=cat", "where is of type str; give a dictionary"),
    ],
)
def test_wrong_conditions_are_refused(where: Any, message: str) -> None:
    index = Index.build(random_vectors(8), names(8), ENCODER, metadata=VALUES)
    with pytest.raises(ArgumentError, match=message):
        index.search(random_vectors(1), where=where)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": [1, "x", None]}, "column 'a': holds 1 and 'x'; give values of one kind"),
        ({"a": [1, True, None]}, "values of one kind"),
        ({"a": [1, 2]}, "one value for each of the 3 rows"),
        ({"a": "abc"}, "one value for each of the 3 rows"),
        ({"a": [1.0, float("nan"), 2]}, "nan is not allowed"),
        ({"a": [b"x", None, None]}, "is not allowed"),
        ({"a": ["x\0", None, None]}, "is not allowed"),
        ({"a": ["x" * 1001, None, None]}, "is not allowed"),
        ({"": [1, 2, 3]}, "give a name of 1 to 1,000 characters"),
        ([1, 2, 3], "metadata is of type list"),
    ],
)
def test_wrong_metadata_is_refused(metadata: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Index.build(random_vectors(3), names(3), ENCODER, metadata=metadata)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 0.3, 1.0])
def test_search_with_conditions_equals_brute_force(share: float, tmp_path: Path) -> None:
    """Approximate search may miss a neighbor: its graph is built by threads, never twice the same."""
    rows = 1000
    passes = np.random.default_rng(5).random(rows) < share
    metadata = {"good": passes, "half": np.arange(rows) % 2}
    Index.build(random_vectors(rows), names(rows), ENCODER, metadata=metadata).save(tmp_path / "index", True)
    index, queries = Index.open(tmp_path / "index"), random_vectors(50, seed=1)
    mask = np.arange(rows) >= 100
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores = np.where(passes & mask, unit @ index.vectors.T, -2)
    k = min(7, int((passes & mask).sum()))
    expected = np.argsort(-scores, axis=1)[:, :k]
    assert index.search(queries, 7, mask=mask, where={"good": True}).rows.tolist() == expected.tolist()
    found = index.search(queries, 7, approximate=True, mask=mask, where={"good": True})
    assert found.rows.shape == expected.shape
    assert np.allclose(found.scores, np.take_along_axis(scores, found.rows, axis=1), atol=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert sum(len({*row} & {*true}) for row, true in zip(found.rows, expected, strict=True)) >= 0.95 * expected.size


def test_conditions_against_the_query_find_what_is_far_away(tmp_path: Path) -> None:
    """No candidate of the graph passes: the rows that pass are those farthest from the query."""
    random = np.random.default_rng(0)
    near, far = random.normal(0, 0.1, (3000, 8)), random.normal(0, 0.1, (600, 8))
    near[:, 0] += 1
    far[:, 0] -= 1
    index = Index.build(np.concatenate([near, far]), names(3600), ENCODER, metadata={"far": [0] * 3000 + [1] * 600})
    index.save(tmp_path / "index", approximate=True)
    opened = Index.open(tmp_path / "index")
    query = np.eye(8)[:1]
    assert np.array_equal(
        opened.search(query, 5, where={"far": 1}, approximate=True).rows, index.search(query, 5, where={"far": 1}).rows
    )


def test_whole_numbers_of_many_digits_lose_none_next_to_decimals(tmp_path: Path) -> None:
    many = 2**53 + 1  # the first that float64 cannot hold
    with pytest.raises(ArgumentError, match=f"column 'a': {many} next to numbers with decimals would lose digits"):
        Index.build(random_vectors(2), names(2), ENCODER, metadata={"a": [many, 0.5]})
    index = Index.build(random_vectors(2), names(2), ENCODER, metadata={"a": [many, 2]})
    index.save(tmp_path / "index")
    with pytest.raises(ArgumentError, match="would lose digits"):
        Index.add(tmp_path / "index", [(["new"], random_vectors(1, seed=9), {"a": [0.5]})], ENCODER)
    assert Index.open(tmp_path / "index").metadata(0) == {"a": many}
    kept = Index.build(random_vectors(2), names(2), ENCODER, metadata={"a": [2**53 + 2, 0.5]})
    assert kept.metadata(0) == {"a": 2**53 + 2}, "these digits fit"


def test_a_condition_of_many_digits_is_compared_exactly() -> None:
    """2^53 + 1 is between two neighbors of float64 and equals neither."""
    values = [2.0**53, 2.0**53 + 2, 0.5]
    index = Index.build(random_vectors(3), names(3), ENCODER, metadata={"a": values})
    for value in (2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, 2**53 + 3):
        for where, expected in (
            (value, [row for row in range(3) if values[row] == value]),
            (Range(least=value), [row for row in range(3) if values[row] >= value]),
            (Range(most=value), [row for row in range(3) if values[row] <= value]),
        ):
            found = index.search(random_vectors(1), 3, where={"a": where})
            assert sorted(found.rows[0].tolist()) == expected, (value, where)


def test_times_of_numpy_do_not_become_numbers() -> None:
    for when in (np.datetime64("2026-01-01", "ns"), np.timedelta64(5, "ns"), np.datetime64("NaT")):
        with pytest.raises(ArgumentError, match=r"column 'a': .* is not allowed; give text"):
            Index.build(random_vectors(1), names(1), ENCODER, metadata={"a": [when]})


def test_an_id_that_would_come_back_as_another_is_refused() -> None:
    """The bytes of this surrogate pair are those of é."""
    for name in ("\udcc3\udca9", "\ud800"):
        with pytest.raises(ArgumentError, match="give strings of Unicode"):
            Index.build(random_vectors(1), [name], ENCODER)
    assert list(Index.build(random_vectors(1), ["\udcff.jpg"], ENCODER).ids) == ["\udcff.jpg"], "a path in latin-1"
