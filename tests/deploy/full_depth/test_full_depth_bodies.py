"""A server of an encoder for images at full depth: bodies, tensors, limits and refusals."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from deploy.bundle import Bundle
from deploy.server.limits import Limits
from tests.deploy.conftest import encoded, noise
from tests.deploy.full_depth.deep_bundle import PREPROCESSING, cells, embedding_of, make_deep_bundle, saved
from tests.deploy.server.conftest import Running, running

INFER = "/v2/models/mean-of-channels/infer"
PIXELS = cells(9)
EXPECTED = embedding_of(PREPROCESSING.apply(PIXELS))


@pytest.fixture
def deep(publish_bundle: Callable[[Bundle], Path]) -> Iterator[Running]:
    with running(publish_bundle(make_deep_bundle())) as server:
        yield server


def test_arrays_and_tiffs_are_bodies(deep: Running, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="minisblack", planarconfig="contig", compression="zlib")
    bodies = [
        (saved(PIXELS), "application/x-npy"),
        (saved(PIXELS), "application/octet-stream"),
        (saved(np.moveaxis(PIXELS, 2, 0)), "application/x-npy"),
        ((tmp_path / "a.tif").read_bytes(), "image/tiff"),
    ]
    for body, kind in bodies:
        answer = deep.post("/v1/embed", body, kind)
        assert answer.status == 200, answer.body
        assert np.abs(answer.vectors - EXPECTED).max() < 1e-6


def test_other_files_are_refused_by_name(deep: Running) -> None:
    for body, reason in [
        (encoded(noise(0)), "wrong_channels"),
        (saved(PIXELS[:, :, :2]), "wrong_channels"),
        (saved(PIXELS.astype(np.float32)), "unsupported_depth"),
        (saved(PIXELS)[:-5], "truncated"),
    ]:
        answer = deep.post("/v1/embed", body, "application/octet-stream")
        assert answer.status == 422
        assert answer.json["results"][0]["error"]["reason"] == reason


def test_another_encoder_refuses_arrays(bundle: Path) -> None:
    with running(bundle) as server:
        answer = server.post("/v1/embed", saved(noise(0)), "application/x-npy")
        assert answer.json["results"][0]["error"]["reason"] == "not_an_image"


def test_a_tensor_of_pixels_has_16_bits(deep: Running) -> None:
    pixels = PREPROCESSING.apply(PIXELS)
    tensor = {"name": "images", "datatype": "UINT16", "shape": [1, 8, 8, 5], "data": pixels.ravel().tolist()}
    answer = deep.post_json(INFER, {"inputs": [tensor]})
    assert answer.status == 200, answer.body
    assert np.abs(np.array(answer.json["outputs"][0]["data"]) - EXPECTED).max() < 1e-6
    header = (
        b'{"inputs":[{"name":"images","shape":[1,8,8,5],"datatype":"UINT16","parameters":{"binary_data_size":640}}]}'
    )
    binary = deep.ask(
        "POST", INFER, header + pixels.astype("<u2").tobytes(), Inference_Header_Content_Length=str(len(header))
    )
    assert np.abs(np.array(binary.json["outputs"][0]["data"]) - EXPECTED).max() < 1e-6
    for wrong in ({"datatype": "UINT8"}, {"data": [65_536] * 320}, {"shape": [1, 8, 8, 3]}):
        assert deep.post_json(INFER, {"inputs": [tensor | wrong]}).status == 400


def test_the_limit_of_pixels_is_one_of_samples(publish_bundle: Callable[[Bundle], Path]) -> None:
    with running(publish_bundle(make_deep_bundle()), limits=Limits(pixels=12 * 20 * 5 // 3 - 1)) as server:
        answer = server.post("/v1/embed", saved(PIXELS), "application/x-npy")
        assert answer.json["results"][0]["error"]["reason"] == "bomb"


def test_the_model_says_how_many_channels_it_takes(deep: Running) -> None:
    assert deep.ask("GET", "/v1/model").json["preprocessing"] == {"size": 8, "resize": 8, "channels": 5}
