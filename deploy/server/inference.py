"""A subset of the Open Inference Protocol v2, so that clients of KServe and Triton work.

One input, ``images``: BYTES [n], encoded images (base64 text in JSON), or UINT8 [n, size, size, 3], pixels as
``deploy.images.preprocess`` returns them, or UINT16 [n, size, size, channels] where images have a number of channels.
Outputs, FP32: ``embedding`` [n, dim], of length 1, and, if the model has labels, ``probabilities`` [n, labels]. Tensors
are sent as JSON or with the binary extension. If an image cannot be read, its rows are NaN (null in JSON) and the
response's parameter ``errors`` says why.
https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deploy.images.preprocess import Preprocessing
from deploy.server.bodies import check_count, from_base64, json_object
from deploy.server.engine import Image, Job
from deploy.server.limits import RefusedError
from deploy.server.models import Model
from deploy.server.service import Service, errors_of, features_of, fill_gaps

EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics", "model_repository"]
"""The last three are in repository.py."""

HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")


async def server_metadata(_service: Service, _request: Request) -> Response:
    return JSONResponse({"name": "simclr-deploy", "version": "1", "extensions": EXTENSIONS})


async def live(_service: Service, _request: Request) -> Response:
    return JSONResponse({"live": True})


async def ready(service: Service, _request: Request) -> Response:
    """The server listens only after its golden images passed, so it is ready until it shuts down.

    It stays ready, and says so, while the model that CURRENT names cannot be served: the old one answers. It is not
    ready while no trusted key vouches for the model.
    """
    answer: dict[str, object] = {"ready": service.is_ready}
    if candidate := service.models.candidate:  # without the message, which may name paths: no token is needed here
        facts = {"state": candidate.state, "attempts": candidate.attempts, "error": type(candidate.error).__name__}
        answer["candidate"] = facts
    return JSONResponse(answer, 200 if service.is_ready else 503)


async def model_ready(service: Service, request: Request) -> Response:
    model = find_model(service, request)
    return JSONResponse({"name": model.name, "ready": service.is_ready}, 200 if service.is_ready else 503)


async def model_metadata(service: Service, request: Request) -> Response:
    model = find_model(service, request)
    inputs = [{"name": "images", "datatype": "BYTES", "shape": [-1]}]
    shapes = [("embedding", model.dim), *([("probabilities", len(model.labels))] if model.labels else [])]
    outputs = [{"name": name, "datatype": "FP32", "shape": [-1, width]} for name, width in shapes]
    versions = [model.version] if model.version else []
    about = {"name": model.name, "versions": versions, "platform": "onnxruntime", "inputs": inputs, "outputs": outputs}
    return JSONResponse(about)


async def infer(service: Service, request: Request) -> Response:
    model = find_model(service, request)
    asked: dict[str, Any] = {}

    def read(body: bytes) -> list[Image]:
        header, binary = _split_body(body, request.headers.get(HEADER_LENGTH))
        _check_outputs(header, model)
        asked.update({name: value for name, value in header.items() if name != "inputs"})
        return _read_input(header, binary, model, service.limits.images)

    job = await service.infer(request, model, read)
    if len(errors := errors_of(job)) == len(job.results):
        raise RefusedError(422, next(iter(errors.values())).reason, _list_errors(job))
    return _response(asked, job) if len(job.results) == 1 else await asyncio.to_thread(_response, asked, job)


ROUTES = (
    ("GET", "/v2", server_metadata),
    ("GET", "/v2/health/live", live),
    ("GET", "/v2/health/ready", ready),
    ("GET", "/v2/models/{model}", model_metadata),
    ("GET", "/v2/models/{model}/ready", model_ready),
    ("POST", "/v2/models/{model}/infer", infer),
    ("GET", "/v2/models/{model}/versions/{version}", model_metadata),
    ("GET", "/v2/models/{model}/versions/{version}/ready", model_ready),
    ("POST", "/v2/models/{model}/versions/{version}/infer", infer),
)


def find_model(service: Service, request: Request) -> Model:
    """Return the current model; raise RefusedError (404) if the request names another model or version."""
    model, given = service.models.current, request.path_params
    if given["model"] != model.name or given.get("version", model.version) != model.version:
        serves = f"{model.name} {model.version or ''}".strip()
        raise RefusedError(404, "no_such_model", f"no such model or version; this server serves {serves}")
    return model


def _split_body(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    if header_length is None:
        return json_object(body), b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 10):
        raise _invalid_request(f"{HEADER_LENGTH} is {header_length[:50]!r}; give the length of the JSON in bytes")
    length = int(header_length)
    if length > len(body):
        raise _invalid_request(f"{HEADER_LENGTH} is {length}, but the body has only {len(body)} bytes")
    return json_object(body[:length]), body[length:]


def _read_input(header: Mapping[str, Any], binary: bytes, model: Model, most: int) -> list[Image]:
    """Return the images of the input tensor; raise RefusedError if it is not valid."""
    inputs = header.get("inputs")
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise _invalid_request("inputs: give exactly one tensor, `images`")
    tensor = inputs[0]
    numbers = np.dtype(model.preprocessing.dtype).name.upper()
    if tensor.get("name") != "images" or tensor.get("datatype") not in ("BYTES", numbers):
        raise _invalid_request(f"inputs: give `images` with datatype BYTES or {numbers}")
    shape = tensor.get("shape")
    if not (isinstance(shape, list) and 1 <= len(shape) <= 4 and all(map(_is_side, shape))):
        raise _invalid_request("images: shape is not a list of one to four integers of 0 or more")
    size = _parameters(tensor).get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(binary)):
        raise _invalid_request(f"images: binary_data_size is {size!r:.50}, but {len(binary)} bytes follow the JSON")
    check_count(shape[0], most)
    if tensor["datatype"] == numbers:
        return _read_pixels(tensor, binary if size is not None else None, shape[0], model.preprocessing)
    if shape[1:] not in ([], [1]):
        raise _invalid_request(f"images: BYTES of shape {shape}; give [n] or [n, 1]")
    if size is not None:
        return _split_byte_strings(binary, shape[0])
    return _decode_texts(_flatten(tensor.get("data"), shape), shape[0])


def _read_pixels(
    tensor: Mapping[str, Any], binary: bytes | None, count: int, preprocessing: Preprocessing
) -> list[Image]:
    shape = [count, preprocessing.size, preprocessing.size, preprocessing.bands]
    numbers, full = np.dtype(preprocessing.dtype).newbyteorder("<"), preprocessing.full
    if tensor["shape"] != shape:
        raise _invalid_request(f"images: {tensor['datatype']} of shape {tensor['shape']}; this model takes {shape}")
    if binary is None:
        flat = _flatten(tensor.get("data"), shape)
        if any(type(value) is not int or not 0 <= value <= full for value in flat):
            raise _invalid_request(f"images: data must hold only integers from 0 to {full}")
        binary = np.array(flat, numbers).tobytes()
    if len(binary) != np.prod(shape) * numbers.itemsize:
        raise _invalid_request(f"images: {len(binary) // numbers.itemsize} values for shape {shape}")
    return list(np.frombuffer(binary, numbers).reshape(shape).astype(preprocessing.dtype, copy=False))


def _is_side(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _flatten(data: object, shape: list[int]) -> list[Any]:
    """Flatten the data of a tensor in JSON, which may be nested, but not deeper than its shape."""
    for _ in shape:
        if isinstance(data, list) and data and isinstance(data[0], list):
            data = [value for part in data for value in (part if isinstance(part, list) else [part])]
    return data if isinstance(data, list) else []


def _split_byte_strings(binary: bytes, count: int) -> list[Image]:
    """Split a binary BYTES tensor: the length of each element precedes it, as 4 bytes, little-endian."""
    images: list[Image] = []
    position = 0
    while position < len(binary) and len(images) <= count:
        start = position + _LENGTH.size
        length = _LENGTH.unpack(binary[position:start])[0] if start <= len(binary) else len(binary)
        if start + length > len(binary):
            raise _invalid_request("images: the lengths of the BYTES elements do not add up to binary_data_size")
        images.append(binary[start : start + length])
        position = start + length
    _check_elements(len(images), count)
    return images


def _decode_texts(texts: list[Any], count: int) -> list[Image]:
    if not all(isinstance(text, str) for text in texts):
        raise _invalid_request("images: data is not a list of base64 text")
    _check_elements(len(texts), count)
    return [from_base64(text) for text in texts]


def _check_elements(found: int, count: int) -> None:
    if found != count:
        more = "more" if found > count else str(found)
        raise _invalid_request(f"images: shape says {count} images, but data holds {more}")


def _check_outputs(header: Mapping[str, Any], model: Model) -> None:
    outputs = header.get("outputs", [])
    if not (isinstance(outputs, list) and all(isinstance(output, dict) for output in outputs)):
        raise _invalid_request("outputs is not a list of objects")
    known = ["embedding", "probabilities"] if model.labels else ["embedding"]
    left = list(known)
    for output in outputs:
        if output.get("name") not in left:
            raise _invalid_request(f"outputs: {output.get('name')!r:.50}; give each of {', '.join(known)} at most once")
        left.remove(output["name"])


def _response(asked: Mapping[str, Any], job: Job) -> Response:
    features = features_of(job)
    make: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
        "embedding": job.model.vectors,
        "probabilities": job.model.probabilities,
    }
    default = ["embedding", *(["probabilities"] if job.model.labels else [])]
    wanted = asked.get("outputs") or [{"name": name} for name in default]
    all_binary = _parameters(asked).get("binary_data_output", False)
    outputs, parts = [], []
    for output in wanted:
        rows = fill_gaps(make[output["name"]](features), job)
        entry: dict[str, Any] = {"name": output["name"], "datatype": "FP32", "shape": list(rows.shape)}
        if _parameters(output).get("binary_data", all_binary):
            parts.append(rows.astype("<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            # JSON has null, but not NaN.
            entry["data"] = [None if value != value else value for value in rows.ravel().tolist()]
        outputs.append(entry)
    content: dict[str, Any] = {"model_name": job.model.name, "outputs": outputs}
    content |= {"model_version": job.model.version} if job.model.version else {}
    content |= {"id": asked["id"]} if isinstance(asked.get("id"), str) else {}
    content |= {"parameters": {"errors": _list_errors(job)}} if errors_of(job) else {}
    header = json.dumps(content, allow_nan=False).encode()
    if not parts:
        return Response(header, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(header))}
    return Response(b"".join((header, *parts)), headers=headers, media_type="application/octet-stream")


def _list_errors(job: Job) -> str:
    return "; ".join(f"image {position}: {error.reason}: {error}" for position, error in errors_of(job).items())


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _invalid_request("parameters is not an object")
    return cast("Mapping[str, Any]", parameters)


def _invalid_request(message: str) -> RefusedError:
    return RefusedError(400, "invalid_request", message)
