"""The OpenAPI document and the server agree: every route, status and body is checked."""

import base64
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from deploy.search.index import Index
from deploy.server.app import ROUTES
from deploy.server.limits import Limits
from deploy.server.models import Model, load_model
from deploy.server.openapi import document
from tests.deploy.conftest import encoded
from tests.deploy.server.conftest import IMAGE, Answer, Running, running

DOCUMENT = document(Limits())
UNREADY = {(path, "503") for path in DOCUMENT["paths"] if path.endswith("/ready")}
BROKEN: dict[str, tuple[Any, str]] = {
    "400": (b"{", "application/json"),
    "415": (IMAGE, "text/plain"),
    "413": (b"\0" * 20_000_001, "image/png"),
    "422": (b"no image", "image/png"),
}


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """List where a value contradicts a schema of the document, or holds a field that the document does not name."""
    closed = {
        name: {"additionalProperties": False, **one} if "properties" in one else one
        for name, one in DOCUMENT["components"]["schemas"].items()
    }
    whole = {**schema, "components": {"schemas": closed}}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(whole).iter_errors(value)]


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


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/classify", "/v1/search"])
def test_each_post_answers_as_described(shared: Running, path: str) -> None:
    operation = DOCUMENT["paths"][path]["post"]
    images = {"images": [{"b64": base64.b64encode(IMAGE).decode()}, {"b64": "?"}]}
    for kind in operation["requestBody"]["content"]:
        if kind == "application/json":
            check_conformance(shared.post_json(path, images), operation)
        elif kind == "multipart/form-data":
            form = b'--b\r\nContent-Disposition: form-data; name="images"; filename=""\r\n\r\n%s\r\n--b--' % IMAGE
            check_conformance(shared.post(path, form, f"{kind}; boundary=b"), operation)
        else:
            check_conformance(shared.post(path, IMAGE, kind.replace("*", "png")), operation)
    for status, (body, kind) in BROKEN.items():
        answer = shared.post(path, body, kind)
        assert str(answer.status) == status or path == "/v1/search"  # which has no index here
        check_conformance(answer, operation)


def test_embeddings_answer_as_described(shared: Running) -> None:
    operation = DOCUMENT["paths"]["/v1/embeddings"]["post"]
    text = base64.b64encode(IMAGE).decode()
    for form in ("float", "base64"):
        asked = {"model": "mean-color", "input": [text, text], "encoding_format": form}
        check_conformance(shared.post_json("/v1/embeddings", asked), operation)
    for model, given in (("other", text), ("mean-color", "no image"), ("mean-color", [])):
        check_conformance(shared.post_json("/v1/embeddings", {"model": model, "input": given}), operation)
    check_conformance(shared.post("/v1/embeddings", b"\0" * 20_000_001, "application/json"), operation)
    check_conformance(shared.post("/v1/embeddings", IMAGE), operation)


def test_infer_answers_as_described(shared: Running) -> None:
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(IMAGE).decode()]}
    for path, item in DOCUMENT["paths"].items():
        if path.endswith("/infer"):
            for name in ("mean-color", "other"):
                real = path.replace("{model}", name).replace("{version}", "v0.0.1")
                check_conformance(shared.post_json(real, {"inputs": [tensor]}), item["post"])
                check_conformance(shared.post_json(real, {"inputs": []}), item["post"])


def test_every_operation_has_a_name_and_every_answer_a_named_schema() -> None:
    """Generated clients name their functions and classes by these."""
    operations = [item[method] for item in DOCUMENT["paths"].values() for method in ("get", "post") if method in item]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) == len(ROUTES)
    for operation in operations:
        for response in operation["responses"].values():
            schema = response["content"].get("application/json", {}).get("schema")
            assert schema is None or all("$ref" in one for one in schema.get("anyOf", [schema])), operation
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_what_schemathesis_lets_pass_is_what_no_schema_can_say() -> None:
    """A generator cannot know which bytes are an image: only for these operations is a refusal by 422 expected."""
    (entry,) = tomllib.loads(Path("schemathesis.toml").read_text())["operations"]
    expected = entry["checks"]["positive_data_acceptance"]["expected-statuses"]
    assert {
        status for status in expected if status not in ("2xx", "3xx", "401", "403", "404", "409", "429", "5xx")
    } == {"422"}
    for name in entry["include-name"]:
        method, path = name.split()
        operation = DOCUMENT["paths"][path][method.lower()]
        assert {"$ref": "#/components/schemas/Error"} in operation["responses"]["422"]["content"]["application/json"][
            "schema"
        ]["anyOf"]


def test_an_error_is_an_error_and_nothing_else() -> None:
    """Only 422 may also be an answer with an error for each image."""
    for path, item in DOCUMENT["paths"].items():
        name = "OpenAIError" if path.startswith(("/v1/embeddings", "/v1/models")) else "Error"
        error = {"$ref": "#/components/schemas/" + ("ProtocolError" if path.startswith("/v2") else name)}
        for operation in (item[method] for method in ("get", "post") if method in item):
            for status, response in operation["responses"].items():
                if status not in ("200", "422") and (path, status) not in UNREADY:
                    assert response["content"]["application/json"]["schema"] == error, (path, status)


def test_an_image_without_a_direction_has_no_neighbors(bundle: Path) -> None:
    def searchable(path: Path) -> Model:
        encoder = load_model(path, 1, "fp32", None).encoder
        return Model(encoder, Index.build(encoder.embed(IMAGE).vectors, ["a.png"], encoder))

    images = [encoded(np.zeros((9, 9, 3), np.uint8)), IMAGE]
    with running(bundle, load=searchable) as server:
        body = {"images": [{"b64": base64.b64encode(image).decode()} for image in images]}
        answer = server.post_json("/v1/search", body)
        check_conformance(answer, DOCUMENT["paths"]["/v1/search"]["post"])
        black, other = answer.json["results"]
        assert black["error"]["reason"] == "no_direction"
        assert other["neighbours"][0]["id"] == "a.png"
        assert server.post("/v1/search", images[0]).status == 422


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
