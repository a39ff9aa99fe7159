"""The OpenAPI 3.1 document of the server, written by hand; a test sends requests to check every statement.

Generated clients need names: each operation has an operationId, and each shape a schema in components.
"""

import re
from typing import Any

from deploy.server.limits import Limits
from deploy.server.openapi_schemas import (
    BINARY,
    BOOLEAN,
    INTEGER,
    MORE,
    RESULTS,
    SCHEMAS,
    STRING,
    Schema,
    array_of,
    object_of,
    reference,
)

_STATUSES = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "A web page of an origin that is not allowed sent the request.",
    404: "The route, model, index or classifier does not exist.",
    408: "The request took too long.",
    409: "Another encoder made the index.",
    413: "The body is too large.",
    415: "The content type or encoding of the body is not supported.",
    421: "The Host header names another server.",
    422: "No image could be used, or there are none, or too many.",
    431: "The head is too large.",
    500: "Internal server error.",
    503: "The queue or the memory is full, or there are too many connections; Retry-After says when to try again.",
    504: "No result before the deadline.",
}
_POST = (400, 401, 403, 408, 413, 415, 421, 422, 431, 500, 503, 504)
_GET = (400, 401, 408, 413, 421, 431, 500, 503)
_BEFORE_A_REQUEST = (400, 408, 413, 503)
"""What a connection that brings no complete request is closed with, in plain text."""


def document(limits: Limits) -> Schema:
    """Return the document, with the limits of this server."""
    schemas = dict(SCHEMAS)
    schemas["ImagesRequest"] = object_of(
        "images", images=array_of(reference("EncodedImage"), minItems=1, maxItems=limits.images)
    )
    schemas["ImagesForm"] = object_of("images", images=array_of(BINARY, minItems=1, maxItems=limits.images)) | {
        "description": "Files. Fields of other names are read as well, if they are files.",
        "additionalProperties": False,
    }
    for prefix, (field, found) in RESULTS.items():
        schemas[f"{prefix}Result"] = object_of(
            "index", index=INTEGER, **{field: found, "error": reference("ErrorDetail")} | MORE.get(prefix, {})
        ) | {"description": f"Of one image: either {field} or error."}
        results = array_of(reference(f"{prefix}Result"))
        schemas[f"{prefix}Response"] = object_of("model results", model=reference("ModelReference"), results=results)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "simclr-deploy serve",
            "version": "1",
            "description": "Images in, embeddings out. The server never fetches a URL. "
            "Every body may be sent with Content-Encoding: gzip or deflate; the limits hold for what it inflates to.",
        },
        "servers": [{"url": "/"}],
        "paths": _image_paths(limits) | _openai_paths() | _other_paths() | _protocol_paths(),
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}, "schemas": schemas},
        "security": [{"token": []}, {}],
    }


def _image_paths(limits: Limits) -> Schema:
    normalize = _parameter("normalize", BOOLEAN | {"default": True})
    paths = {
        "/v1/embed": _images_route(limits, "embed", "Embed images.", normalize),
        "/v1/classify": _images_route(limits, "classify", "The most probable classes.", _count("top", 5), 404),
        "/v1/search": _images_route(limits, "search", "The nearest images of the index.", _count("k", 10), 404, 409),
    }
    array = {"application/x-npy": {"schema": BINARY}}
    for status in ("200", "422"):
        paths["/v1/embed"]["post"]["responses"][status]["content"] |= array
    return paths


def _images_route(limits: Limits, name: str, summary: str, parameter: Schema, *more: int) -> Schema:
    binary = {"schema": BINARY | {"maxLength": limits.body_bytes}}
    body = {
        "application/json": {"schema": reference("ImagesRequest")},
        "multipart/form-data": {"schema": reference("ImagesForm")},
        "image/*": binary,
        "application/octet-stream": binary,
        "application/x-npy": binary,
    }
    answer = reference(f"{name.capitalize()}Response")
    responses = _responses(answer, (*_POST, *more))
    # If no image could be used, the answer has an error for each; if there are none or too many, it is one error.
    responses["422"] = _response(_STATUSES[422], {"anyOf": [answer, reference("Error")]})
    return {"post": _operation(name, summary, responses, parameters=[parameter], requestBody=_body(body))}


def _openai_paths() -> Schema:
    statuses = [status for status in (*_POST, 404) if status != 422]
    responses = _responses(reference("EmbeddingsResponse"), statuses, "OpenAIError")
    body = _body({"application/json": {"schema": reference("EmbeddingsRequest")}})
    model = _get("retrieve_model", "The model, in the shape of OpenAI's API.", "OpenAIModel", "OpenAIError", 404)
    return {
        "/v1/embeddings": {
            "post": _operation(
                "create_embeddings", "Embed images, in the shape of OpenAI's API.", responses, requestBody=body
            )
        },
        "/v1/models": _get("list_models", "The model, in the shape of OpenAI's API.", "OpenAIModels", "OpenAIError"),
        "/v1/models/{model}": model | {"parameters": [_parameter("model", STRING, "path")]},
    }


def _other_paths() -> Schema:
    return {
        "/v1/model": _get("get_model", "The current model: bundle.json, labels, limits.", "Model"),
        "/": _page("get_page", "A page to try the server in a browser.", "text/html"),
        "/docs": _page("get_docs", "This document, for a person.", "text/html"),
        "/openapi.json": _get("get_openapi", "This document.", "Document", open=True),
        "/metrics": _page("get_metrics", "Prometheus metrics.", "text/plain"),
    }


def _protocol_paths() -> Schema:
    paths: Schema = {
        "/v2": _get("get_server", "Open Inference Protocol: server metadata.", "ServerMetadata", "ProtocolError"),
        "/v2/health/live": _get("get_live", "The process is running.", "Live", "ProtocolError", open=True),
        "/v2/health/ready": _get("get_ready", "The server accepts requests.", "Ready", "ProtocolError", open=True),
    }
    paths["/v2/health/ready"]["get"]["responses"]["503"] = _unready("Ready")
    for path, suffix in (("/v2/models/{model}", ""), ("/v2/models/{model}/versions/{version}", "_version")):
        names = {"parameters": [_parameter(name, STRING, "path") for name in re.findall(r"{(\w+)}", path)]}
        metadata = _get(f"get_model{suffix}_metadata", "Model metadata.", "ModelMetadata", "ProtocolError", 404)
        ready = _get(f"get_model{suffix}_ready", "The model is ready.", "ModelReady", "ProtocolError", 404)
        ready["get"]["responses"]["503"] = _unready("ModelReady")
        paths[path], paths[f"{path}/ready"] = metadata | names, ready | names
        paths[f"{path}/infer"] = {"post": _infer(f"infer{suffix}")} | names
        paths[f"{path}/config"] = (
            _get(f"get_model{suffix}_config", "Triton: configuration.", "ModelConfig", "ProtocolError", 404) | names
        )
        paths[f"{path}/stats"] = (
            _get(f"get_model{suffix}_statistics", "Triton: statistics.", "Statistics", "ProtocolError", 404) | names
        )
    paths["/v2/models/stats"] = _get(
        "get_statistics", "Triton: statistics of every model.", "Statistics", "ProtocolError"
    )
    paths["/v2/repository/index"] = {"post": _repository_index()}
    return paths


def _repository_index() -> Schema:
    body = {"content": {"application/json": {"schema": reference("RepositoryRequest")}}}
    responses = _responses(reference("RepositoryIndex"), (*_GET, 415), "ProtocolError")
    return _operation("get_repository_index", "Triton: the released versions.", responses, requestBody=body)


def _infer(name: str) -> Schema:
    length = _parameter("Inference-Header-Content-Length", INTEGER | {"minimum": 0}, "header")
    body = {"application/json": {"schema": reference("InferRequest")}, "application/octet-stream": {"schema": BINARY}}
    responses = _responses(reference("InferResponse"), (*_POST, 404), "ProtocolError")
    responses["200"]["content"]["application/octet-stream"] = {"schema": BINARY}
    return _operation(name, "Infer one tensor of images.", responses, parameters=[length], requestBody=_body(body))


def _get(name: str, summary: str, schema: str, error: str = "Error", *more: int, open: bool = False) -> Schema:
    statuses = [status for status in (*_GET, *more) if not (open and status == 401)]
    operation = _operation(name, summary, _responses(reference(schema), statuses, error))
    return {"get": operation | ({"security": []} if open else {})}


def _page(name: str, summary: str, kind: str) -> Schema:
    page = _get(name, summary, "Error", open=True)
    page["get"]["responses"]["200"] = {"description": "Success.", "content": {kind: {"schema": STRING}}}
    return page


def _operation(name: str, summary: str, responses: Schema, **more: object) -> Schema:
    return {"operationId": name, "summary": summary, **more, "responses": responses}


def _body(content: Schema) -> Schema:
    return {"required": True, "content": content}


def _responses(schema: Schema, statuses: Any, error: str = "Error") -> Schema:
    responses = {"200": _response("Success.", schema)}
    for status in sorted(statuses):
        responses[str(status)] = _response(_STATUSES[status], reference(error))
        if status in _BEFORE_A_REQUEST:
            responses[str(status)]["content"]["text/plain"] = {"schema": STRING}
    return responses


def _response(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _unready(schema: str) -> Schema:
    unready = _response("The server shuts down, or there are too many connections.", reference(schema))
    unready["content"]["text/plain"] = {"schema": STRING}
    return unready


def _parameter(name: str, schema: Schema, where: str = "query") -> Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _count(name: str, default: int) -> Schema:
    return _parameter(name, INTEGER | {"minimum": 1, "maximum": 1_000, "default": default})
