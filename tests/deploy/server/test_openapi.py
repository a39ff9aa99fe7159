"""The OpenAPI document and the server agree: every route, status and body is checked."""

import base64
import re
from typing import Any

import pytest

from deploy.server.app import ROUTES
from deploy.server.limits import Limits
from deploy.server.openapi import document
from tests.deploy.server.conftest import IMAGE, Answer, Running

DOCUMENT = document(Limits())
BROKEN: dict[str, tuple[Any, str]] = {
    "400": (b"{", "application/json"),
    "415": (IMAGE, "text/plain"),
    "413": (b"\0" * 20_000_001, "image/png"),
    "422": (b"no image", "image/png"),
}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """List where a value contradicts a schema, for the keywords that the document uses."""
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for keyword, wanted in (("anyOf", 1), ("oneOf", 1)):
        if keyword in schema:
            fitting = sum(not faults(value, option, where) for option in schema[keyword])
            if fitting < wanted or (keyword == "oneOf" and fitting != 1):
                return [f"{where}: {fitting} of {keyword} fit"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return [f"{where}: {value!r} is not of type {schema['type']}"]
    found = []
    if isinstance(value, dict):
        found += [f"{where}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in schema.get("properties", {}).items():
            found += faults(value[name], inner, f"{where}.{name}") if name in value else []
    if isinstance(value, list):
        found += [fault for item in value for fault in faults(item, schema.get("items", {}), f"{where}[]")]
    return found


def check_conformance(answer: Answer, operation: dict[str, Any]) -> None:
    response = operation["responses"].get(str(answer.status))
    assert response, f"{answer.status} is not in the document: {answer.body[:300]!r}"
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert kind in response["content"], kind
    if kind == "application/json":
        assert faults(answer.json, response["content"][kind]["schema"]) == []


def test_the_document_has_every_route_and_no_other(shared: Running) -> None:
    described = {
        (method.upper(), path)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method in ("get", "post")
    }
    assert described == {(method, path) for method, path, _ in ROUTES}
    assert shared.ask("GET", "/openapi.json").json == DOCUMENT


@pytest.mark.parametrize("path", [path for path, item in DOCUMENT["paths"].items() if "get" in item])
def test_each_get_answers_as_described(shared: Running, path: str) -> None:
    for name, version in (("mean-color", "v0.0.1"), ("other", "v0.0.1")):
        real = path.replace("{model}", name).replace("{version}", version)
        check_conformance(shared.ask("GET", real), DOCUMENT["paths"][path]["get"])


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENT["paths"] if path.startswith("/v1/") and path != "/v1/model"]
)
def test_each_post_answers_as_described(shared: Running, path: str) -> None:
    operation = DOCUMENT["paths"][path]["post"]
    images = {"images": [{"b64": base64.b64encode(IMAGE).decode()}, {"b64": "?"}]}
    for kind in operation["requestBody"]["content"]:
        if kind == "application/json":
            check_conformance(shared.post_json(path, images), operation)
        else:
            check_conformance(shared.post(path, IMAGE, kind.replace("*", "png")), operation)
    for status, (body, kind) in BROKEN.items():
        answer = shared.post(path, body, kind)
        assert str(answer.status) == status or path == "/v1/search"  # which has no index here
        check_conformance(answer, operation)


def test_infer_answers_as_described(shared: Running) -> None:
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(IMAGE).decode()]}
    for path, item in DOCUMENT["paths"].items():
        if path.endswith("/infer"):
            for name in ("mean-color", "other"):
                real = path.replace("{model}", name).replace("{version}", "v0.0.1")
                check_conformance(shared.post_json(real, {"inputs": [tensor]}), item["post"])
                check_conformance(shared.post_json(real, {"inputs": []}), item["post"])


def test_references_and_parameters_are_complete() -> None:
    text = str(DOCUMENT)
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) == set(DOCUMENT["components"]["schemas"])
    for path, item in DOCUMENT["paths"].items():
        names = {parameter["name"] for parameter in item.get("parameters", [])}
        assert names == set(re.findall(r"{(\w+)}", path))


def test_a_wrong_statement_is_found(shared: Running) -> None:
    operation = DOCUMENT["paths"]["/v1/embed"]["post"]
    answer = shared.post("/v1/classify", IMAGE)
    with pytest.raises(AssertionError):
        check_conformance(answer, operation)
