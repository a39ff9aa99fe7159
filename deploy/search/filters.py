"""Conditions on the metadata of rows, such as ``{"label": ["cat", "dog"], "year": Range(2024)}``: all have to hold."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError
from deploy.search.columns import Column, Columns, Value, check_value

CONDITION = re.compile(r"(?P<name>.+?)(?P<operator>>=|<=|=)(?P<value>.*)", re.DOTALL)
TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Range:
    """Values from ``least`` to ``most``, both included; None for no bound. Text is in the order of its code points."""

    least: Value | None = None
    most: Value | None = None


Where = Mapping[str, "Value | Collection[Value] | Range"]


def passing(columns: Columns, where: Where, count: int) -> NDArray[np.bool_]:
    """Return bool [count]: the rows for which all conditions hold. A row without a value passes no condition on it.

    Raises:
        ArgumentError: there is no such column, or a value is of another kind than the column.
    """
    if not isinstance(where, Mapping):
        raise ArgumentError(f"where is of type {type(where).__name__}; give a dictionary of column and condition")
    passed = np.ones(count, np.bool_)
    for name, condition in where.items():
        column = _find(columns, name)
        if isinstance(condition, Range):
            ranges = [condition]
        elif isinstance(condition, Collection) and not isinstance(condition, str | bytes | Mapping):
            ranges = [_exactly(name, value) for value in condition]
        else:
            ranges = [_exactly(name, condition)]
        allowed = np.zeros(len(column.values) + 1, np.bool_)  # the last is of the rows without a value
        for one in ranges:
            allowed[_position(name, column, one.least, "left", 0) : _position(name, column, one.most, "right", -1)] = (
                True
            )
        passed &= allowed[column.codes]
    return passed


def _exactly(name: str, value: Any) -> Range:
    """The range of one value. None, which a range takes for no bound, is not one: a missing value passes nothing."""
    if value is None:
        raise ArgumentError(f"column {name!r}: None is not allowed, a missing value passes nothing; give a value")
    return Range(value, value)  # another type is refused with its position


def parse_where(conditions: Sequence[str], columns: Columns) -> dict[str, Any]:
    """Read conditions NAME=VALUE, NAME>=VALUE and NAME<=VALUE; the same NAME= again means: any of the values.

    Raises:
        ArgumentError: a condition has another form, or its value is of another kind than the column.
    """
    equal: dict[str, list[Value]] = {}
    bounds: dict[str, dict[str, Value]] = {}
    for condition in conditions:
        parts = CONDITION.fullmatch(condition)
        if parts is None:
            raise ArgumentError(f"--where {condition!r}; give NAME=VALUE, NAME>=VALUE or NAME<=VALUE")
        name, operator = parts["name"].strip(), parts["operator"]
        value = _parse(name, _find(columns, name), parts["value"].strip())
        if operator == "=":
            equal.setdefault(name, []).append(value)
        elif bounds.setdefault(name, {}).setdefault("least" if operator == ">=" else "most", value) != value:
            raise ArgumentError(f"--where {condition!r}: {name}{operator} is given twice; give it once")
    for name in equal.keys() & bounds.keys():
        raise ArgumentError(f"--where {name}: give either values, or a lowest and a highest one")
    return equal | {name: Range(**bound) for name, bound in bounds.items()}


def _find(columns: Columns, name: str) -> Column:
    if name not in columns:
        there = ", ".join(sorted(columns)) or "no metadata"
        raise ArgumentError(f"no column {name!r:.80} in this index, which has {there}; choose one of its columns")
    return columns[name]


def _parse(name: str, column: Column, text: str) -> Value:
    try:
        match column.values.dtype.kind:
            case "i":
                return int(text)
            case "f":
                return float(text)
            case "b":
                return TRUTH[text.lower()]
    except (ValueError, KeyError):
        raise ArgumentError(f"column {name!r} holds {column.kind}; given {text!r:.80}") from None
    return text


def _position(name: str, column: Column, bound: Value | None, side: Any, unbounded: int) -> int:
    """Return the position in the distinct values where the rows within the bound begin or end."""
    if bound is None:
        return unbounded % (len(column.values) + 1)
    value, kind = check_value(name, bound), column.values.dtype.kind
    fits = isinstance(value, {"U": str, "b": bool}.get(kind, int | float))
    if not fits or (kind in "if" and isinstance(value, bool)):
        raise ArgumentError(f"column {name!r} holds {column.kind}; given {bound!r:.80}")
    if kind == "i":
        value = math.ceil(value) if side == "left" else math.floor(value)  # type: ignore[arg-type]
        if not -(2**63) <= value < 2**63:
            return 0 if value < 0 else len(column.values)
    if kind == "f" and isinstance(value, int) and float(value) != value:
        side = "right" if float(value) < value else "left"
    return int(np.searchsorted(column.values, np.array(value, column.values.dtype if kind != "U" else None), side))
