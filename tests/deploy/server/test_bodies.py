"""Forms, compressed bodies, and every base64: the same vectors as the bytes themselves, within the same limits."""

import asyncio
import base64
import gzip
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sklearn.datasets import load_sample_images
from starlette.datastructures import Headers

from deploy.errors import ImageError
from deploy.server import bodies
from deploy.server.bodies import GZIP_MEMBERS, from_base64, read_body
from deploy.server.limits import HeldBytes, Limits, RefusedError
from tests.deploy.conftest import encoded
from tests.deploy.server.conftest import IMAGE, Running, running
from tests.processes.programs import needs_curl

PHOTOGRAPHS = [encoded(photograph, "JPEG") for photograph in load_sample_images().images]
FORM = "multipart/form-data; boundary=b"
FILE = 'Content-Disposition: form-data; name="images"; filename="a.png"'


def url(server: Running, path: str = "/v1/embed") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def vectors_of(content: Any) -> Any:
    return np.array([result["vector"] for result in content["results"]], np.float32)


def part(content: bytes, *headers: str) -> bytes:
    return b"--b\r\n" + "\r\n".join(headers or (FILE,)).encode() + b"\r\n\r\n" + content + b"\r\n"


# Forms


def test_a_form_gives_the_vectors_of_its_files_in_order(shared: Running) -> None:
    expected = [shared.post("/v1/embed", image).vectors[0] for image in (*PHOTOGRAPHS, IMAGE)]
    files = [("images", (f"ü {number}.jpg", image)) for number, image in enumerate(PHOTOGRAPHS)]
    files.append(("other", ("bare", IMAGE)))
    answer = requests.post(url(shared), files=files, timeout=60)
    assert answer.status_code == 200
    assert np.array_equal(vectors_of(answer.json()), expected)
    single = requests.post(url(shared), files={"file": PHOTOGRAPHS[1]}, timeout=60)
    assert np.array_equal(vectors_of(single.json()), expected[1:2])
    classes = requests.post(url(shared, "/v1/classify?top=2"), files=files, timeout=60).json()["results"]
    assert [len(result["classes"]) for result in classes] == [2, 2, 2]


@needs_curl
def test_curl_sends_forms(shared: Running, tmp_path: Path) -> None:
    paths = [tmp_path / "one.jpg", tmp_path / 'a "quoted"; name.png']
    for path, content in zip(paths, (PHOTOGRAPHS[0], IMAGE), strict=True):
        path.write_bytes(content)
    quoted = str(paths[1]).replace('"', '\\"')
    command = ["curl", "--silent", "--show-error", "-F", f"a=@{paths[0]}", "-F", f'b=@"{quoted}"', url(shared)]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=120)
    expected = [shared.post("/v1/embed", image).vectors[0] for image in (PHOTOGRAPHS[0], IMAGE)]
    assert np.array_equal(vectors_of(json.loads(answer.stdout)), expected)


def test_an_image_that_holds_the_boundary_in_a_line_is_not_cut(shared: Running) -> None:
    """Only a line that begins with the boundary ends a part."""
    image = IMAGE + b"--b\r\n\r\n-b\r\n--"
    answer = shared.post("/v1/embed", part(image) + part(IMAGE) + b"--b--\r\n", FORM)
    assert np.array_equal(answer.vectors[0], answer.vectors[1])


def test_what_a_form_may_hold_besides_files(shared: Running) -> None:
    expected = shared.post("/v1/embed", IMAGE).vectors
    unnamed = ('Content-Disposition: form-data; name="x"', "Content-Type: image/png")
    not_chosen = ('Content-Disposition: form-data; name="x"; filename=""', "Content-Type: application/octet-stream")
    for body in (
        part(IMAGE) + b"--b--",
        part(IMAGE) + b"--b--\r\nan epilogue that is not read",
        part(IMAGE, *unnamed) + b"--b--\r\n",
        part(b"", *not_chosen) + part(IMAGE) + b"--b--\r\n",
    ):
        answer = shared.post("/v1/embed", body, FORM)
        assert (answer.status, np.array_equal(answer.vectors, expected)) == (200, True)
    quoted = shared.post("/v1/embed", part(IMAGE) + b"--b--\r\n", 'Multipart/Form-Data; charset=utf-8; boundary="b"')
    assert np.array_equal(quoted.vectors, expected)
    both = shared.post("/v1/embed", part(IMAGE) + part(b"no image") + b"--b--\r\n", FORM)
    assert [result.get("error", {}).get("reason") for result in both.json["results"]] == [None, "not_an_image"]


@pytest.mark.parametrize(
    ("kind", "body", "status", "reason"),
    [
        ("multipart/form-data", part(IMAGE), 400, "invalid_form"),
        ("multipart/form-data; boundary=", part(IMAGE), 400, "invalid_form"),
        ("multipart/form-data; boundary=" + "b" * 3_000, part(IMAGE), 400, "invalid_form"),
        ("multipart/form-data; boundary=c", part(IMAGE) + b"--b--", 400, "invalid_form"),
        (FORM, b"", 400, "invalid_form"),
        (FORM, part(IMAGE), 400, "invalid_form"),
        (FORM, part(IMAGE)[:-20], 400, "invalid_form"),
        (FORM, b"--b\r\nContent-Disposition", 400, "invalid_form"),
        (FORM, part(IMAGE, "no header") + b"--b--", 400, "invalid_form"),
        (FORM, part(IMAGE, *["X: y"] * 100) + b"--b--", 400, "invalid_form"),
        (FORM, part(IMAGE, "X: " + "y" * 100_000) + b"--b--", 400, "invalid_form"),
        (FORM, part(b"3", 'Content-Disposition: form-data; name="top"') + b"--b--", 400, "invalid_form"),
        (FORM, part(b"aGVs", FILE, "Content-Transfer-Encoding: base64") + b"--b--", 400, "invalid_form"),
        (FORM, part(IMAGE) + b"--b" + b" \t" * 9_000_000, 400, "invalid_form"),
        (FORM, b"--b--\r\n", 422, "number_of_images"),
        (FORM, part(IMAGE) * 65 + b"--b--", 422, "number_of_images"),
        (FORM, part(b"") * 100_000 + b"--b--", 422, "number_of_images"),
        ("multipart/mixed; boundary=b", part(IMAGE) + b"--b--", 415, "unsupported_content_type"),
        ("application/x-www-form-urlencoded", b"a=b", 415, "unsupported_content_type"),
    ],
)  # fmt: skip
def test_a_form_that_is_not_valid_is_refused(shared: Running, kind: str, body: bytes, status: int, reason: str) -> None:
    answer = shared.post("/v1/embed", body, kind)
    assert (answer.status, answer.json["error"]["reason"]) == (status, reason)
    assert shared.service.held.now == 0


def test_a_form_writes_no_file_and_no_log(shared: Running, capfd: pytest.CaptureFixture[str]) -> None:
    """Frameworks keep large files of a form on the disk; this server never writes to it."""
    opened: list[str] = []
    watched = True
    sys.addaudithook(lambda event, details: opened.append(str(details[0])) if watched and event == "open" else None)
    large = IMAGE + b"\0" * 5_000_000
    assert shared.post("/v1/embed", part(large) + b"--b--", FORM).status == 200
    shared.post("/v1/embed", part(IMAGE, "secret header") + b"--b--", FORM)
    watched = False  # a hook cannot be removed
    assert opened == []
    assert "secret" not in capfd.readouterr().err


# Content-Encoding


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "deflate", "identity", "identity, gzip", "", "members"])
def test_a_compressed_body_is_inflated(shared: Running, encoding: str) -> None:
    body = json.dumps({"images": [{"b64": base64.b64encode(image).decode()} for image in PHOTOGRAPHS]}).encode()
    expected = shared.post("/v1/embed", body, "application/json").vectors
    pack = {"deflate": zlib.compress, "identity": bytes, "": bytes}.get(encoding, gzip.compress)
    packed = b"".join(gzip.compress(body[start : start + 9_999]) for start in range(0, len(body), 9_999))
    name = encoding.replace("members", "gzip")
    sent = packed if encoding == "members" else pack(body)
    answer = shared.post("/v1/embed", sent, "application/json", Content_Encoding=name)
    assert np.array_equal(answer.vectors, expected)
    chunked = shared.post(
        "/v1/embed", iter([sent[:1], sent[1:20], sent[20:]]), "application/json", Content_Encoding=name
    )
    assert np.array_equal(chunked.vectors, expected)


def test_protocol_and_forms_may_be_compressed(shared: Running) -> None:
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(IMAGE).decode()]}
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = shared.post(
        "/v2/models/mean-color/infer", gzip.compress(body), "application/json", Content_Encoding="gzip"
    )
    expected = shared.post("/v1/embed", IMAGE).vectors
    assert np.array_equal(np.array(answer.json["outputs"][0]["data"], np.float32), expected[0])
    form = gzip.compress(part(IMAGE) + b"--b--")
    assert np.array_equal(shared.post("/v1/embed", form, FORM, Content_Encoding="gzip").vectors, expected)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "gzip;q=1", "x" * 500])
def test_other_encodings_are_refused(shared: Running, encoding: str) -> None:
    answer = shared.post("/v1/embed", gzip.compress(IMAGE), Content_Encoding=encoding)
    assert (answer.status, answer.json["error"]["reason"]) == (415, "unsupported_content_encoding")
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", IMAGE),
        ("gzip", b""),
        ("gzip", gzip.compress(IMAGE)[:-1]),
        ("gzip", gzip.compress(IMAGE)[:-8] + b"\0" * 8),  # another checksum
        ("gzip", gzip.compress(IMAGE) + b"more"),
        ("gzip", zlib.compress(IMAGE)),
        ("gzip", gzip.compress(b"") * (GZIP_MEMBERS + 1)),
        ("deflate", gzip.compress(IMAGE)),
        ("deflate", zlib.compress(IMAGE) * 2),
        ("deflate", zlib.compress(IMAGE)[:-2]),
    ],
)
def test_a_body_that_is_not_in_its_encoding_is_refused(shared: Running, encoding: str, body: bytes) -> None:
    answer = shared.post("/v1/embed", body, Content_Encoding=encoding)
    assert (answer.status, answer.json["error"]["reason"]) == (400, "invalid_content_encoding")
    assert shared.service.held.now == 0


@pytest.mark.seconds
def test_a_bomb_is_never_inflated_past_the_limit(shared: Running) -> None:
    bomb = gzip.compress(b"\0" * 200_000_000, 9)
    assert len(bomb) < 200_000
    answer = shared.post("/v1/embed", bomb, Content_Encoding="gzip")
    assert (answer.status, answer.json["error"]["reason"]) == (413, "body_too_large")
    nested = shared.post("/v1/embed", gzip.compress(bomb), Content_Encoding="gzip")
    assert nested.json["results"][0]["error"]["reason"] == "not_an_image"  # inflated once
    held = HeldBytes(10**9)
    peak = asyncio.run(read_and_measure(bomb, Limits(body_bytes=1_000_000), held))
    assert peak <= 1_000_000 + bodies.PIECE
    assert held.now == 0


async def read_and_measure(body: bytes, limits: Limits, held: HeldBytes) -> int:
    """Receive a bomb, which is refused; return the most bytes that were held."""
    peak = 0

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    with held.counter() as hold:

        def count(size: int) -> None:
            nonlocal peak
            hold(size)
            peak = max(peak, held.now)

        with pytest.raises(RefusedError) as caught:
            await read_body(receive, Headers({"content-encoding": "gzip"}), limits, count)
        assert caught.value.status == 413
    return peak


def test_a_body_that_inflates_to_nothing_counts_as_it_arrives(bundle: Path) -> None:
    """Blocks of deflate without content: megabytes that stand for no byte."""
    start = zlib.compressobj(0)
    blocks = b"\0\0\0\xff\xff" * 12_000
    empty = start.flush(zlib.Z_FULL_FLUSH) + blocks
    with running(bundle, Limits(body_bytes=100_000)) as server:
        assert server.post("/v1/embed", empty, Content_Encoding="deflate").status == 400  # it has no end
        assert server.post("/v1/embed", iter([empty, blocks]), Content_Encoding="deflate").status == 413
        assert server.metric("simclr_held_bytes") == 0


# Base64


def test_every_form_of_base64_is_read(shared: Running) -> None:
    content = PHOTOGRAPHS[0]
    plain, url_safe = base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode()
    assert "-" in url_safe
    assert "_" in url_safe
    forms = [
        plain,
        url_safe,
        url_safe.rstrip("="),
        base64.encodebytes(content).decode(),
        base64.encodebytes(content).decode().replace("\n", "\r\n"),
        f"data:image/jpeg;base64,{plain}",
        f"DATA:image/jpeg;charset=utf-8;BASE64,{url_safe}",
        f"data:;base64,{plain}",
        f"data:image/jpeg;base64,{plain}".replace("+", "%2B").replace("=", "%3D"),
    ]
    for form in forms:
        assert from_base64(form) == content
    answer = shared.post_json("/v1/embed", {"images": [{"b64": form} for form in forms]})
    assert np.array_equal(answer.vectors, np.repeat(shared.post("/v1/embed", content).vectors, len(forms), 0))


@pytest.mark.parametrize(
    "text",
    ["a", "abc!", "ab=c", "=", "aGVs\0bG8=", "ä" * 4, "data:image/png;base64,%", "data:image/png,aGVs", "data:"],
)
def test_other_text_is_an_error_of_the_image(text: str) -> None:
    error = from_base64(text)
    assert isinstance(error, ImageError)
    assert error.reason == "unsupported_input"


def test_only_what_base64_needs_is_unescaped() -> None:
    """Decoding every escape takes seconds for a body that consists of them."""
    assert isinstance(from_base64("data:;base64," + "%41" * 3_000_000), ImageError)


def test_all_padding_lengths_are_read() -> None:
    for length in range(9):
        content = bytes(range(250, 250 + 5))[: length % 5] * 2
        assert from_base64(base64.urlsafe_b64encode(content).decode().rstrip("=")) == content
