"""What the page asks for, without a browser: bytes, rows, errors that say why, and headers on every answer."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from deploy.errors import ArgumentError
from deploy.explore.app import HEADERS, read_names
from deploy.explore.columns import Coded, pack
from tests.deploy.conftest import encoded, noise
from tests.deploy.explore.collections import CLASSES, shown


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``deploy/explore/static/data.js`` reads."""
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    base = 4 + length
    assert base % 8 == 0
    columns = {}
    for one in header["columns"]:
        kind = np.dtype(one["type"])
        assert (base + one["offset"]) % kind.itemsize == 0
        columns[one["name"]] = np.frombuffer(data, kind, header["count"], base + one["offset"])
    return header, columns


@pytest.mark.parametrize(("most", "kind"), [(3, "uint8"), (300, "uint16"), (70_000, "uint32")])
def test_columns_are_read_as_they_were_written(most: int, kind: str) -> None:
    numbers = np.array([0.5, np.nan, -1], np.float32)
    codes = np.array([0, 1, most])
    header, columns = unpack(pack({"a": Coded(codes, ("ä", "b")), "b": numbers}, {"count": 3, "title": "x" * most}))
    assert header["columns"][0] == {"name": "a", "values": ["ä", "b"], "type": kind, "offset": 0}
    np.testing.assert_array_equal(columns["a"], codes)
    np.testing.assert_array_equal(columns["b"], numbers)


def test_without_images_every_column_is_empty() -> None:
    header, columns = unpack(pack({"a": Coded(np.array([], int)), "b": np.array([], np.float32)}, {"count": 0}))
    assert (header["count"], len(columns["a"]), len(columns["b"])) == (0, 0, 0)


def test_every_answer_has_the_headers_and_the_page_names_what_it_needs() -> None:
    _, app = shown(200)
    client = TestClient(app)
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    linked = {part.split('"')[0] for part in page.text.split('"/')[1:]}
    assert linked
    for path in (
        *(f"/{one}" for one in linked),
        "/points",
        "/sheets/0",
        "/details?rows=1",
        "/near?row=1",
        "/static/no",
    ):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    header, columns = unpack(client.get("/points").content)
    assert header["columns"][2]["values"] == list(CLASSES)
    assert len(columns["x"]) == 200


def test_sheets_are_kept_by_the_browser_as_long_as_this_server_runs() -> None:
    one, other = (TestClient(shown(200)[1]) for _ in range(2))
    served = one.get("/about").json()["served"]
    assert "max-age" in one.get(f"/sheets/0?served={served}").headers["cache-control"]
    assert other.get(f"/sheets/0?served={served}").headers["cache-control"] == "no-store"


def test_scripts_name_nothing_that_is_elsewhere() -> None:
    from importlib.resources import files

    for one in files("deploy.explore").joinpath("static").iterdir():
        text = one.read_text(encoding="utf-8")
        for wrong in (
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "style=",
            "onclick=",
        ):
            assert wrong not in text, (one.name, wrong)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/details?rows=", 400, "numbers of rows"),
        ("/details?rows=1,x", 400, "numbers of rows"),
        ("/details?rows=-1", 400, "numbers of rows"),
        (f"/details?rows={','.join(['1'] * 501)}", 400, "at most 500"),
        ("/near", 400, "numbers of rows"),
        ("/static/../app.py", 404, ""),
        ("/static/app.py", 404, "no such file"),
    ],
)
def test_what_cannot_be_answered_says_why(path: str, status: int, said: str) -> None:
    _, app = shown(200)
    answer = TestClient(app).get(path)
    assert answer.status_code == status
    assert said in answer.text


def test_a_picture_comes_in_base64() -> None:
    islands, app = shown(200)
    client, data = TestClient(app), encoded(noise(1))
    answer = client.post("/find", json={"picture": base64.b64encode(data).decode()})
    assert answer.json() == {"rows": [7, 3], "cosines": [0.98, 0.5]}
    assert islands.found == [data]
    for given in ({"picture": "!"}, {"picture": base64.b64encode(b"text").decode()}, [], {}):
        assert client.post("/find", json=given).status_code == 400


def test_only_what_the_caller_offers_can_be_done() -> None:
    def refuse(given: Any) -> dict[str, str]:
        if not given.get("rows"):
            raise ArgumentError("select images first")
        return {"done": f"{given['rows']}"}

    _, app = shown(200, {"refuse": refuse})
    client = TestClient(app)
    assert client.post("/actions/refuse", json={"rows": [1]}).json() == {"done": "[1]"}
    assert client.post("/actions/refuse", json={}).json() == {"error": "select images first"}
    assert client.post("/actions/label", json={}).status_code == 404
    assert client.get("/actions/refuse").status_code == 405


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("a.png\n\n b.png \r\n", ["a.png", "b.png"]),
        ('Path,label\r\n"a, b.png",cat\r\n', ["a, b.png"]),
        ("score,sha256\n0.5,00ff\n", ["00ff"]),
        ("path\n", []),
        ("rank,path\n1\n2,b.png\n", ["b.png"]),
    ],
)
def test_a_list_is_a_table_or_lines(text: str, names: list[str]) -> None:
    assert read_names(text) == names
