"""What Triton adds to the Open Inference Protocol: configuration and statistics of the model, index of the repository.

A registry is a repository with one model, of which one version is served. Loading and unloading are left to the
registry's CURRENT.
https://github.com/triton-inference-server/server/tree/main/docs/protocol: model_configuration, statistics,
model_repository
"""

import asyncio
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deploy.server.bodies import json_object, read_body
from deploy.server.inference import find_model
from deploy.server.limits import RefusedError
from deploy.server.metrics import Duration
from deploy.server.models import Model
from deploy.server.service import Service

INDEX_BYTES = 10_000
"""Largest request for the index, which has one field."""


async def config(service: Service, request: Request) -> Response:
    """Shapes include the number of images, as in the metadata; in Triton's terms the model has no batch dimension."""
    model = find_model(service, request)
    images = {"name": "images", "data_type": "TYPE_STRING", "dims": [-1]}
    widths = [("embedding", model.dim), *([("probabilities", len(model.labels))] if model.labels else [])]
    outputs = [{"name": name, "data_type": "TYPE_FP32", "dims": [-1, width]} for name, width in widths]
    return JSONResponse(
        {
            "name": model.name,
            "platform": "onnxruntime",
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,
            "input": [images],
            "output": outputs,
            "parameters": {"max_images": {"string_value": str(service.limits.images)}},
        }
    )


async def statistics(service: Service, request: Request) -> Response:
    """Of the served version, since it is served."""
    model = find_model(service, request) if "model" in request.path_params else service.models.current
    return JSONResponse({"model_stats": [_statistics(model)]})


async def index(service: Service, request: Request) -> Response:
    with service.held.counter() as hold:
        body = await read_body(request.receive, request.headers, replace(service.limits, body_bytes=INDEX_BYTES), hold)
    only_ready = json_object(body).get("ready", False) if body else False
    if not isinstance(only_ready, bool):
        raise RefusedError(400, "invalid_request", "ready is not true or false")
    current = service.models.current
    versions = await asyncio.to_thread(service.models.history)
    versions[current.version] = "shutting down" if service.draining else ""
    entries = [
        {"name": current.name, "state": "UNAVAILABLE" if reason else "READY"}
        | ({"version": version} if version else {})
        | ({"reason": reason} if reason else {})
        for version, reason in versions.items()
        if not (only_ready and reason)
    ]
    return JSONResponse(entries)


ROUTES = (
    ("GET", "/v2/models/stats", statistics),
    ("GET", "/v2/models/{model}/config", config),
    ("GET", "/v2/models/{model}/stats", statistics),
    ("GET", "/v2/models/{model}/versions/{version}/config", config),
    ("GET", "/v2/models/{model}/versions/{version}/stats", statistics),
    ("POST", "/v2/repository/index", index),
)


def _statistics(model: Model) -> dict[str, Any]:
    found = model.statistics.snapshot()
    names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    none = _duration(Duration())
    batches = [
        {"batch_size": size, "compute_input": none, "compute_infer": _duration(duration), "compute_output": none}
        for size, duration in sorted(found.runs.items())
    ]
    return {
        "name": model.name,
        "version": model.version or "",
        "last_inference": round(found.last * 1000),
        "inference_count": sum(size * duration.count for size, duration in found.runs.items()),
        "execution_count": sum(duration.count for duration in found.runs.values()),
        "inference_stats": {name: _duration(found.stages.get(name, Duration())) for name in names},
        "batch_stats": batches,
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": round(duration.seconds * 1e9)}
