"""The bill of materials is CycloneDX 1.6, names every package and file, and is the same for the same bundle."""

import hashlib
import json
from typing import Any

import pytest

from simclr_core.export.sbom import bill_of_materials
from simclr_core.reports import ServedAccuracy

CARD: dict[str, Any] = {
    "name": "flowers",
    "license": "CC-BY-4.0",
    "dim": 64,
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "compact"},
    "preprocessing": {"size": 16, "resize": 18},
    "provenance": {"data_digest": "ab" * 32},
    "producer": {
        "simclr-pipeline": "0.1.0",
        "torch": "2.14.1+cu130",
        "numpy": "2.4.6",
        "onnxruntime": "1.31.1",
        "pillow": "13.0.0",
        "opset": 20,
    },
}
VARIANTS = {"fp32": ServedAccuracy(90.0, None), "int8": ServedAccuracy(89.9, None)}
MODELS = {"encoder.fp32.onnx": b"weights", "encoder.int8.onnx": b"w"}


@pytest.fixture
def document() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bill_of_materials(CARD, MODELS, VARIANTS))
    return content


def test_the_header_and_the_model(document: dict[str, Any]) -> None:
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    model = document["metadata"]["component"]
    assert (model["type"], model["name"], model["bom-ref"]) == ("machine-learning-model", "flowers", "flowers")
    assert model["licenses"] == [{"license": {"name": "CC-BY-4.0"}}]
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["approach"] == {"type": "self-supervised"}
    assert parameters["inputs"] == [{"format": "uint8 [batch, 16, 16, 3]"}]
    assert parameters["outputs"] == [{"format": "float32 [batch, 64]"}]
    assert parameters["datasets"][0]["contents"]["properties"][0]["value"] == "ab" * 32
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "knn_top1", "value": "90.0", "slice": "fp32"},
        {"type": "knn_top1", "value": "89.9", "slice": "int8"},
    ]


def test_every_file_has_its_hash(document: dict[str, Any]) -> None:
    files = document["metadata"]["component"]["components"]
    assert {file["name"]: file["hashes"] for file in files} == {
        name: [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}] for name, content in MODELS.items()
    }


def test_packages_that_serve_are_required_and_those_that_trained_are_not(document: dict[str, Any]) -> None:
    scopes = {one["name"]: one["scope"] for one in document["components"]}
    assert {name for name, scope in scopes.items() if scope == "required"} == {
        "simclr-pipeline",
        "numpy",
        "onnxruntime",
        "pillow",
    }
    assert scopes["torch"] == "excluded"
    references = [one["bom-ref"] for one in document["components"]]
    assert len(references) == len(set(references)) == 5
    assert "pkg:pypi/torch@2.14.1%2Bcu130" in references
    served_by = document["dependencies"][0]["dependsOn"]
    assert document["dependencies"][0]["ref"] == "flowers"
    assert set(served_by) == {one["purl"] for one in document["components"] if one["scope"] == "required"}


def test_the_document_has_no_time_and_no_random_part() -> None:
    text = bill_of_materials(CARD, MODELS, VARIANTS)
    assert text == bill_of_materials(CARD, MODELS, VARIANTS)
    assert "serialNumber" not in text
    assert "timestamp" not in text
