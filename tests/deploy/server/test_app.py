"""The routes: correct answers, an error for each unreadable image, and the right status for each fault."""

import base64
import io
import json
import logging
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deploy.search.index import Index
from deploy.server.metrics import process_samples
from deploy.server.models import load_model
from tests.deploy.conftest import DIM, LABELS, embedding_of, encoded, features_of, make_bundle, noise
from tests.deploy.server.conftest import IMAGE, PREPROCESSING, Gate, Running, read_all, running

TOKEN = "0123456789abcdef-token"


def b64(*images: bytes) -> dict[str, object]:
    return {"images": [{"b64": base64.b64encode(image).decode()} for image in images]}


def test_bytes_json_and_npy_give_the_expected_vectors(shared: Running) -> None:
    pixels = noise(1, 20, 30)
    expected = embedding_of(PREPROCESSING.apply(pixels))
    for kind in ("image/png", "image/jpeg", "application/octet-stream", "Image/PNG; q=1"):
        assert np.abs(shared.post("/v1/embed", IMAGE, kind).vectors[0] - expected).max() < 1e-6
    assert np.abs(shared.post_json("/v1/embed", b64(IMAGE, IMAGE)).vectors - expected).max() < 1e-6
    npy = shared.post("/v1/embed", IMAGE, Accept="application/x-npy")
    assert npy.headers["Content-Type"] == "application/x-npy"
    loaded = np.load(io.BytesIO(npy.body))
    assert (loaded.dtype, loaded.shape) == (np.float32, (1, DIM))
    assert np.abs(loaded[0] - expected).max() < 1e-6
    raw = shared.post("/v1/embed?normalize=false", IMAGE).vectors[0]
    assert np.abs(raw - features_of(PREPROCESSING.apply(pixels))).max() < 1e-6


def test_one_bad_image_does_not_affect_the_others(shared: Running) -> None:
    content = b64(IMAGE, b"", IMAGE[:-60], IMAGE)
    content["images"][2:2] = [{"b64": "not base64!"}]  # type: ignore[index]
    answer = shared.post_json("/v1/embed", content)
    assert answer.status == 200
    results = answer.json["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3, 4]
    reasons = [result.get("error", {}).get("reason") for result in results]
    assert reasons == [None, "empty_file", "unsupported_input", "truncated", None]
    assert results[0]["vector"] == results[4]["vector"]
    npy = shared.ask(
        "POST", "/v1/embed", json.dumps(content), Content_Type="application/json", Accept="application/x-npy"
    )
    assert npy.headers["X-Image-Errors"] == "1:empty_file,2:unsupported_input,3:truncated"
    assert np.isnan(np.load(io.BytesIO(npy.body))).any(axis=1).tolist() == [False, True, True, True, False]


def test_a_request_without_a_usable_image_gets_422(shared: Running) -> None:
    for answer in (shared.post("/v1/embed", b"hello"), shared.post_json("/v1/classify", b64(b"hello", b"you"))):
        assert answer.status == 422
        assert answer.json["results"][0]["error"]["reason"] == "not_an_image"


def test_classes_come_with_probabilities_best_first(shared: Running) -> None:
    green = encoded(np.full((9, 9, 3), (5, 250, 5), np.uint8))
    (result,) = shared.post("/v1/classify?top=2", green).json["results"]
    assert result["classes"][0]["label"] == "green"
    assert len(result["classes"]) == 2
    everything = shared.post("/v1/classify", green).json["results"][0]["classes"]
    assert {entry["label"] for entry in everything} == set(LABELS)
    assert abs(sum(entry["probability"] for entry in everything) - 1) < 1e-5


def test_classify_without_labels_gets_404(publish_bundle: object) -> None:
    with running(publish_bundle(make_bundle(labels=False))) as server:  # type: ignore[operator]
        answer = server.post("/v1/classify", IMAGE)
        assert (answer.status, answer.json["error"]["reason"]) == (404, "no_labels")


def test_search_needs_an_index_of_this_encoder(shared: Running, bundle: Path) -> None:
    answer = shared.post("/v1/search", IMAGE)
    assert (answer.status, answer.json["error"]["reason"]) == (404, "no_index")
    assert "--index" in answer.json["error"]["message"]

    colors = np.eye(3, dtype=np.uint8) * 255
    pictures = [encoded(np.full((9, 9, 3), color, np.uint8)) for color in colors]
    vectors = load_model(bundle, 1, "fp32", None).encoder.embed(pictures).vectors
    mine, other = bundle.parent / "mine", bundle.parent / "other"
    Index.build(vectors, LABELS, shared.service.models.current.id).save(mine)
    Index.build(vectors, LABELS, "0" * 64).save(other)
    with running(bundle, load=lambda path: load_model(path, 1, "fp32", mine)) as server:
        assert server.ask("GET", "/v1/model").json["index"] == {"rows": 3}
        both = server.post_json("/v1/search?k=2", b64(pictures[1], b"broken", pictures[2])).json["results"]
        assert both[1]["error"]["reason"] == "not_an_image"
        for result, label in ((both[0], "green"), (both[2], "blue")):
            assert result["neighbours"][0]["id"] == label
            assert len(result["neighbours"]) == 2
            assert abs(result["neighbours"][0]["score"] - 1) < 1e-5
        assert server.post("/v1/search", b"broken").status == 422
    with running(bundle, load=lambda path: load_model(path, 1, "fp32", other)) as server:
        answer = server.post("/v1/search", IMAGE)
        assert (answer.status, answer.json["error"]["reason"]) == (409, "index_of_another_encoder")


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "reason"),
    [
        ("/v1/embed", "text/plain", IMAGE, 415, "unsupported_content_type"),
        ("/v1/embed", "application/json", b"{", 400, "invalid_json"),
        ("/v1/embed", "application/json", b"\xff\xfe{}", 400, "invalid_json"),
        ("/v1/embed", "application/json", b"[" * 100_000, 400, "invalid_json"),
        ("/v1/embed", "application/json", b"[]", 400, "invalid_request"),
        ("/v1/embed", "application/json", b'{"images": [' + b"{}, " * 1_000_000 + b"{}]}", 400, "invalid_request"),
        ("/v1/embed", "application/json", b'{"a": 1' + b', "a": 1' * 1_000_000 + b"}", 400, "invalid_request"),
        ("/v1/embed", "application/json", b'{"images": [' + b"[]," * 600_000 + b"[]]}", 400, "invalid_request"),
        ("/v1/embed", "application/json", b'{"images": [' + b"1," * 5_000_000 + b"1]}", 400, "invalid_request"),
        ("/v1/embed", "application/json", b"{}", 400, "invalid_request"),
        ("/v1/embed", "application/json", b'{"images": [{"url": "http://127.0.0.1/a.png"}]}', 400, "invalid_request"),
        ("/v1/embed", "application/json", b'{"images": [{"b64": 3}]}', 400, "invalid_request"),
        ("/v1/embed", "application/json", b'{"images": []}', 422, "number_of_images"),
        ("/v1/embed", "application/json", json.dumps({"images": [{"b64": ""}] * 65}).encode(), 422, "number_of_images"),
        ("/v1/embed?normalize=yes", "image/png", IMAGE, 400, "invalid_parameter"),
        ("/v1/classify?top=0", "image/png", IMAGE, 400, "invalid_parameter"),
        ("/v1/classify?top=9999999999999999999999", "image/png", IMAGE, 400, "invalid_parameter"),
        ("/v1/classify?top=%C2%B2", "image/png", IMAGE, 400, "invalid_parameter"),
        ("/v1/nothing", "image/png", IMAGE, 404, "no_such_route"),
        ("/v1/model", "image/png", IMAGE, 405, "method_not_allowed"),
    ],
)
def test_each_fault_has_its_status_and_a_message(
    shared: Running, path: str, kind: str, body: bytes, status: int, reason: str
) -> None:
    answer = shared.post(path, body, kind)
    assert (answer.status, answer.json["error"]["reason"]) == (status, reason)
    assert answer.json["error"]["message"]
    assert shared.post("/v1/embed", IMAGE).status == 200


def test_every_answer_names_the_model_and_allows_no_other_origin(shared: Running) -> None:
    identity = shared.ask("GET", "/v1/model").json["id"]
    for answer in (
        shared.post("/v1/embed", IMAGE, Origin="https://example.org"),
        shared.post("/v1/embed", b"broken"),
        shared.ask("OPTIONS", "/v1/embed", Origin="https://example.org", Access_Control_Request_Method="POST"),
        shared.ask("GET", "/nothing"),
    ):
        assert answer.headers["X-Model-Id"] == identity
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert shared.ask("OPTIONS", "/v1/embed").status == 405


def test_a_token_is_required_except_for_health_metrics_and_static_pages(bundle: Path) -> None:
    with running(bundle, token=TOKEN) as server:
        for authorization in (
            {},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": TOKEN},
            {"Authorization": ""},
            {"Authorization": f"Basic {TOKEN}"},
        ):
            for method, path in (("POST", "/v1/embed"), ("GET", "/v1/model"), ("GET", "/v2"), ("GET", "/none")):
                answer = server.ask(method, path, IMAGE, Content_Type="image/png", **authorization)
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/", "/openapi.json"):
            assert server.ask("GET", path).status == 200
        assert server.post("/v1/embed", IMAGE, Authorization=f"Bearer {TOKEN}").status == 200
        assert server.metric('simclr_requests_total{route="other",status="4xx"}') == 20


def test_the_name_of_the_scheme_has_no_case_and_the_token_has(bundle: Path) -> None:
    with running(bundle, token=TOKEN) as server:
        for scheme in ("Bearer ", "bearer ", "BEARER ", "bEARER   "):
            assert server.post("/v1/embed", IMAGE, Authorization=scheme + TOKEN).status == 200
        for wrong in (TOKEN.upper(), f"{TOKEN} {TOKEN}", f"{TOKEN}, bearer {TOKEN}", "\xff" * len(TOKEN)):
            assert server.post("/v1/embed", IMAGE, Authorization=f"bearer {wrong}").status == 401
        field = f"Authorization: Bearer {TOKEN}\r\n"
        twice = f"GET /v1/model HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{field}{field}\r\n"
        with server.connect(twice.encode()) as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 401")


def test_another_host_name_is_refused(bundle: Path) -> None:
    """Such as the name of a web page that resolves to this machine."""
    with running(bundle, hosts=("127.0.0.1", "localhost", "[::1]")) as server:
        assert server.post("/v1/embed", IMAGE, Host="evil.example:80").status == 421
        assert server.post("/v1/embed", IMAGE, Host="localhost:1").status == 200
        assert server.post("/v1/embed", IMAGE, Host="[::1]").status == 200


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://127.0.0.1/v1/model HTTP/1.1\r\nHost: 127.0.0.1", 200),
        (b"GET HTTP://LocalHost:80/v1/model?a=b HTTP/1.1\r\nHost: other", 200),
        (b"HEAD http://[::1] HTTP/1.1\r\nHost: other", 200),
        (b"GET http://other/v1/model HTTP/1.1\r\nHost: 127.0.0.1", 421),
        (b"GET /v1/http://127.0.0.1/v1/model HTTP/1.1\r\nHost: 127.0.0.1", 404),
        (b"GET /v2/health/ready HTTP/1.0", 200),  # as load balancers ask; a browser always names a host
        (b"GET /v2/health/ready HTTP/1.1\r\nHost:", 421),
        (b"GET /v1/model HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade\r\nUpgrade: websocket", 200),
    ],
)
def test_the_host_is_that_of_the_target_or_of_the_header(
    bundle: Path, head: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with running(bundle, hosts=("127.0.0.1", "localhost", "[::1]")) as server, server.connect() as connection:
        connection.sendall(head + b"\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 %d " % status)
    assert caplog.records == []


@pytest.mark.seconds
def test_each_answer_belongs_to_its_image(bundle: Path) -> None:
    pixels = [noise(seed, 9 + seed % 7, 11) for seed in range(60)]
    expected = [embedding_of(PREPROCESSING.apply(image)) for image in pixels]
    images = [encoded(image) for image in pixels]
    for max_batch in (1, 8):
        with running(bundle, max_batch=max_batch) as server, ThreadPoolExecutor(12) as pool:
            singles = list(pool.map(lambda image, server=server: server.post("/v1/embed", image).vectors[0], images))
            assert np.abs(np.array(singles) - expected).max() < 1e-5
            groups = [images[start : start + 7] for start in range(0, 56, 7)]
            many = list(
                pool.map(lambda group, server=server: server.post_json("/v1/embed", b64(*group)).vectors, groups)
            )
            assert np.abs(np.concatenate(many) - expected[:56]).max() < 1e-5


def test_requests_are_counted_and_logged_without_their_contents(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(bundle) as server:
        server.post("/v1/embed", IMAGE)
        server.post("/v1/embed", b"secret-content")
        server.ask("GET", "/secret-name")
        assert server.metric('simclr_requests_total{route="/v1/embed",status="2xx"}') == 1
        assert server.metric('simclr_requests_total{route="/v1/embed",status="4xx"}') == 1
        assert server.metric('simclr_requests_total{route="other",status="4xx"}') == 1
        assert server.metric('simclr_images_total{outcome="not_an_image"}') == 1
        assert server.metric("simclr_infer_seconds_count") == 1
        assert server.metric("simclr_decode_seconds_count") == 1
        assert server.metric("simclr_queue_seconds_count") == 3  # two for a decoder, one for the model
        assert server.metric("simclr_ready") == 1
    written = capfd.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line.get("status") for line in lines][:3] == [200, 422, 404]
    assert set(lines[0]) == {"time", "event", "route", "status", "ms", "images", "model"}
    assert "secret" not in written


def test_an_internal_error_is_a_500_and_the_next_request_is_answered(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model: list[Gate] = []

    def load(path: Path) -> Gate:
        model.append(Gate(path))
        return model[0]

    def fail(_: object) -> object:
        raise RuntimeError("the native library failed")

    with running(bundle, load=load) as server, caplog.at_level(logging.ERROR):
        model[0].opened.set()
        good = model[0].features
        model[0].features = fail  # type: ignore[method-assign,assignment]
        answer = server.post("/v1/embed", IMAGE)
        assert (answer.status, answer.json["error"]["reason"]) == (500, "internal")
        assert "native" not in answer.body.decode()
        model[0].features = good  # type: ignore[method-assign]
        assert server.post("/v1/embed", IMAGE).status == 200
        assert server.metric('simclr_requests_total{route="/v1/embed",status="5xx"}') == 1
    assert "the native library failed" in caplog.text


@pytest.mark.parametrize("path", [b"?v1/model", b"/v1/embed/", b"/v1/model/", b"//v1/model"])
def test_no_answer_redirects_to_the_host_that_a_request_names(bundle: Path, path: bytes) -> None:
    with running(bundle) as server:
        request = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        with server.connect(request) as connection:
            status, _, rest = read_all(connection).partition(b"\r\n")
    assert status.split()[1] in (b"400", b"404")
    assert b"location:" not in rest.lower()


def test_the_process_is_measured_under_the_names_of_the_client_library(shared: Running) -> None:
    """See the process collector of prometheus_client."""
    asked = (
        "cpu_seconds_total",
        "resident_memory_bytes",
        "virtual_memory_bytes",
        "start_time_seconds",
        "open_fds",
        "max_fds",
    )
    found = {name: shared.metric(f"process_{name}") for name in asked}
    own = Path("/proc/self")
    assert found["max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert abs(found["open_fds"] - len(list((own / "fd").iterdir()))) < 20
    resident = int((own / "statm").read_text().split()[1]) * resource.getpagesize()
    assert 0.5 < found["resident_memory_bytes"] / resident < 2
    assert found["virtual_memory_bytes"] > found["resident_memory_bytes"]
    assert time.process_time() - 30 < found["cpu_seconds_total"] <= time.process_time() + 0.1
    assert time.time() - 24 * 3600 < found["start_time_seconds"] < time.time()
    before = found["cpu_seconds_total"]
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert shared.metric("process_cpu_seconds_total") > before


def test_without_proc_the_process_is_not_measured(tmp_path: Path) -> None:
    assert process_samples(tmp_path) == []
