"""Counts: what Great Expectations asks of a table before it decides, found by one pass of polars over each table.

Great Expectations calls this metrics, and computes them from a pandas frame of all rows. Its expectations decide from
the metrics alone, so they are given counts that cost next to nothing for each row. What is counted is defined by the
type of an expectation and its arguments, in the table of ``expectations``; ``evaluate`` lets the expectation decide.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.validation import expectations
from pipeline.validation.expectations import Expectation

ID = "id"
"""The column of every table that names its rows to a person: a file id, or what was compared."""

SAMPLES = 10

WHOLE = (expectations.ROWS, expectations.COLUMNS)
"""Types of expectations that are about a table and not about its rows."""


@dataclass(frozen=True)
class Counts:
    """What one expectation asks of its table.

    ``missing`` rows have no value, ``compared`` ones have one. Of the ``unexpected`` ones the first SAMPLES are given,
    by their numbers, values and ids. ``value`` is the mean or the largest value; NaN without any value.
    """

    columns: Sequence[str]
    rows: int
    missing: int = 0
    compared: int = 0
    unexpected: int = 0
    numbers: Sequence[int] = ()
    values: Sequence[Any] = ()
    ids: Sequence[str] = ()
    value: float = math.nan

    def metric(self, name: str) -> Any:
        """What Great Expectations calls so.

        Raises:
            KeyError: that is not counted.
        """
        known = {
            "table.columns": list(self.columns),
            "table.row_count": self.rows,
            "column_values.nonnull.unexpected_count": self.missing,
            "column.mean": self.value,
            "column.max": self.value,
        }
        by_row = {
            "unexpected_count": self.unexpected,
            "unexpected_values": list(self.values),
            "unexpected_index_list": list(self.numbers),
            "unexpected_index_query": None,
            "filtered_row_count": self.compared,
        }
        return known[name] if name in known else by_row[name.rpartition(".")[2]]


def count(table: pl.LazyFrame, rules: Iterable[Expectation]) -> dict[str, Counts]:
    """The counts for each rule by its name; none for a rule that looks into a column that the table does not have.

    Args:
        table: with a column ``id``.
    """
    schema = table.collect_schema()
    columns = [name for name in schema if name != ID]
    asked = {rule.name: _asked(rule, schema) for rule in rules if set(rule.columns) <= set(columns)}
    found = table.select(
        pl.len().alias(ID),
        *(
            pl.struct(value.alias(what) for what, value in one.items()).alias(name)
            for name, one in asked.items()
            if one
        ),
    )
    answers = found.collect()
    rows = answers[ID].item()
    return {name: Counts(columns, rows, **_answer(answers, name)) for name in asked}


def _answer(answers: pl.DataFrame, name: str) -> dict[str, Any]:
    """The fields of Counts. A mean is of the exact sum, which no order of rows and no number of threads changes."""
    if name not in answers.columns:
        return {}
    fields = answers[name].struct.unnest()
    if fields.columns == ["value"]:
        found = fields["value"]
        values = (found.explode() if found.dtype == pl.List else found).drop_nulls()
        return {"value": math.fsum(values) / len(values) if len(values) else math.nan}
    answer = fields.row(0, named=True)
    return answer | {"values": [tuple(one) if isinstance(one, list) else one for one in answer["values"]]}


def _asked(rule: Expectation, schema: pl.Schema) -> dict[str, pl.Expr]:
    """What is found out of all rows for a rule: the fields of Counts."""
    if rule.type in WHOLE:
        return {}
    values = [pl.col(name).fill_nan(None) if schema[name].is_float() else pl.col(name) for name in rule.columns]
    missing = pl.all_horizontal(one.is_null() for one in values)
    if rule.type in (expectations.MEAN, expectations.MAX):
        return {"value": values[0].implode() if rule.type == expectations.MEAN else values[0].max()}
    against = _against(rule, *values, kind=schema[rule.columns[0]]).fill_null(value=False)
    numbers = against.arg_true().head(SAMPLES)
    kinds = [pl.Float64() if schema[name].is_numeric() else schema[name] for name in rule.columns]
    shown = [value.gather(numbers).cast(kind) for value, kind in zip(values, kinds, strict=True)]
    return {
        "missing": missing.sum(),
        "compared": (~missing).sum(),
        "unexpected": against.sum(),
        "numbers": numbers.implode(),
        "values": (shown[0] if len(shown) == 1 else pl.concat_list(shown)).implode(),
        "ids": pl.col(ID).gather(numbers).implode(),
    }


def _against(rule: Expectation, value: pl.Expr, other: pl.Expr | None = None, *, kind: pl.DataType) -> pl.Expr:
    """Which rows are against an expectation; null, as false, where there is no value.

    Args:
        value: of the column, or of the higher one of two.
        kind: of its values.
    """
    given = rule.arguments
    match rule.type:
        case expectations.PRESENT:
            return value.is_null()
        case expectations.IN_SET:
            return ~value.is_in(pl.Series(given["value_set"], dtype=kind).implode())
        case expectations.NOT_IN_SET:
            return value.is_in(pl.Series(given["value_set"], dtype=kind).implode())
        case expectations.BETWEEN:
            ends = [value < given["min_value"]] if "min_value" in given else []
            ends += [value > given["max_value"]] if "max_value" in given else []
            return pl.any_horizontal(ends)
        case expectations.UNIQUE:
            return value.is_duplicated() & value.is_not_null()
        case expectations.NOT_BELOW if other is not None:
            both_missing = value.is_null() & other.is_null()
            return ~(value >= other).fill_null(value=False) & ~both_missing
    raise AssertionError(f"{rule.type} is not counted")
