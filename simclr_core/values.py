"""Types of values in params.yaml whose rule is more than a bound; what a rule says completes "given X, allowed: "."""

import re
from calendar import monthrange
from collections.abc import Collection
from datetime import date
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeVar
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

Item = TypeVar("Item")

ARTIFACT_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?")  # GTO's rule for the name of an artifact

TORCHVISION = "torchvision:"  # before the name of weights that torchvision downloads

# Of cron expressions, as Dagster takes them.
MACROS = {"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"}
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # minute, hour, day of month, month, day of week
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
DAY_OF_MONTH, MONTH, DAY_OF_WEEK = 2, 3, 4
ITEM = re.compile(r"(\*|\?|\w+)(?:-(\w+))?(?:/(\d+))?", re.ASCII)
WEEKDAY_OF_MONTH = re.compile(r"(\w+)#([1-5])|l([0-7])")  # the second Friday, the last Friday


def _fraction(value: str) -> str:
    if not re.fullmatch(r"[01]\.\d+", value) or not 0 < float(value) <= 1:
        raise ValueError('a fraction in quotes above 0 and up to 1, such as "0.01"')
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("[low, high] with low <= high")
    return value


def _within_the_image(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] > 1:
        raise ValueError("[low, high] with high <= 1, the whole image")
    return value


def _begins_a_tag(value: str) -> str:
    if not ARTIFACT_NAME.fullmatch(value):
        raise ValueError("letters, digits, - and _, at both ends a letter or digit: it begins the tags of releases")
    return value


def _inside_weights(value: str) -> str:
    name = PurePosixPath(value)
    if not value.startswith(TORCHVISION) and (name.is_absolute() or ".." in name.parts or not name.parts):
        raise ValueError(
            "the name of a file or folder in the folder weights of the workspace, such as resnet50.pth, or one of "
            f"torchvision's, such as {TORCHVISION}ResNet50_Weights.IMAGENET1K_V2"
        )
    return value


def _with_fp32(values: tuple[str, ...]) -> tuple[str, ...]:
    if "fp32" not in values or len(set(values)) != len(values):
        raise ValueError("a list with fp32, in which nothing is twice")
    return values


def _not_empty(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if not values:
        raise ValueError("a list of at least one")
    return values


def _distinct(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(values)) != len(values):
        raise ValueError("a list in which nothing is twice")
    return values


def _distinct_numbers(values: tuple[str, ...]) -> tuple[str, ...]:
    _distinct(tuple(map(float, values)))
    return values


def _cron(text: str) -> str:
    expression = text.strip()
    if not _is_cron(expression):
        raise ValueError(
            "a cron expression of five fields (minute, hour, day of month, month, day of week), such as 0 3 * * 0, "
            "with a day that one of its months has, and no step longer than its field: */90 is not every 90 minutes"
        )
    return expression


def _is_cron(expression: str) -> bool:
    """Whether it has five fields of which each can be met, and together on some day, or is a name such as ``@daily``.

    Dagster refuses what croniter cannot read, and fails at what is never due; the tests compare with both.
    """
    fields = expression.lower().split()
    if len(fields) == 1:
        return fields[0] in MACROS
    if len(fields) != 5 or not all(_is_field(field, number) for number, field in enumerate(fields)):
        return False
    return _is_ever_due(*fields[DAY_OF_MONTH:])


def _is_field(text: str, field: int) -> bool:
    items = text.split(",")
    nth = [item for item in items if field == DAY_OF_WEEK and WEEKDAY_OF_MONTH.fullmatch(item)]
    if nth and len(nth) < len(items):  # croniter reads the second Friday or every Friday, not both
        return False
    return (text == "?" and field in (DAY_OF_MONTH, DAY_OF_WEEK)) or all(_is_item(item, field) for item in items)


def _is_item(item: str, field: int) -> bool:
    """One of the parts of a field between commas: a value, a range, each with a step or not; the last of a month."""
    if field == DAY_OF_MONTH and item == "l":
        return True
    if field == DAY_OF_WEEK and (found := WEEKDAY_OF_MONTH.fullmatch(item)):
        return found[1] is None or _is_value(found[1], field)
    found = ITEM.fullmatch(item)
    low, high = BOUNDS[field]
    if found is None or (found[3] and not 0 < int(found[3]) <= high - low + 1):  # */90 minutes would be every hour
        return False
    if found[1] == "*":
        return found[2] is None
    return _is_value(found[1], field) and (found[2] is None or _is_value(found[2], field))


def _is_value(text: str, field: int) -> bool:
    low, high = BOUNDS[field]
    return low <= _number(text, field) <= high


def _number(text: str, field: int) -> int:
    """-1 for what is neither a number nor a name."""
    names = {MONTH: MONTHS, DAY_OF_WEEK: DAYS}.get(field, [])
    if text in names:
        return BOUNDS[field][0] + names.index(text)
    return int(text) if text.isdecimal() else -1


def _is_ever_due(days: str, months: str, weekdays: str) -> bool:
    """Whether one of the months has one of the days, as the 31st of April is not; and, of the second Friday, say,
    whether that is ever on such a day, since both have to hold then. Every date of 28 years is looked at: after them
    the weekdays repeat."""
    nth = {found.groups() for item in weekdays.split(",") if (found := WEEKDAY_OF_MONTH.fullmatch(item))}
    in_months, on_days, last = _numbers(months, MONTH), _numbers(days, DAY_OF_MONTH), "l" in days.split(",")
    return any(
        one.month in in_months
        and (one.day in on_days or (last and _days_left(one) == 0))
        and (not nth or _is_nth(one, nth))
        for one in map(date.fromordinal, range(date(2001, 1, 1).toordinal(), date(2029, 1, 1).toordinal()))
    )


def _days_left(day: date) -> int:
    """How many days of its month follow."""
    return monthrange(day.year, day.month)[1] - day.day


def _numbers(text: str, field: int) -> set[int]:
    """The values of a field, but for those after the turn of a range such as ``nov-feb/2``, with a step."""
    (low, high), found = BOUNDS[field], set[int]()
    for item in text.split(","):
        if (parts := ITEM.fullmatch(item)) is None:
            continue
        first, last, step = parts[1], parts[2], int(parts[3] or 1)
        if first in ("*", "?"):
            found |= {*range(low, high + 1, step)}
            continue
        start = _number(first, field)
        end = _number(last, field) if last else high if parts[3] else start
        if last and start == end:
            start, end = low, high  # to croniter a whole turn
        found |= {*range(start, (end if start <= end else high) + 1, step)}
        if start > end and step == 1:
            found |= {*range(low, end + 1)}
    return found


def _is_nth(day: date, weekdays: Collection[tuple[str | None, ...]]) -> bool:
    """Whether it is one of (weekday, which in the month, weekday of which it is the last)."""
    weekday, which = day.isoweekday() % 7, (day.day + 6) // 7
    return any(
        (_days_left(day) < 7 and int(last) % 7 == weekday)
        if last is not None
        else (int(number or 0) == which and _number(name or "", DAY_OF_WEEK) % 7 == weekday)
        for name, number, last in weekdays
    )


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError("the name of a time zone, such as UTC or Europe/Berlin") from None
    return name


Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
# YAML has lists and no tuples, hence strict=False.
Range = Annotated[tuple[Positive, Positive], Field(strict=False), AfterValidator(_ordered)]
CropScale = Annotated[Range, AfterValidator(_within_the_image)]
Fraction = Annotated[str, AfterValidator(_fraction)]
Distinct = AfterValidator(_distinct)  # of a list in which to say something twice has no meaning
Fractions = Annotated[
    tuple[Fraction, ...], Field(strict=False), AfterValidator(_not_empty), AfterValidator(_distinct_numbers)
]
LabelsPerClass = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False), Distinct]
Channels = Annotated[tuple[Probability, Probability, Probability], Field(strict=False)]
Spreads = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
ArtifactName = Annotated[str, AfterValidator(_begins_a_tag)]
WeightsSource = Annotated[str, AfterValidator(_inside_weights)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False), AfterValidator(_not_empty), Distinct]
Variants = Annotated[tuple[Literal["fp32", "int8", "fp16"], ...], Field(strict=False), AfterValidator(_with_fp32)]
Cron = Annotated[str, AfterValidator(_cron)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
