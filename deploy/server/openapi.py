"""The OpenAPI 3.1 document of the server, written by hand; a test sends requests to check every statement."""

from typing import Any

from deploy.server.limits import Limits

Schema = dict[str, Any]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["reason", "message"],
            "properties": {"reason": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_PROTOCOL_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_STATUSES = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    404: "The route, model, index or classifier does not exist.",
    405: "The route does not support this method.",
    408: "The body took too long.",
    409: "Another encoder made the index.",
    413: "The body is too large.",
    415: "The content type or encoding of the body is not supported.",
    421: "The Host header names another server.",
    422: "No image could be used, or there are none, or too many.",
    500: "Internal server error.",
    503: "The queue is full; Retry-After says when to try again.",
    504: "No result before the deadline.",
}
_POST = (400, 401, 408, 413, 415, 421, 422, 500, 503, 504)
_GET = (401, 421, 500)
_CLASSES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["label", "probability"],
        "properties": {"label": {"type": "string"}, "probability": {"type": "number", "minimum": 0, "maximum": 1}},
    },
}
_NEIGHBORS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["id", "score"],
        "properties": {"id": {"type": "string"}, "score": {"type": "number"}},
    },
}


def document(limits: Limits) -> Schema:
    """Return the document, with the limits of this server."""
    paths: Schema = {
        "/v1/embed": _images_route(
            limits,
            "Embed images.",
            "vector",
            {"type": "array", "items": {"type": "number"}},
            [_parameter("normalize", {"type": "boolean", "default": True})],
        ),
        "/v1/classify": _images_route(
            limits, "The most probable classes.", "classes", _CLASSES, [_count("top", 5)], (404,)
        ),
        "/v1/search": _images_route(
            limits, "The nearest images of the index.", "neighbours", _NEIGHBORS, [_count("k", 10)], (404, 409)
        ),
        "/v1/model": _get(
            "The current model: bundle.json, labels, limits.", {"type": "object", "required": ["id", "name", "dim"]}
        ),
        "/": _page("A page to try the server in a browser.", "text/html"),
        "/openapi.json": _get("This document.", {"type": "object"}, (), open=True),
        "/metrics": _page("Prometheus metrics.", "text/plain"),
    }
    embed = paths["/v1/embed"]["post"]["responses"]["200"]["content"]
    embed["application/x-npy"] = {"schema": {"type": "string", "contentMediaType": "application/x-npy"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "simclr-deploy serve",
            "version": "1",
            "description": "Images in, embeddings out. The server never fetches a URL.",
        },
        "paths": paths | _protocol_paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, "ProtocolError": _PROTOCOL_ERROR},
        },
        "security": [{"token": []}, {}],
    }


def _protocol_paths() -> Schema:
    live = _get("The process is running.", {"type": "object"}, (), "ProtocolError", open=True)
    ready = _get("The server accepts requests.", {"type": "object"}, (503,), "ProtocolError", open=True)
    paths: Schema = {
        "/v2": _get("Open Inference Protocol: server metadata.", {"type": "object"}, (), "ProtocolError"),
        "/v2/health/live": live,
        "/v2/health/ready": ready,
    }
    tensors = {"type": "object", "required": ["outputs"], "properties": {"outputs": {"type": "array"}}}
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        names = [_parameter(name, {"type": "string"}, "path") for name in ("model", "version") if f"{{{name}}}" in path]
        infer = {
            "summary": "Infer one tensor of images.",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
                    "application/octet-stream": {"schema": {"type": "string"}},
                },
            },
            "responses": _responses(tensors, (*_POST, 404), "ProtocolError"),
        }
        paths[path] = _get("Model metadata.", {"type": "object"}, (404,), "ProtocolError") | {"parameters": names}
        paths[f"{path}/ready"] = _get("The model is ready.", {"type": "object"}, (404, 503), "ProtocolError") | {
            "parameters": names
        }
        paths[f"{path}/infer"] = {"post": infer, "parameters": names}
    return paths


def _images_route(
    limits: Limits, summary: str, name: str, found: Schema, parameters: list[Schema], more: tuple[int, ...] = ()
) -> Schema:
    item = {
        "type": "object",
        "required": ["b64"],
        "additionalProperties": False,
        "properties": {"b64": {"type": "string"}},
    }
    images = {"type": "array", "minItems": 1, "maxItems": limits.images, "items": item}
    entry = {
        "type": "object",
        "required": ["index"],
        "properties": {"index": {"type": "integer"}, name: found, "error": _ERROR["properties"]["error"]},  # type: ignore[index]
        "oneOf": [{"required": [name]}, {"required": ["error"]}],
    }
    answer = {
        "type": "object",
        "required": ["model", "results"],
        "properties": {
            "model": {"type": "object", "required": ["id", "name", "version"]},
            "results": {"type": "array", "items": entry},
        },
    }
    binary: Schema = {"schema": {"type": "string", "maxLength": limits.body_bytes}}
    body = {
        "application/json": {"schema": {"type": "object", "required": ["images"], "properties": {"images": images}}}
    }
    body |= {"image/*": binary, "application/octet-stream": binary}
    responses = _responses(answer, (*_POST, *more))
    # If no image could be used, the answer has an error for each; if there are none or too many, it is one error.
    responses["422"]["content"]["application/json"]["schema"] = {"anyOf": [answer, _reference("Error")]}
    return {
        "post": {
            "summary": summary,
            "parameters": parameters,
            "requestBody": {"required": True, "content": body},
            "responses": responses,
        }
    }


def _get(summary: str, schema: Schema, more: tuple[int, ...] = (), error: str = "Error", open: bool = False) -> Schema:
    operation: Schema = {"summary": summary, "responses": _responses(schema, (*_GET, *more), error)}
    return {"get": operation | ({"security": []} if open else {})}


def _page(summary: str, kind: str) -> Schema:
    content = {kind: {"schema": {"type": "string"}}}
    return {
        "get": {
            "summary": summary,
            "security": [],
            "responses": {"200": {"description": "Success.", "content": content}},
        }
    }


def _responses(schema: Schema, statuses: tuple[int, ...], error: str = "Error") -> Schema:
    good = {"description": "Success.", "content": {"application/json": {"schema": schema}}}
    content = {"application/json": {"schema": _reference(error)}}
    return {"200": good} | {
        str(status): {"description": _STATUSES[status], "content": content.copy()} for status in sorted(statuses)
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, schema: Schema, where: str = "query") -> Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _count(name: str, default: int) -> Schema:
    return _parameter(name, {"type": "integer", "minimum": 1, "maximum": 1_000, "default": default})
