"""Embeddings and predictions: the accepted inputs, the order of results, and the effect of a bad image."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import deploy
from deploy.bundle import Bundle
from deploy.encoder import Encoder
from deploy.errors import ArgumentError, GoldenMismatchError, ImageError, MissingHeadError
from deploy.images.preprocess import Preprocessing
from tests.deploy.conftest import DIM, MIXING, SIZE, embedding_of, encoded, features_of, make_bundle, noise

PREPROCESSING = Preprocessing(SIZE, SIZE + 2)
COLORS = {"red": (250, 5, 5), "green": (5, 250, 5), "blue": (5, 5, 250)}


@pytest.fixture
def encoder(bundle: Path) -> Encoder:
    return deploy.load(bundle, threads=1)


def plain(color: str) -> NDArray[np.uint8]:
    return np.full((12, 9, 3), COLORS[color], np.uint8)


def test_every_kind_of_input_gives_the_expected_vector(encoder: Encoder, tmp_path: Path) -> None:
    pixels = noise(1, 14, 31)
    expected = embedding_of(PREPROCESSING.apply(pixels))
    file = tmp_path / "ein Bild é.png"
    file.write_bytes(encoded(pixels))
    for picture in (file, str(file), file.read_bytes(), pixels, pixels[::1], Image.fromarray(pixels), Image.open(file)):
        result = encoder.embed(picture)
        assert result.vectors.shape == (1, DIM)
        assert result.vectors.dtype == np.float32
        assert np.abs(result.vectors[0] - expected).max() < 1e-6
        assert result.ok.tolist() == [True]
    assert encoder.embed(file).sources == (str(file),)
    assert encoder.embed(pixels).sources == ("image 0",)


def test_a_stack_and_an_iterator_are_many_images(encoder: Encoder) -> None:
    stack = np.stack([noise(seed) for seed in range(5)])
    expected = np.stack([embedding_of(PREPROCESSING.apply(pixels)) for pixels in stack])
    assert np.abs(encoder.embed(stack).vectors - expected).max() < 1e-6
    assert np.abs(encoder.embed(iter(stack)).vectors - expected).max() < 1e-6
    assert encoder.embed([]).vectors.shape == (0, DIM)


def test_without_normalization_the_raw_output_is_returned(encoder: Encoder) -> None:
    pixels = noise(2)
    raw = encoder.embed(pixels, normalize=False).vectors[0]
    assert np.abs(raw - features_of(PREPROCESSING.apply(pixels))).max() < 1e-6
    assert abs(np.linalg.norm(raw) - 1) > 1e-3
    assert abs(np.linalg.norm(encoder.embed(pixels).vectors) - 1) < 1e-6


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 17, 64])
def test_batches_singles_and_streams_agree_in_order(encoder: Encoder, batch_size: int, workers: int) -> None:
    pictures = [encoded(noise(seed, 8 + seed % 5, 12)) for seed in range(20)]
    singles = np.concatenate([encoder.embed(picture).vectors for picture in pictures])
    whole = encoder.embed(pictures, batch_size, workers=workers)
    assert np.abs(whole.vectors - singles).max() < 1e-6
    parts = list(encoder.embed_iter(iter(pictures), batch_size, workers=workers))
    assert [len(part.vectors) for part in parts][:-1] == [batch_size] * ((20 - 1) // batch_size)
    assert np.array_equal(np.concatenate([part.vectors for part in parts]), whole.vectors)
    assert tuple(itertools.chain.from_iterable(part.sources for part in parts)) == whole.sources


def test_a_stream_reads_a_bounded_number_ahead(encoder: Encoder) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield noise(0)

    stream = encoder.embed_iter(endless(), batch_size=4, workers=2)
    assert len(next(stream).vectors) == 4
    assert len(next(stream).vectors) == 4
    assert taken <= 4 * 2 + 4 * 2 + 1
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deploy-decode")]


def test_one_bad_image_does_not_affect_the_others(encoder: Encoder, tmp_path: Path) -> None:
    good = noise(3)
    pictures = [
        good,
        b"",
        encoded(good)[:-60],
        str(tmp_path / "gone.png"),
        good.astype(float),
        good,
        tmp_path,
        3.5,
        "a\0b",
    ]
    reasons = {
        1: "empty_file",
        2: "truncated",
        3: "io_error",
        4: "unsupported_input",
        6: "io_error",
        7: "unsupported_input",
        8: "io_error",
    }
    expected = embedding_of(PREPROCESSING.apply(good))
    for batch_size in (2, 32):
        skipped = encoder.embed(pictures, batch_size, on_error="skip")
        assert skipped.vectors.shape == (2, DIM)
        assert {position: error.reason for position, error in skipped.errors.items()} == reasons
        assert skipped.ok.tolist() == [position not in reasons for position in range(len(pictures))]
        nulls = encoder.embed(pictures, batch_size, on_error="null")
        assert nulls.vectors.shape == (len(pictures), DIM)
        assert np.isnan(nulls.vectors).all(axis=1).tolist() == (~nulls.ok).tolist()
        for vector in (*skipped.vectors, *nulls.vectors[nulls.ok]):
            assert np.abs(vector - expected).max() < 1e-6
        with pytest.raises(ImageError, match="image 1: the file has no bytes") as raised:
            encoder.embed(pictures, batch_size)
        assert raised.value.reason == "empty_file"


def test_errors_name_the_path_and_the_remedy(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read: No such file"):
        encoder.embed(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"given an array float64 \[8, 8, 3\]; give RGB pixels as uint8"):
        encoder.embed(noise(0).astype(float))
    with pytest.raises(ImageError, match=r"uint8 \[8, 8\]; give RGB"):
        encoder.embed(noise(0)[..., 0])
    with pytest.raises(ImageError, match="given a value of type int"):
        encoder.embed(3)
    with pytest.raises(ImageError, match="9000 x 9000 pixels are over the limit of 80,000,000 pixels"):
        encoder.embed(Image.new("1", (9000, 9000)))


def test_a_pipe_without_a_writer_is_refused_without_waiting(encoder: Encoder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png: not a regular file"):
        encoder.embed(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "arguments", [{"on_error": "ignore"}, {"batch_size": 0}, {"workers": 0}, {"batch_size": -3}], ids=str
)
def test_arguments_out_of_range_are_named(encoder: Encoder, arguments: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        encoder.embed([noise(0)], **arguments)


def test_classify_gives_the_best_classes_first(encoder: Encoder) -> None:
    pictures = [plain("blue"), plain("red"), plain("green")]
    predictions = encoder.classify(pictures, top_k=2)
    assert [prediction.labels[0] for prediction in predictions] == ["blue", "red", "green"]
    for prediction in predictions:
        assert len(prediction.labels) == 2
        assert prediction.probabilities[0] > prediction.probabilities[1]
    muted = np.full((12, 9, 3), (120, 112, 104), np.uint8)
    every = encoder.classify(muted, top_k=10)[0]
    assert sorted(every.labels) == ["blue", "green", "red"]
    logits = features_of(muted) @ np.linalg.pinv(MIXING) * 50  # of the raw output, which is not of length 1
    softmax = np.sort(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())[::-1]
    assert np.abs(softmax - every.probabilities).max() < 1e-5
    with pytest.raises(ArgumentError, match="top_k=0"):
        encoder.classify(pictures, top_k=0)


def test_the_temperature_changes_probabilities_but_no_label(publish_bundle: Callable[[Bundle], Path]) -> None:
    whole = make_bundle()
    assert whole.head is not None
    pixels = np.full((12, 9, 3), (120, 112, 104), np.uint8)
    logits = features_of(pixels) @ whole.head.weight + whole.head.bias
    for temperature in (0.5, 1.0, 4.0):
        encoder = deploy.load(publish_bundle(replace(whole, head=replace(whole.head, temperature=temperature))))
        prediction = encoder.classify(pixels)[0]
        softmax = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        assert np.abs(np.sort(softmax)[::-1] - prediction.probabilities).max() < 1e-5
        assert prediction.labels == tuple(whole.head.labels[i] for i in np.argsort(-logits))


def test_classify_with_unreadable_images(encoder: Encoder) -> None:
    pictures = [plain("red"), b"nonsense", plain("green")]
    nulls = encoder.classify(pictures, on_error="null", batch_size=2)
    assert [prediction.labels[:1] for prediction in nulls] == [("red",), (), ("green",)]
    assert nulls[1].error is not None
    assert nulls[1].error.reason == "not_an_image"
    skipped = encoder.classify(pictures, on_error="skip", batch_size=2)
    assert [(prediction.source, prediction.labels[0]) for prediction in skipped] == [
        ("image 0", "red"),
        ("image 2", "green"),
    ]
    with pytest.raises(ImageError, match="image 1"):
        encoder.classify(pictures)


def test_classify_without_a_head_says_what_to_do(publish_bundle: Callable[[Bundle], Path]) -> None:
    encoder = deploy.load(publish_bundle(make_bundle(labels=False)))
    assert encoder.info["labels"] == []
    with pytest.raises(MissingHeadError, match="mean-color: was exported without a classifier; label some images"):
        encoder.classify(plain("red"))


def test_many_threads_can_share_an_encoder(encoder: Encoder) -> None:
    pictures = [noise(seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda pixels: encoder.embed(pixels).vectors[0], pictures))
    for pixels, vector in zip(pictures, results, strict=True):
        assert np.abs(vector - embedding_of(PREPROCESSING.apply(pixels))).max() < 1e-6


def test_golden_images_are_replayed(bundle: Path, publish_bundle: Callable[[Bundle], Path]) -> None:
    fidelity = deploy.load(bundle).verify()
    assert fidelity.images == 3
    assert fidelity.cosine_min > 0.999999
    assert fidelity.max_abs < 1e-6
    whole = make_bundle()
    for vectors in (whole.golden_vectors + np.float32(0.01), whole.golden_vectors * np.float32(np.nan)):
        drifted = deploy.load(publish_bundle(replace(whole, golden_vectors=vectors)))
        with pytest.raises(GoldenMismatchError, match=r"allowed are 0\.9999 and 0\.001"):
            drifted.verify()


def test_info_describes_the_encoder(encoder: Encoder, bundle: Path) -> None:
    info = encoder.info
    assert len(info["id"]) == 64
    assert (info["name"], info["dim"], info["labels"]) == ("mean-color", DIM, ["red", "green", "blue"])
    assert info["runtime"] == {
        "threads": 1,
        "providers": ["CPUExecutionProvider"],
        "variant": "fp32",
        "reason": "requested",
    }
