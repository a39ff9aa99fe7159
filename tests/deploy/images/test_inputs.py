"""Streams are read in order and in bounded memory, with any number of threads."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy.images.inputs import map_ahead
from deploy.images.preprocess import Preprocessing
from tests.deploy.conftest import SIZE, embedding_of, noise

PREPROCESSING = Preprocessing(SIZE, SIZE + 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_few_items_are_taken_ahead(workers: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield taken

    for position, result in enumerate(map_ahead(lambda item: -item, items(), workers, ahead=5), 1):
        assert result == -position
        assert taken <= position + 5
    assert taken == 100


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_raised_in_its_place_and_ends_the_threads(workers: int) -> None:
    def reciprocal(item: int) -> float:
        return 1 / item

    results = map_ahead(reciprocal, [4, 2, 0, 1], workers, ahead=4)
    assert [next(results), next(results)] == [0.25, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deploy-decode")]


def test_simultaneous_streams_do_not_mix(bundle: Path) -> None:
    encoder = deploy.load(bundle, threads=2)

    def stream(number: int) -> int:
        pictures = [noise(100 * number + seed) if seed % 7 else b"bad" for seed in range(50)]
        result = encoder.embed_iter(pictures, batch_size=4, on_error="null", workers=2)
        rows = np.concatenate([part.vectors for part in result])
        for picture, row in zip(pictures, rows, strict=True):
            if isinstance(picture, bytes):
                assert np.isnan(row).all()
            else:
                assert np.allclose(row, embedding_of(PREPROCESSING.apply(picture)), atol=1e-6)
        return len(rows)

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(stream, range(6))) == [50] * 6


def test_a_stream_of_twenty_thousand_images_stays_in_bounded_memory(bundle: Path) -> None:
    program = """
import sys, numpy as np, deploy
from pathlib import Path

def images(number):
    for position in range(number):
        yield np.full((96, 96, 3), position % 256, np.uint8)  # 28 kB: 20,000 are 550 MB

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

encoder = deploy.load(sys.argv[1], threads=1)
for part in encoder.embed_iter(images(1000), workers=2): pass
before = megabytes("VmHWM")
rows = sum(len(part.vectors) for part in encoder.embed_iter(images(20_000), workers=2))
print(rows, megabytes("VmHWM") - before)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows, grown = done.stdout.split()
    assert int(rows) == 20_000
    assert float(grown) < 20
