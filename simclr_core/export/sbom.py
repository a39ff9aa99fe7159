"""The bundle's bill of materials: CycloneDX 1.6, JSON, one component of type machine-learning-model with its card.

What serves the model is `required`, what made it `excluded`: its versions matter when a fault in one of them becomes
known. The document has neither a time nor a serial number, so the same bundle has the same one.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from deploy.images.preprocess import Preprocessing
from simclr_core.reports import ServedAccuracy, VariantReport

RUNTIME = ("simclr-pipeline", "numpy", "onnxruntime", "pillow")


def bill_of_materials(
    card: dict[str, Any], models: dict[str, bytes], variants: Mapping[str, VariantReport | ServedAccuracy]
) -> str:
    """sbom.cdx.json from bundle.json, the ONNX files by name, and what was measured of each variant."""
    packages = {name: value for name, value in card["producer"].items() if name != "opset"}
    libraries = [_library(name, value) for name, value in sorted(packages.items())]
    served_by = [library["bom-ref"] for library in libraries if library["scope"] == "required"]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _model(card, models, variants)},
        "components": libraries,
        "dependencies": [{"ref": card["name"], "dependsOn": served_by}],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _library(name: str, number: str) -> dict[str, Any]:
    package = f"pkg:pypi/{name}@{quote(number, safe='')}"
    scope = "required" if name in RUNTIME else "excluded"
    return {"type": "library", "bom-ref": package, "name": name, "version": number, "scope": scope, "purl": package}


def _model(
    card: dict[str, Any], models: dict[str, bytes], variants: Mapping[str, VariantReport | ServedAccuracy]
) -> dict[str, Any]:
    preprocessing = Preprocessing.from_json(card["preprocessing"])
    kind = f"{np.dtype(preprocessing.dtype).name} [batch, {preprocessing.size}, {preprocessing.size}, "
    digest = card["provenance"]["data_digest"]
    architecture = "{name}, width {width:g}, stem {stem}".format(**card["encoder"])
    parameters = {
        "approach": {"type": "self-supervised"},
        "task": "image embedding",
        "modelArchitecture": architecture,
        "datasets": [
            {
                "type": "dataset",
                "name": "training images",
                "contents": {"properties": [{"name": "digest", "value": digest}]},
            }
        ],
        "inputs": [{"format": f"{kind}{preprocessing.bands}]"}],
        "outputs": [{"format": f"float32 [batch, {card['dim']}]"}],
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": card["name"],
        "name": card["name"],
        "licenses": [{"license": {"name": card["license"]}}],
        "components": [
            {
                "type": "file",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
            }
            for name, content in models.items()
        ],
        "modelCard": {
            "modelParameters": parameters,
            "quantitativeAnalysis": {"performanceMetrics": _metrics(variants)},
            "considerations": {"useCases": ["similarity search, clustering and classification of images"]},
        },
    }


def _metrics(variants: Mapping[str, VariantReport | ServedAccuracy]) -> list[dict[str, str]]:
    return [
        {"type": measure, "value": str(value), "slice": variant}
        for variant, one in variants.items()
        for measure, value in (("knn_top1", one.knn_top1), ("classifier_top1", one.classifier_top1))
        if value is not None
    ]
