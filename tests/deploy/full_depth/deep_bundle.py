"""A small bundle of an encoder for five channels at full depth: its features are the mean of each channel."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from deploy.bundle import Bundle
from deploy.images.full_depth import FULL
from deploy.images.npy import array_bytes
from deploy.images.preprocess import Preprocessing
from tests.deploy.conftest import DIM, SIZE, make_card, make_model

CHANNELS, IMAGES = 5, 3
MIXING = np.random.default_rng(8).normal(size=(CHANNELS, DIM)).astype(np.float32)
PREPROCESSING = Preprocessing(SIZE, SIZE, channels=CHANNELS)


def cells(seed: int, height: int = 12, width: int = 20) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, FULL + 1, (height, width, CHANNELS), np.uint16)


def saved(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def embedding_of(pixels: NDArray[Any]) -> NDArray[np.float32]:
    mean = pixels.astype(np.float64).mean(axis=(0, 1)) / FULL @ MIXING
    found: NDArray[np.float32] = (mean / np.linalg.norm(mean)).astype(np.float32)
    return found


def make_deep_card(**changes: object) -> dict[str, Any]:
    statistics = {"mean": [0.0] * CHANNELS, "std": [1.0] * CHANNELS}
    return make_card(preprocessing=PREPROCESSING.to_json(), normalisation=statistics, name="mean-of-channels") | changes


def make_deep_model(card: dict[str, Any], kind: int = TensorProto.UINT16) -> ModelProto:
    return make_model(card, MIXING, kind=kind, white=FULL)


def make_deep_bundle(card: dict[str, Any] | None = None, model: bytes | None = None) -> Bundle:
    card = card or make_deep_card()
    golden = [cells(seed) for seed in range(IMAGES)]
    vectors = np.stack([embedding_of(PREPROCESSING.apply(one)) for one in golden])
    model = model or make_deep_model(card).SerializeToString()
    return Bundle(card, model, None, tuple(map(array_bytes, golden)), vectors)
