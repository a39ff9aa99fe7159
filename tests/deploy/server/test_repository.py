"""Triton's routes: configuration, statistics, and the index of a registry as a repository of one model."""

import base64
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import CandidateError
from tests.deploy.conftest import DIM, LABELS, MIXING, embedding_of, make_bundle, make_card, make_model, noise
from tests.deploy.server.conftest import HOST, IMAGE, PREPROCESSING, Running, release, running
from tests.deploy.server.test_openapi import DOCUMENT, check_conformance

MODEL = "/v2/models/mean-color"


def body(image: bytes = IMAGE, count: int = 1) -> dict[str, Any]:
    data = [base64.b64encode(image).decode()] * count
    return {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [count], "data": data}]}


def versions(server: Running, **asked: object) -> dict[str, str]:
    answer = server.ask("POST", "/v2/repository/index", json.dumps(asked) if asked else None)
    check_conformance(answer, DOCUMENT["paths"]["/v2/repository/index"]["post"])
    return {entry.get("version", ""): entry.get("reason", entry["state"]) for entry in answer.json}


def test_the_configuration_agrees_with_the_metadata(shared: Running) -> None:
    config, metadata = (shared.ask("GET", path).json for path in (f"{MODEL}/config", MODEL))
    names = {"TYPE_STRING": "BYTES", "TYPE_FP32": "FP32"}
    for part in ("input", "output"):
        described = [
            {"name": tensor["name"], "datatype": names[tensor["data_type"]], "shape": tensor["dims"]}
            for tensor in config[part]
        ]
        assert described == metadata[f"{part}s"]
    assert (config["name"], config["max_batch_size"]) == ("mean-color", 0)
    assert config["output"][1]["dims"] == [-1, len(LABELS)]
    for path in ("/v2/models/other/config", "/v2/models/other/stats", f"{MODEL}/versions/v9.9.9/stats"):
        assert shared.ask("GET", path).status == 404


def test_statistics_count_requests_images_and_runs(bundle: Path) -> None:
    with running(bundle) as server:
        (before,) = server.ask("GET", "/v2/models/stats").json["model_stats"]
        assert (before["inference_count"], before["execution_count"], before["last_inference"]) == (0, 0, 0)
        for content, status in ((body(count=3), 200), (body(), 200), ({"inputs": []}, 400)):
            assert server.post_json(f"{MODEL}/infer", content).status == status
        (found,) = server.ask("GET", f"{MODEL}/stats").json["model_stats"]
        assert (found["inference_count"], found["execution_count"]) == (4, 4)  # one image in each run
        stages = found["inference_stats"]
        counts = {name: stages[name]["count"] for name in ("success", "fail", "compute_input", "compute_infer")}
        assert counts == {"success": 2, "fail": 1, "compute_input": 4, "compute_infer": 4}
        assert stages["queue"]["count"] == 8  # before decoding and before the model
        assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in found["batch_stats"]] == [(1, 4)]
        assert 0 < found["batch_stats"][0]["compute_infer"]["ns"] < stages["success"]["ns"]
        assert found["last_inference"] > 1_700_000_000_000


def test_the_index_lists_every_released_version(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for version in ("v0.0.9", "v0.0.10"):
        release(registry, version, make_bundle())
    refusing = threading.Event()

    def check(_: Path) -> None:
        if refusing.is_set():
            raise CandidateError("killed")

    with running(registry, check=check) as server:
        assert versions(server) == {"v0.0.9": "CURRENT names another version", "v0.0.10": "READY"}
        assert list(versions(server)) == ["v0.0.9", "v0.0.10"]
        assert versions(server, ready=True) == {"v0.0.10": "READY"}
        refusing.set()
        card = make_card(note="another")
        release(registry, "v0.0.11", make_bundle(card, make_model(card, 2 * MIXING).SerializeToString()))
        server.service.models.poll()
        assert versions(server)["v0.0.11"] == "retrying: CandidateError"
        assert versions(server, ready=True) == {"v0.0.10": "READY"}
        assert server.ask("GET", f"{MODEL}/versions/v0.0.10/config").status == 200
        for wrong, status in (("[]", 400), ('{"ready": 1}', 400), ("{", 400), (" " * 20_000 + "{}", 413)):
            answer = server.ask("POST", "/v2/repository/index", wrong)
            assert answer.status == status
            check_conformance(answer, DOCUMENT["paths"]["/v2/repository/index"]["post"])
        answer = server.ask("POST", "/v2/repository/index", b"{}", Content_Encoding="br")
        assert answer.status == 415
        check_conformance(answer, DOCUMENT["paths"]["/v2/repository/index"]["post"])


def test_a_bundle_has_one_entry_without_a_version(shared: Running) -> None:
    assert versions(shared) == {"": "READY"}


def test_triton_s_own_client_reads_everything(tmp_path: Path) -> None:
    """Where it is installed; the tests above hold what it sends and reads."""
    triton = pytest.importorskip("tritonclient.http")
    registry = tmp_path / "registry"
    for version in ("v0.0.1", "v0.0.2"):
        release(registry, version, make_bundle())
    with running(registry) as server:
        client = triton.InferenceServerClient(f"{HOST}:{server.port}")
        assert client.is_server_live()
        assert client.is_model_ready("mean-color", "v0.0.2")
        images = triton.InferInput("images", [2], "BYTES")
        images.set_data_from_numpy(np.array([IMAGE] * 2, dtype=object))
        expected = embedding_of(PREPROCESSING.apply(noise(1, 20, 30)))
        for compression in (None, "gzip"):
            answer = client.infer("mean-color", [images], request_compression_algorithm=compression)
            assert np.abs(answer.as_numpy("embedding") - expected).max() < 1e-6
        assert client.get_model_config("mean-color")["output"][0]["dims"] == [-1, DIM]
        assert [entry["state"] for entry in client.get_model_repository_index()] == ["UNAVAILABLE", "READY"]
        (statistics,) = client.get_inference_statistics("mean-color", "v0.0.2")["model_stats"]
        assert (statistics["inference_count"], statistics["inference_stats"]["success"]["count"]) == (4, 2)
        with pytest.raises(Exception, match=r"this server serves mean-color v0\.0\.2"):
            client.get_inference_statistics("mean-color", "v0.0.1")
        client.close()
