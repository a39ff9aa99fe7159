"""How often the tests repeat what follows chance: enough to notice a fault each time, all of it every night."""

import os

import pytest

ALL = "SIMCLR_ALL_REPETITIONS"
repeated = pytest.mark.repeated
"""`make soak` runs these tests with all repetitions."""


def repetitions(few: int, all: int) -> int:
    return all if os.environ.get(ALL) else few
