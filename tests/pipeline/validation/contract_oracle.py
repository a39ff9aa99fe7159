"""What comes of an expectation, counted row by row."""

from collections import Counter
from collections.abc import Callable
from math import isclose
from typing import Any

from pipeline.validation import expectations as types
from pipeline.validation.expectations import Expectation


def oracle(rule: Expectation, rows: list[dict[str, Any]]) -> tuple[bool, int | None, list[str]]:
    """Success, number of rows against the rule, and the first ten of them; None where single rows are not asked."""
    arguments = rule.arguments
    low, high = arguments.get("min_value", float("-inf")), arguments.get("max_value", float("inf"))
    if rule.type == types.ROWS:
        return len(rows) >= low, None, []
    if rule.type == types.COLUMNS:
        return True, None, []
    if rule.type == types.NOT_BELOW:
        against = [one for one in rows if one["effect"] > one["threshold"]]
        return not against, len(against), [one["id"] for one in against][:10]
    values = [one[arguments["column"]] for one in rows]
    present = [value for value in values if value is not None]
    if rule.type in (types.MEAN, types.MAX):
        number = sum(present) / len(present) if rule.type == types.MEAN else max(present)
        return low <= number <= high, None, []
    count = Counter(present)
    is_against: Callable[[Any], bool] = {
        types.PRESENT: lambda value: value is None,
        types.IN_SET: lambda value: value is not None and value not in arguments["value_set"],
        types.NOT_IN_SET: lambda value: value is not None and value in arguments["value_set"],
        types.BETWEEN: lambda value: value is not None and not low <= value <= high,
        types.UNIQUE: lambda value: value is not None and count[value] > 1,
    }[rule.type]
    bad = [one["id"] for one, value in zip(rows, values, strict=True) if is_against(value)]
    considered = len(rows if rule.type == types.PRESENT else present)
    share = 1 - len(bad) / considered if considered else 1.0
    mostly = arguments.get("mostly", 1)
    return share > mostly or isclose(share, mostly), len(bad), bad[:10]
