"""How often the tests repeat what follows chance: enough to notice a fault each time, all of it every night."""

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")
ALL = "SIMCLR_ALL_REPETITIONS"
repeated = pytest.mark.repeated
"""`make soak` runs these tests with all repetitions."""


def repetitions(few: int, all: int) -> int:
    return all if os.environ.get(ALL) else few


def some(items: Sequence[T], few: int) -> list[T]:
    """About this many of them, evenly spread and with the last one."""
    step = 1 if os.environ.get(ALL) else -(-len(items) // few)
    return list(items[::-step][::-1])
