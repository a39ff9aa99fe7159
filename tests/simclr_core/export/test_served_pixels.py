"""What training saw of a file is what is served from the file, and a store at another size shows."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

from deploy.images.inputs import read_pixels
from deploy.images.preprocess import Preprocessing, decode, reduce
from pipeline.prepare.canonical import encode as encode_prepared
from simclr_core.data.shard_writing import write_shards, write_tar
from simclr_core.data.shards import Sample
from simclr_core.export.served_pixels import compare_served
from tests.conftest import encode

PHOTOGRAPHS = [
    *sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg")),
    Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg",
]
PREPROCESSING = Preprocessing(96, 96)


def embed_pixels(pictures: list[bytes]) -> NDArray[np.float32]:
    """Stands for an encoder that sees every pixel: the embedding is the image, centered, of length 1."""
    rows = []
    for picture in pictures:
        pixels = read_pixels(picture, PREPROCESSING)
        assert isinstance(pixels, np.ndarray)
        centered = pixels.astype(np.float32).ravel() - pixels.mean()
        rows.append(centered / np.linalg.norm(centered))
    return np.stack(rows)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """Parts of photographs, of many sizes and shapes."""
    chance, found = np.random.default_rng(0), []
    for path in PHOTOGRAPHS:
        whole = Image.open(path).convert("RGB")
        for _ in range(4):
            side = int(chance.integers(150, min(whole.size)))
            left, top = (int(chance.integers(0, length - side + 1)) for length in whole.size)
            right = min(whole.width, left + int(side * chance.uniform(1, 1.5)))
            found.append(encode(whole.crop((left, top, right, top + side)), "PNG"))
    return found


def store(folder: Path, files: list[bytes], short_side: int, bicubic: bool = False) -> Path:
    keys = [f"{number:064x}" for number in range(len(files))]
    samples = []
    for key, data in zip(keys, files, strict=True):
        image = Image.fromarray(decode(data))
        if bicubic:
            width, height = (round(side * short_side / min(image.size)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        samples.append(Sample(key, *encode_prepared(reduce(image, short_side), 95)))
    write_shards(folder / "train", [samples], 1_000_000)
    write_shards(folder / "test", [], 1_000_000)
    (folder / "originals").mkdir()
    write_tar(folder / "originals", zip(keys, files, strict=True))
    return folder


@pytest.mark.seconds
def test_photographs_are_stored_as_they_are_served(tmp_path: Path, files: list[bytes]) -> None:
    found = compare_served(embed_pixels, store(tmp_path, files, 96))
    assert found is not None
    assert found.images == len(files)
    assert found.cosine_min > 0.999


@pytest.mark.seconds
def test_another_filter_shows(tmp_path: Path, files: list[bytes]) -> None:
    found = compare_served(embed_pixels, store(tmp_path, files, 96, bicubic=True))
    assert found is not None
    assert found.cosine_min < 0.99
    assert found.cosine_min <= found.cosine_median


def test_a_store_of_an_earlier_version_has_nothing_to_compare(tmp_path: Path, files: list[bytes]) -> None:
    folder = store(tmp_path, files[:1], 96)
    for path in (folder / "originals").glob("*"):
        path.unlink()
    assert compare_served(embed_pixels, folder) is None


@pytest.mark.parametrize("shape", [(96, 96), (97, 301), (700, 233), (64, 500)])
def test_reduced_then_cropped_is_what_is_served(shape: tuple[int, int]) -> None:
    pixels: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    stored = np.asarray(reduce(Image.fromarray(pixels), 96))
    difference = PREPROCESSING.apply(stored).astype(int) - PREPROCESSING.apply(pixels)
    assert np.abs(difference).max() <= 1
