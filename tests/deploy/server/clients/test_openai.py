"""/v1/embeddings and /v1/models: OpenAI's shape of requests, answers and errors."""

import base64
import gzip
import json
from typing import Any

import numpy as np
import pytest

from tests.deploy.conftest import DIM, encoded, noise
from tests.deploy.server.conftest import IMAGE, Answer, Running, running

TOKEN = "0123456789abcdef-token"
TEXT = base64.b64encode(IMAGE).decode()
OTHER = encoded(noise(2, 30, 20), "JPEG")
URI = f"data:image/jpeg;base64,{base64.b64encode(OTHER).decode()}"


def ask(server: Running, **fields: Any) -> Answer:
    return server.post_json("/v1/embeddings", {"model": "mean-color", "input": TEXT} | fields)


def test_embeddings_are_those_of_v1_embed_in_both_formats(shared: Running) -> None:
    expected = np.stack([shared.post("/v1/embed", image).vectors[0] for image in (IMAGE, OTHER)])
    for form in ("float", "base64"):
        answer = ask(shared, input=[TEXT, URI], encoding_format=form, user="a", dimensions=DIM)
        content = answer.json
        rows = [entry.pop("embedding") for entry in content["data"]]
        if form == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        assert np.array_equal(np.array(rows, np.float32), expected)
        assert content == {
            "object": "list",
            "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
            "model": "mean-color",
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }
        assert answer.headers["X-Model-Id"] == shared.service.models.current.id
    single = ask(shared, encoding_format=None, dimensions=None, user=None).json
    assert len(single["data"]) == 1
    assert type(single["data"][0]["embedding"][0]) is float
    packed = gzip.compress(json.dumps({"model": "mean-color", "input": URI}).encode())
    assert shared.post("/v1/embeddings", packed, "application/json", Content_Encoding="gzip").status == 200


def test_models_are_listed_and_found(shared: Running) -> None:
    about = {"id": "mean-color", "object": "model", "created": 0, "owned_by": "simclr-deploy"}
    assert shared.ask("GET", "/v1/models").json == {"object": "list", "data": [about]}
    assert shared.ask("GET", "/v1/models/mean-color").json == about
    assert ask(shared, model=shared.service.models.current.id).status == 200
    missing = shared.ask("GET", "/v1/models/clip")
    assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("fields", "status", "code", "said"),
    [
        ({"model": "clip"}, 404, "model_not_found", "mean-color"),
        ({"model": 3}, 400, "invalid_request", "mean-color"),
        ({"model": None}, 400, "invalid_request", "mean-color"),
        ({"input": None}, 400, "invalid_request", "input"),
        ({"input": [1, 2, 3]}, 400, "invalid_request", "no tokens"),
        ({"input": {"b64": TEXT}}, 400, "invalid_request", "input"),
        ({"input": []}, 400, "invalid_request", "0 images"),
        ({"input": [TEXT] * 65}, 400, "invalid_request", "65 images"),
        ({"input": "https://example.org/cat.jpg"}, 400, "unsupported_input", "input[0]"),
        ({"input": [TEXT, "hell"]}, 400, "not_an_image", "input[1]"),
        ({"input": [TEXT, ""]}, 400, "empty_file", "input[1]"),
        ({"encoding_format": "int8"}, 400, "invalid_request", "float, base64"),
        ({"dimensions": DIM - 1}, 400, "invalid_request", str(DIM)),
        ({"dimensions": True}, 400, "invalid_request", str(DIM)),
        ({"user": 3}, 400, "invalid_request", "user"),
        ({"normalize": False}, 400, "invalid_request", "normalize"),
    ],
)
def test_errors_have_openai_s_shape(shared: Running, fields: dict[str, Any], status: int, code: str, said: str) -> None:
    answer = ask(shared, **fields)
    error = answer.json["error"]
    assert (answer.status, error["type"], error["param"], error["code"]) == (
        status,
        "invalid_request_error",
        None,
        code,
    )
    assert said in error["message"]


def test_every_refusal_has_openai_s_shape(bundle: Any) -> None:
    with running(bundle, token=TOKEN) as server:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for status, answer in (
            (401, server.post("/v1/embeddings", b"{}", "application/json")),
            (401, server.ask("GET", "/v1/models")),
            (400, server.post("/v1/embeddings", b"{", "application/json", **headers)),
            (415, server.post("/v1/embeddings", IMAGE, **headers)),
            (415, server.post("/v1/embeddings", b"{}", "application/json", Content_Encoding="br", **headers)),
            (405, server.ask("GET", "/v1/embeddings", **headers)),
            (413, server.post("/v1/embeddings", b"\0" * 20_000_001, "application/json", **headers)),
        ):
            assert answer.status == status
            assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_openai_s_own_client_reads_everything(shared: Running) -> None:
    """Where it is installed; the tests above hold what it sends and reads."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{shared.port}/v1", api_key="none", max_retries=0)
    expected = shared.post("/v1/embed", OTHER).vectors[0]
    for options in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model="mean-color", input=[URI, TEXT], **options)
        assert np.array_equal(np.array(answer.data[0].embedding, np.float32), expected)
        assert answer.usage.total_tokens == 2
    assert [model.id for model in client.models.list()] == ["mean-color"]
    assert client.models.retrieve("mean-color").object == "model"
    with pytest.raises(openai.NotFoundError, match="clip"):
        client.embeddings.create(model="clip", input=URI)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="mean-color", input="hell")
    assert (caught.value.code, caught.value.type) == ("not_an_image", "invalid_request_error")
