"""One image is one input, other values are refused whole, and streams are read in order and in bounded memory."""

import array
import io
import mmap
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
import torch
from PIL import Image

import deploy
from deploy.encoder import Encoder
from deploy.errors import ImageError
from deploy.images.inputs import map_ahead
from deploy.images.preprocess import Preprocessing
from tests.deploy.conftest import DIM, SIZE, embedding_of, encoded, noise

PREPROCESSING = Preprocessing(SIZE, SIZE + 2)


PIXELS = noise(1, 14, 31)
FILE = encoded(PIXELS)  # of several lines, as every PNG


@pytest.fixture
def encoder(bundle: Path) -> Encoder:
    return deploy.load(bundle, threads=1)


def mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


ONE_IMAGE: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "path": Path,
    "numpy string": lambda path: np.str_(path),
    "bytes": lambda _: FILE,
    "bytearray": lambda _: bytearray(FILE),
    "memoryview": lambda _: memoryview(FILE),
    "array.array": lambda _: array.array("B", FILE),
    "mmap": lambda _: mapped(FILE),
    "BytesIO": lambda _: io.BytesIO(FILE),
    "member of an archive": lambda _: zipped(FILE),
    "spooled file": lambda _: spooled(FILE),
    "strided memoryview": lambda _: memoryview(bytes(byte for one in FILE for byte in (one, 0)))[::2],
    "open file": lambda path: path.open("rb"),
    "raw file": lambda path: path.open("rb", buffering=0),
    "PIL image": lambda _: Image.fromarray(PIXELS),
    "pixels": lambda _: PIXELS,
}


class Response:
    """As that of the package requests: iterating gives the file in chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self.iter_content(128)

    def iter_content(self, size: int) -> Iterator[bytes]:
        return iter(self.chunks)


class Chunks:
    """An answer of which nothing is known, but that it can be iterated."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Any]:
        return iter(self.chunks)


class Dataset:
    """As that of h5py or zarr: an array that is not numpy's; iterating gives its rows."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, position: int) -> np.ndarray:
        return self.array[position]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.array)


class Array:
    """One that has no shape to look at, only numpy's protocol."""

    def __array__(self, *_: object) -> np.ndarray:
        return PIXELS

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(PIXELS)


def zipped(data: bytes) -> Any:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat.png", data)
    return zipfile.ZipFile(archive).open("cat.png")


def tarred(data: bytes) -> tarfile.TarFile:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        member = tarfile.TarInfo("cat.png")
        member.size = len(data)
        file.addfile(member, io.BytesIO(data))
    stream.seek(0)
    return tarfile.open(fileobj=stream)


def spooled(data: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=10 * len(data))  # noqa: SIM115 (the test closes it)
    file.write(data)
    file.seek(0)
    return file


SEVERAL: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda images: (image for image in images),
    "values": lambda images: dict(enumerate(images)).values(),
    "series": lambda images: pandas.Series(images, index=[7, 8, 9]),
    "array": lambda images: np.array([*images, None], object)[:-1],
}
NO_IMAGE: dict[str, Any] = {
    "none": None,
    "number": 7,
    "dict": {"cat.jpg": FILE, "dog.jpg": FILE},
    "function": len,
    "set": {"cat.jpg", "dog.jpg"},
    "frozenset": frozenset([FILE, FILE[:50]]),
    "list of lists": [PIXELS.tolist()],
    "nested lists": PIXELS.tolist(),
    "nested tuples": tuple(tuple(map(tuple, row)) for row in PIXELS.tolist()),
    "nested lists of gray": PIXELS[..., 0].tolist(),
    "numbers": PIXELS[0, 0].tolist(),
    "range": range(3),
    "numpy numbers": list(PIXELS[0, :, 0]),
    "response": Response(FILE[:128], FILE[128:]),
    "chunks": Chunks(FILE[:128], FILE[128:]),
    "numbers in turn": Chunks(1, 2, 3),
    "dataset": Dataset(PIXELS),
    "array protocol": Array(),
    "archive": tarred(FILE),
    "tensor": torch.from_numpy(PIXELS),
    "batch tensor": torch.from_numpy(np.stack([PIXELS] * 3)),
    "pandas": pandas.DataFrame({"path": ["cat.jpg"], "label": ["cat"]}),
    "polars": polars.DataFrame({"path": ["cat.jpg"], "label": ["cat"]}),
    "text file": io.StringIO("cat.jpg\ndog.jpg\n"),
    "gray": PIXELS[..., 0],
    "channels first": np.ascontiguousarray(PIXELS.transpose(2, 0, 1)),
    "float": PIXELS / 255,
    "signed": PIXELS.astype(np.int16),
    "rgba": np.dstack([PIXELS, PIXELS[..., 0]]),
    "boolean": PIXELS > 7,
    "five dimensions": PIXELS[None, None],
    "no pixels": PIXELS[:0],
    "scalar": np.array(3),
    "record": np.zeros(3, [("x", int)]),
}


@pytest.mark.parametrize(
    "make",
    [
        lambda images: Dataset(np.stack(images)),
        lambda images: Chunks(*images),
        lambda images: Chunks(*map(Image.fromarray, images)),
        lambda images: iter(Chunks(*map(encoded, images))),
        lambda images: deque(map(encoded, images)),
        lambda images: np.array([*map(encoded, images), None], object)[:-1],
    ],
)
def test_what_surely_yields_images_is_several(encoder: Encoder, make: Callable[[list[np.ndarray]], Any]) -> None:
    images = [noise(seed, 14, 31) for seed in range(3)]
    expected = [embedding_of(PREPROCESSING.apply(image)) for image in images]
    found = encoder.embed(make(images))
    assert np.abs(found.vectors - expected).max() < 1e-6


def test_lists_in_a_list_are_refused_one_by_one(encoder: Encoder) -> None:
    found = encoder.embed([PIXELS.tolist()] * 3, on_error="null")
    assert (found.vectors.shape, found.ok.tolist()) == ((3, DIM), [False] * 3)
    assert encoder.embed([7, FILE], on_error="null").ok.tolist() == [False, True]
    assert encoder.embed([PIXELS[..., 0].tolist(), FILE], on_error="null").ok.tolist() == [False, True]
    assert encoder.embed([]).vectors.shape == (0, DIM)


@pytest.mark.parametrize("kind", ONE_IMAGE)
def test_whatever_holds_one_image_gives_one_vector(encoder: Encoder, tmp_path: Path, kind: str) -> None:
    path, expected = tmp_path / "cat.png", embedding_of(PREPROCESSING.apply(PIXELS))
    path.write_bytes(FILE)
    label = encoder.classify(PIXELS)[0].labels[0]
    with ExitStack() as opened:

        def make() -> Any:
            image = ONE_IMAGE[kind](path)
            return opened.enter_context(image) if isinstance(image, io.IOBase) else image

        streamed = np.concatenate([part.vectors for part in encoder.embed_iter(make())])
        for vectors in (encoder.embed(make(), on_error="null").vectors, streamed):
            assert vectors.shape == (1, DIM)
            assert np.abs(vectors[0] - expected).max() < 1e-6
        assert [found.labels[0] for found in encoder.classify(make())] == [label]
        assert [found.labels[0] for found in encoder.classify_iter(make())] == [label]
        for several in SEVERAL.values():
            found = encoder.embed(several([make(), FILE, make()]))
            assert np.abs(found.vectors - expected).max() < 1e-6
            assert found.vectors.shape == (3, DIM)


@pytest.mark.parametrize("kind", NO_IMAGE)
def test_other_values_are_refused_as_a_whole(encoder: Encoder, kind: str) -> None:
    given = NO_IMAGE[kind]
    nulls = encoder.embed(given, on_error="null")
    assert nulls.vectors.shape == (1, DIM)
    assert nulls.errors[0].reason == "unsupported_input"
    assert encoder.embed(given, on_error="skip").vectors.shape == (0, DIM)
    for method in (encoder.embed, encoder.classify):
        with pytest.raises(ImageError, match=r"image 0: .*; give"):
            method(given)
    if kind != "list of lists":
        found = encoder.embed([FILE, given, FILE], on_error="null")
        assert found.ok.tolist() == [True, False, True]


def test_a_file_that_cannot_be_read_says_why(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(FILE)
    with path.open("rb") as file:
        assert encoder.embed(file).sources == (str(path),)
        with pytest.raises(ImageError, match=r"cat\.png: no bytes are left to read; rewind the file") as caught:
            encoder.embed(file)
        assert caught.value.reason == "empty_file"
    with pytest.raises(ImageError, match="closed file; give a file opened with 'rb'"):
        encoder.embed(file)
    with path.open(encoding="utf-8") as text, pytest.raises(ImageError, match="give a file opened with 'rb'") as caught:
        encoder.embed(text)
    assert caught.value.reason == "io_error"
    with (tmp_path / "new.png").open("wb") as output, pytest.raises(ImageError, match="opened with 'rb'"):
        encoder.embed(output)


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


@pytest.mark.seconds
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
