"""Types of values in params.yaml whose rule is more than a bound; what a rule says completes "given X, allowed: "."""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

Item = TypeVar("Item")


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


def _with_fp32(values: tuple[str, ...]) -> tuple[str, ...]:
    if "fp32" not in values or len(set(values)) != len(values):
        raise ValueError("a list with fp32, in which nothing is twice")
    return values


def _not_empty(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if not values:
        raise ValueError("a list of at least one")
    return values


Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
# YAML has lists and no tuples, hence strict=False.
Range = Annotated[tuple[Positive, Positive], Field(strict=False), AfterValidator(_ordered)]
CropScale = Annotated[Range, AfterValidator(_within_the_image)]
Fraction = Annotated[str, AfterValidator(_fraction)]
Fractions = Annotated[tuple[Fraction, ...], Field(strict=False), AfterValidator(_not_empty)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False), AfterValidator(_not_empty)]
Variants = Annotated[tuple[Literal["fp32", "int8", "fp16"], ...], Field(strict=False), AfterValidator(_with_fp32)]
