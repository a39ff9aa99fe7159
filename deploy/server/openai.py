"""Embeddings in the shape of OpenAI's API, for clients that let their user choose the address of the server.

``input`` is an image, or a list of images, in base64 or as data URIs; the embeddings have length 1. The shape has no
place for the error of one image, so that one unreadable image fails the request. ``usage`` counts images.
https://platform.openai.com/docs/api-reference/embeddings
"""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deploy.server.bodies import from_base64, json_object
from deploy.server.engine import Image, Job
from deploy.server.limits import RefusedError
from deploy.server.models import Model
from deploy.server.service import Service, errors_of, features_of

FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}
FORMATS = ("float", "base64")


async def embeddings(service: Service, request: Request) -> Response:
    model, asked = service.models.current, dict[str, Any]()

    def read(body: bytes) -> list[Image]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(415, "unsupported_content_type", f"given {kind[:100] or 'none'}; send application/json")
        content = json_object(body)
        if (unknown := next((name for name in content if name not in FIELDS), None)) is not None:
            raise _invalid(f"unknown field {unknown[:50]!r}; give model, input and encoding_format")
        asked.update({name: value for name, value in content.items() if value is not None})
        _check(asked, model)
        return _read_input(asked.pop("input", None), service.limits.images)

    job = await service.infer(request, model, read)
    for position, error in errors_of(job).items():
        raise RefusedError(400, error.reason, f"input[{position}]: {error}")
    return JSONResponse(await asyncio.to_thread(_answer, job, asked.get("encoding_format")))


async def list_models(service: Service, _request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_describe(service.models.current)]})


async def show_model(service: Service, request: Request) -> Response:
    return JSONResponse(_describe(_find(service.models.current, request.path_params["model"])))


ROUTES = (
    ("POST", "/v1/embeddings", embeddings),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model}", show_model),
)


def _find(model: Model, name: object) -> Model:
    if name not in (model.name, model.id):
        raise RefusedError(404, "model_not_found", f"no model {str(name)[:100]!r}; this server has {model.name!r}")
    return model


def _describe(model: Model) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "simclr-deploy"}  # a bundle has no date


def _check(asked: Mapping[str, Any], model: Model) -> None:
    if not isinstance(asked.get("model"), str):
        raise _invalid(f"model is not a string; this server has {model.name!r}")
    _find(model, asked["model"])
    if asked.get("encoding_format", "float") not in FORMATS:
        raise _invalid(f"encoding_format is not one of {', '.join(FORMATS)}")
    dimensions = asked.get("dimensions", model.dim)
    if type(dimensions) is not int or dimensions != model.dim:
        raise _invalid(f"dimensions is not {model.dim}; vectors of this model cannot be shortened")
    if not isinstance(asked.get("user", ""), str):
        raise _invalid("user is not a string")


def _read_input(given: object, most: int) -> list[Image]:
    texts: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise _invalid("input is not an image or a list of images, in base64 or as data URIs; it takes no tokens")
    if not 1 <= len(texts) <= most:
        raise _invalid(f"input has {len(texts)} images; send 1 to {most} in a request")
    return [from_base64(text) for text in texts]


def _answer(job: Job, form: str | None) -> dict[str, object]:
    rows = job.model.vectors(features_of(job))
    numbers = [base64.b64encode(row.astype("<f4")).decode() if form == "base64" else row.tolist() for row in rows]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(numbers)]
    usage = {"prompt_tokens": len(rows), "total_tokens": len(rows)}
    return {"object": "list", "data": data, "model": job.model.name, "usage": usage}


def _invalid(message: str) -> RefusedError:
    return RefusedError(400, "invalid_request", message)
