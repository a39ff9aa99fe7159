"""Bundles whose encoder multiplies the pixels with a matrix: easy to repeat by hand, and it sees what it is shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from deploy.artifact import publish
from deploy.bundle import FORMAT_VERSION, Bundle, graph_promise, write_bundle
from deploy.images.preprocess import Preprocessing
from deploy.session import METADATA
from tests.conftest import draw, encode

CANDIDATE, CHAMPION = Preprocessing(10, 10), Preprocessing(10, 15)  # a wide view and a closer one


def mixing(seed: int, dim: int = 12, size: int = 10) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(size * size * 3, dim)).astype(np.float32)


def put_bundle(directory: Path, weight: NDArray[np.float32], preprocessing: Preprocessing) -> None:
    size, dim = preprocessing.size, weight.shape[1]
    card: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": "pixels",
        "dim": dim,
        "preprocessing": preprocessing.to_json(),
        "normalisation": {"mean": [0.0] * 3, "std": [1.0] * 3},
        "golden": {"tolerance": {"cosine_min": 0.9999, "max_abs": 1e-3}},
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["float", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["features"]),
        ],
        "pixels",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", dim])],
        [
            onnx.numpy_helper.from_array(np.array([-1, size * size * 3]), "shape"),
            onnx.numpy_helper.from_array(weight, "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA: graph_promise(card)})
    golden = np.zeros((1, dim), np.float32)
    bundle = Bundle(card, model.SerializeToString(), None, (encode(draw(0, 0)),), golden)
    with publish(directory, replace=True) as work:
        write_bundle(work, bundle)


def put_champion(workspace: Path, weight: NDArray[np.float32] | None, preprocessing: Preprocessing = CHAMPION) -> None:
    with publish(workspace / "models" / "champion", replace=True) as work:
        version = None if weight is None else "v0.0.3"
        (work / "champion.json").write_text(json.dumps({"version": version}))
        if weight is not None:
            put_bundle(work / "bundle", weight, preprocessing)


def damage_candidate(workspace: Path) -> None:
    flip(workspace / "models" / "bundle" / "encoder.fp32.onnx")


def damage_champion(workspace: Path) -> None:
    flip(workspace / "models" / "champion" / "bundle" / "encoder.fp32.onnx")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
