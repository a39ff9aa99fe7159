"""The routes: embed, classify, search, page, metrics. Those of other protocols are in inference.py and openai.py."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from deploy.bundle import ASSIGNED
from deploy.errors import ImageError
from deploy.server import inference, metrics, openai, repository
from deploy.server.bodies import read_images
from deploy.server.engine import Job
from deploy.server.limits import ClientLeftError, RefusedError
from deploy.server.middleware import AccessMiddleware, ObservingMiddleware, error_response
from deploy.server.models import Model
from deploy.server.openapi import document
from deploy.server.page import DOCS, PAGE, page
from deploy.server.service import Service, errors_of, features_of, fill_gaps

MAX_TOP = 1_000

Handler = Callable[[Service, Request], Awaitable[Response]]


async def embed(service: Service, request: Request) -> Response:
    normalize = _read_boolean(request, "normalize", True)
    job = await _infer(service, request, service.models.current)
    features = features_of(job)
    vectors = job.model.vectors(features) if normalize else features
    if "application/x-npy" in request.headers.get("accept", ""):
        return _npy_response(vectors, job)
    return await _results_response(job, ({"vector": row.tolist()} for row in vectors))


async def classify(service: Service, request: Request) -> Response:
    top = _read_integer(request, "top", 5, MAX_TOP)
    model = service.models.current
    if not model.labels:
        raise RefusedError(404, "no_labels", f"{model.name} was exported without a classifier")
    job = await _infer(service, request, model)
    labels, rows = job.model.labels, job.model.probabilities(features_of(job))
    best = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    return await _results_response(
        job,
        (
            {"classes": [{"label": labels[i], "probability": round(float(row[i]), 6)} for i in order]}
            | ({"labels": [labels[i] for i in np.flatnonzero(row >= ASSIGNED)]} if job.model.multi_label else {})
            for row, order in zip(rows, best, strict=True)
        ),
    )


async def search(service: Service, request: Request) -> Response:
    k = _read_integer(request, "k", 10, MAX_TOP)
    model = service.models.current
    if model.index_fault:
        raise RefusedError(409, "index_of_another_encoder", model.index_fault)
    if model.index is None:
        raise RefusedError(404, "no_index", "this server has no index; start it with `serve --index DIR`")
    job = await _infer(service, request, model)
    _refuse_zeros(job)
    vectors = model.vectors(features_of(job))
    found = await asyncio.to_thread(model.index.search, vectors, k) if len(vectors) else None
    return await _results_response(
        job,
        (
            {"neighbours": [{"id": str(name), "score": float(score)} for name, score in zip(ids, scores, strict=True)]}
            for ids, scores in (zip(found.ids, found.scores, strict=True) if found else ())
        ),
    )


async def about_model(service: Service, _request: Request) -> Response:
    current = service.models.current
    about = current.info | {
        "index": None if current.index is None else {"rows": len(current.index)},
        "limits": {
            "body_bytes": service.limits.body_bytes,
            "images": service.limits.images,
            "pixels": service.limits.pixels,
        },
    }
    return JSONResponse(about)


async def front_page(_service: Service, _request: Request) -> Response:
    return _page(PAGE)


async def docs_page(_service: Service, _request: Request) -> Response:
    return _page(DOCS)


async def openapi(service: Service, _request: Request) -> Response:
    return JSONResponse(document(service.limits))


async def show_metrics(service: Service, _request: Request) -> Response:
    return Response(
        service.metrics.text([*service.gauges(), *metrics.process_samples()]),
        headers={"Content-Type": metrics.CONTENT_TYPE},
    )


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/embed", embed),
    ("POST", "/v1/classify", classify),
    ("POST", "/v1/search", search),
    ("GET", "/v1/model", about_model),
    ("GET", "/", front_page),
    ("GET", "/docs", docs_page),
    ("GET", "/openapi.json", openapi),
    ("GET", "/metrics", show_metrics),
    *openai.ROUTES,
    *repository.ROUTES,  # before those of inference.py: no model is called stats
    *inference.ROUTES,
)


def application(
    service: Service,
    tokens: Callable[[], Collection[bytes]] | None = None,
    hosts: Iterable[str] = (),
    origins: Iterable[str] = (),
) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        tokens: returns the tokens of which a request must carry one, except for the paths in OPEN; None if no token is
            required.
        hosts: host names that a request may use; empty allows all. Without a token this blocks web pages whose host
            name resolves to this machine (DNS rebinding).
        origins: of web pages that may use the server, such as ``https://app.example.org``; other pages may not.
    """

    def bind(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await handler(service, request)

        return endpoint

    routes = [Route(path, bind(handler), methods=[method]) for method, path, handler in ROUTES]
    handlers: dict[Any, Any] = {
        RefusedError: _answer_refusal,
        HTTPException: _answer_http_error,
        ClientLeftError: _answer_absent_client,
        Exception: _answer_internal_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would send the browser to any Host that the request names
    names = {route.endpoint: route.path for route in routes}
    access = AccessMiddleware(app, tokens, frozenset(hosts), frozenset(origins))
    return ObservingMiddleware(access, service, names)


async def _infer(service: Service, request: Request, model: Model) -> Job:
    content_type = request.headers.get("content-type", "")
    return await service.infer(request, model, lambda body: read_images(content_type, body, service.limits.images))


async def _results_response(job: Job, rows: Iterable[dict[str, object]]) -> Response:
    """Answer with one entry for each image, in order; status 422 if every image has an error."""
    errors = errors_of(job)
    status = 422 if len(errors) == len(job.results) else 200

    def encode() -> bytes:
        next_rows = iter(rows)
        entries = [
            json.dumps({"index": i, "error": {"reason": errors[i].reason, "message": str(errors[i])}})
            if i in errors
            else json.dumps({"index": i, **next(next_rows)}, allow_nan=False)
            for i in range(len(job.results))
        ]
        about = {"id": job.model.id, "name": job.model.name, "version": job.model.version}
        return f'{{"model": {json.dumps(about)}, "results": [{", ".join(entries)}]}}'.encode()

    body = encode() if len(job.results) == 1 else await asyncio.to_thread(encode)
    return Response(body, status, media_type="application/json")


def _page(name: str) -> Response:
    html, policy = page(name)
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})


def _refuse_zeros(job: Job) -> None:
    """Give an image an error if its features are all zero, as those of a black image may be: it is near nothing."""
    for position, result in enumerate(job.results):
        if not isinstance(result, ImageError) and not np.any(result):
            message = "the encoder gives zeros for this image, which have no direction; leave it out"
            job.results[position] = ImageError("no_direction", message)


def _npy_response(vectors: Any, job: Job) -> Response:
    """Answer with float32 [images, dim]; rows of NaN are listed in X-Image-Errors (``index:reason,index:reason``)."""
    errors = errors_of(job)
    content = io.BytesIO()
    np.save(content, fill_gaps(vectors, job), allow_pickle=False)
    listed = ",".join(f"{position}:{error.reason}" for position, error in errors.items())
    headers = {"X-Image-Errors": listed} if errors else {}
    status = 422 if len(errors) == len(job.results) else 200
    return Response(content.getvalue(), status, headers, media_type="application/x-npy")


def _read_boolean(request: Request, name: str, default: bool) -> bool:
    text = request.query_params.get(name, str(default).lower())
    if text not in ("true", "false"):
        raise RefusedError(400, "invalid_parameter", f"{name}={text[:50]}; give true or false")
    return text == "true"


def _read_integer(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise RefusedError(400, "invalid_parameter", f"{name}={text[:50]}; give an integer from 1 to {most}")
    return int(text)


async def _answer_refusal(request: Request, error: RefusedError) -> Response:
    return error_response(request.url.path, error.status, error.reason, str(error), error.headers)


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    reason = {404: "no_such_route", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}; see /openapi.json"
    return error_response(request.url.path, error.status_code, reason, message, dict(error.headers or {}))


async def _answer_absent_client(request: Request, _error: ClientLeftError) -> Response:
    request.scope["left"] = True
    return Response(status_code=400)  # never sent, the connection is closed


async def _answer_internal_error(request: Request, _error: Exception) -> Response:
    return error_response(request.url.path, 500, "internal", "internal server error; see the log of the server")
