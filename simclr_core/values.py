"""Types of values in params.yaml whose rule is more than a bound; what a rule says completes "given X, allowed: "."""

import re
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
ITEM = re.compile(r"(\*|\?|\w+)(?:-(\w+))?(?:/(\d+))?")
WEEKDAY_OF_MONTH = re.compile(r"(\w+)#[1-5]|l([0-7])")  # the second Friday, the last Friday


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


def _cron(expression: str) -> str:
    if not _is_cron(expression):
        raise ValueError(
            "a cron expression of five fields (minute, hour, day of month, month, day of week), such as 0 3 * * 0"
        )
    return expression


def _is_cron(expression: str) -> bool:
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
Fractions = Annotated[tuple[Fraction, ...], Field(strict=False), AfterValidator(_not_empty)]
LabelsPerClass = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]
Channels = Annotated[tuple[Probability, Probability, Probability], Field(strict=False)]
Spreads = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
ArtifactName = Annotated[str, AfterValidator(_begins_a_tag)]
WeightsSource = Annotated[str, AfterValidator(_inside_weights)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False), AfterValidator(_not_empty)]
Variants = Annotated[tuple[Literal["fp32", "int8", "fp16"], ...], Field(strict=False), AfterValidator(_with_fp32)]
Cron = Annotated[str, AfterValidator(_cron)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
