"""Which cron expressions Dagster takes, known without Dagster: a mistake is found wherever params.yaml is read.

A test compares the answers with Dagster's own.
"""

import re

MACROS = {"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"}
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day of month, month, day of week
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
DAY_OF_MONTH, MONTH, DAY_OF_WEEK = 2, 3, 4
ITEM = re.compile(r"(\*|\?|\w+)(?:-(\w+))?(?:/(\d+))?")
WEEKDAY_OF_MONTH = re.compile(r"(\w+)#[1-5]|l([0-7])")  # the second Friday, the last Friday


def is_cron(expression: str) -> bool:
    """Whether it has five fields of which each can be met, or is a name such as ``@daily``."""
    fields = expression.lower().split()
    if len(fields) == 1:
        return fields[0] in MACROS
    if len(fields) != 5 or (fields[DAY_OF_MONTH] in ("30", "31") and fields[MONTH] in ("2", "feb")):
        return False
    return all(_is_item(item, number) for number, field in enumerate(fields) for item in field.split(","))


def _is_item(item: str, field: int) -> bool:
    """One of the parts of a field between commas: a value, a range, each with a step or not; the last of a month."""
    if field == DAY_OF_MONTH and item == "l":
        return True
    if field == DAY_OF_WEEK and (found := WEEKDAY_OF_MONTH.fullmatch(item)):
        return found[1] is None or _is_value(found[1], field)
    found = ITEM.fullmatch(item)
    if found is None or (found[3] and int(found[3]) == 0):
        return False
    if found[1] in ("*", "?"):
        return found[2] is None and (found[1] == "*" or field in (DAY_OF_MONTH, DAY_OF_WEEK))
    return _is_value(found[1], field) and (found[2] is None or _is_value(found[2], field))


def _is_value(text: str, field: int) -> bool:
    low, high = BOUNDS[field]
    names = {MONTH: MONTHS, DAY_OF_WEEK: DAYS}.get(field, [])
    return text in names or (text.isdecimal() and low <= int(text) <= high)
