"""The Open Inference Protocol, with requests exactly as tritonclient 2.73.0 sends them."""

import base64
import json
import struct
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.deploy.conftest import DIM, LABELS, SIZE, embedding_of, noise
from tests.deploy.server.conftest import IMAGE, PREPROCESSING, Answer, Running

INFER = "/v2/models/mean-color/infer"
BYTES_HEADER = (
    b'{"inputs":[{"name":"images","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":%d}}],'
    b'"parameters":{"binary_data_output":true}}'
)
UINT8_HEADER = (
    b'{"id":"7","inputs":[{"name":"images","shape":[3,8,8,3],"datatype":"UINT8",'
    b'"parameters":{"binary_data_size":576}}],"outputs":[{"name":"embedding","parameters":{"binary_data":true}}]}'
)


def send_recorded(server: Running, header: bytes, binary: bytes) -> Answer:
    """Send a request as geventhttpclient does: without Content-Type and Accept."""
    head = (
        f"POST {INFER} HTTP/1.1\r\nUser-Agent: python/gevent-http-client-2.6.1\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Content-Length: {len(header) + len(binary)}\r\n\r\n"
    )
    import http.client

    with server.connect(head.encode() + header + binary) as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Answer(response.status, response.headers, response.read(), 0.0)


def tensors(answer: Answer) -> dict[str, NDArray[np.float32]]:
    """Return the binary outputs of an answer."""
    length = int(answer.headers["Inference-Header-Content-Length"])
    header, binary = json.loads(answer.body[:length]), answer.body[length:]
    found = {}
    for output in header["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(binary[:size], "<f4").reshape(output["shape"])
        binary = binary[size:]
    assert binary == b""
    return found


def element(image: bytes) -> bytes:
    return struct.pack("<I", len(image)) + image


def body(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(IMAGE).decode()]}
    return {"inputs": [tensor | changes]}


def test_encoded_images_of_tritonclient(shared: Running) -> None:
    binary = element(IMAGE) + element(b"broken")
    answer = send_recorded(shared, BYTES_HEADER % len(binary), binary)
    assert answer.status == 200
    found = tensors(answer)
    expected = embedding_of(PREPROCESSING.apply(noise(1, 20, 30)))
    assert np.abs(found["embedding"][0] - expected).max() < 1e-6
    assert np.isnan(found["embedding"][1]).all()
    assert found["probabilities"].shape == (2, len(LABELS))
    header = json.loads(answer.body[: int(answer.headers["Inference-Header-Content-Length"])])
    assert header["model_name"] == "mean-color"
    assert header["parameters"]["errors"].startswith("image 1: not_an_image: ")


def test_pixels_of_tritonclient(shared: Running) -> None:
    pixels = np.arange(576).reshape(3, SIZE, SIZE, 3).astype(np.uint8)
    answer = send_recorded(shared, UINT8_HEADER, pixels.tobytes())
    found = tensors(answer)
    assert list(found) == ["embedding"]
    assert np.abs(found["embedding"] - [embedding_of(image) for image in pixels]).max() < 1e-6
    assert json.loads(answer.body[: int(answer.headers["Inference-Header-Content-Length"])])["id"] == "7"


def test_tensors_as_json(shared: Running) -> None:
    pixels = np.arange(192).reshape(1, SIZE, SIZE, 3).astype(np.uint8)
    for data in (pixels.tolist(), pixels.ravel().tolist()):
        content = body(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=data)
        (embedding, _) = shared.post_json(INFER, content).json["outputs"]
        assert embedding["shape"] == [1, DIM]
        assert np.abs(np.array(embedding["data"], np.float32) - embedding_of(pixels[0])).max() < 1e-6
    content = body(shape=[2, 1], data=[[base64.b64encode(IMAGE).decode()], ["?"]])
    (embedding, _) = shared.post_json(INFER, content).json["outputs"]
    assert embedding["data"][DIM:] == [None] * DIM


def test_metadata_and_health(shared: Running) -> None:
    extensions = ["binary_tensor_data", "model_configuration", "statistics", "model_repository"]
    assert shared.ask("GET", "/v2").json["extensions"] == extensions
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/mean-color/ready"):
        assert shared.ask("GET", path).status == 200
    about = shared.ask("GET", "/v2/models/mean-color").json
    assert about["outputs"][0] == {"name": "embedding", "datatype": "FP32", "shape": [-1, DIM]}
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models/mean-color/versions/v0.0.1"):
        answer = shared.ask("GET", path)
        assert (answer.status, type(answer.json["error"])) == (404, str)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ([], 400),
        ({}, 400),
        ({"inputs": []}, 400),
        ({"inputs": [3]}, 400),
        ({"inputs": body()["inputs"] * 2}, 400),
        (body(name="pictures"), 400),
        (body(datatype="FP32"), 400),
        (body(shape=[]), 400),
        (body(shape=[-1]), 400),
        (body(shape=[1] * 100_000), 400),
        (body(shape=[True]), 400),
        (body(shape=[2]), 400),
        (body(shape=[1, 2]), 400),
        (body(shape=[0], data=[]), 422),
        (body(shape=[65]), 422),
        (body(data=[7]), 400),
        (body(data=None), 400),
        (body(data=["?"]), 422),
        (body(parameters=[]), 400),
        (body(parameters={"binary_data_size": 5}), 400),
        (body(parameters={"binary_data_size": "\ud800"}), 400),
        (body(data=["?"] * 100_000), 400),
        (body(data=[[[["?"]]]]), 400),
        (body(datatype="UINT8", shape=[1, 8, 8, 3], data=[256] * 192), 400),
        (body(datatype="UINT8", shape=[1, 8, 8, 3], data=[0.5] * 192), 400),
        (body(datatype="UINT8", shape=[1, 8, 8, 3], data=[1] * 191), 400),
        (body(datatype="UINT8", shape=[1, 9, 8, 3]), 400),
        (body() | {"outputs": [{"name": "logits"}]}, 400),
        (body() | {"outputs": [{"name": "\ud800" * 100_000}]}, 400),
        (body() | {"outputs": [{"name": ["embedding"]}]}, 400),
        (body() | {"outputs": [{"name": "embedding"}, {"name": "probabilities"}, {"name": "embedding"}]}, 400),
        (body() | {"outputs": {}}, 400),
        (body() | {"parameters": 3}, 400),
    ],
)
def test_malformed_tensors_are_4xx(shared: Running, content: object, status: int) -> None:
    answer = shared.post_json(INFER, content)
    assert (answer.status, type(answer.json["error"])) == (status, str), answer.body
    assert len(answer.body) < 1_000


def test_depth_times_width_costs_nothing(shared: Running) -> None:
    data = "[" * 900 + "1" + "]" * 899 + ",1" * 50_000 + "]"
    began = time.process_time()
    answer = shared.post(INFER, json.dumps(body(data="?")).replace('"?"', data), "application/json")
    assert (answer.status, answer.json["error"]) == (400, "images: data is not a list of base64 text")
    assert time.process_time() - began < 1  # every level copied every value: 10 seconds


def test_elements_beyond_the_shape_are_not_read(shared: Running) -> None:
    binary = bytes(4) * 1_000_000
    answer = send_recorded(shared, BYTES_HEADER % len(binary), binary)
    assert (answer.status, answer.json["error"]) == (400, "images: shape says 2 images, but data holds more")


@pytest.mark.parametrize("length", ["-1", "abc", "99999", "1" * 30, "²".encode().decode("latin-1")])
def test_a_wrong_header_length_is_400(shared: Running, length: str) -> None:
    answer = shared.post(INFER, b"{}", Inference_Header_Content_Length=length)
    assert answer.status == 400


def test_byte_elements_that_do_not_add_up_are_400(shared: Running) -> None:
    for binary in (element(IMAGE)[:-1], element(IMAGE) + b"\1", b"\xff" * 4, element(IMAGE)):
        assert send_recorded(shared, BYTES_HEADER % len(binary), binary).status == 400
