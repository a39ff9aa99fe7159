"""Photographs damaged at random: whatever they are turned into costs little, ends soon, and gets the same row again."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pipeline.validation_mutations import measure
from pipeline.validation.reasons import REASONS
from tests.pipeline.validation.corpus.mutations import MUTATORS, PHOTOGRAPHS, digest, mutation
from tests.repetitions import repeated, repetitions

COUNT = repetitions(800, all=2000)


@pytest.mark.seconds
def test_the_same_number_gives_the_same_bytes() -> None:
    """In another process too, whose hashes of strings are salted differently."""
    code = "from tests.pipeline.validation.corpus.mutations import digest; print(digest(100))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], capture_output=True, check=True)
    assert done.stdout.decode().strip() == digest(100)


@pytest.mark.seconds
def test_numbers_give_different_bytes() -> None:
    originals = {path.read_bytes() for path in PHOTOGRAPHS}
    mutations = [mutation(seed) for seed in range(300)]
    assert len(set(mutations)) >= 295
    assert not originals & set(mutations)
    assert len(MUTATORS) >= 10


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measure(COUNT)


@repeated
@pytest.mark.slow
def test_every_mutation_gets_facts_or_a_reason(measured: dict[str, Any]) -> None:
    assert sum(measured["reasons"].values()) == measured["files"] == COUNT
    assert measured["reasons"].keys() <= REASONS.keys() | {"none"}
    assert min(measured["reasons"][name] for name in ("none", "corrupt", "truncated", "not_an_image")) >= COUNT // 100


@repeated
@pytest.mark.slow
def test_no_mutation_kills_a_worker_or_outlasts_the_limit(measured: dict[str, Any]) -> None:
    assert measured["worker_deaths"] == []
    assert measured["workers_seen"] == 2
    assert measured["slowest_seconds"] < measured["limit_seconds"]


@repeated
@pytest.mark.slow
def test_memory_is_bounded(measured: dict[str, Any]) -> None:
    """Far below the limit: a bomb is refused by its header, and what is decoded has a few megapixels."""
    assert 20 < measured["peak_worker_megabytes"] < 1024
    assert measured["parent_grew_megabytes"] < 300


@repeated
@pytest.mark.slow
def test_same_bytes_same_row(measured: dict[str, Any]) -> None:
    assert measured["probed_twice"] == COUNT // 10
    assert measured["changed_rows"] == []
