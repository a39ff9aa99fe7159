"""int8 and float16 graphs compute nearly the same, from the same bytes each time, and name nothing but the graph."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models import VisionTransformer

from deploy.encoder import compare, l2_normalize
from deploy.graph_policy import check_graph
from simclr_core.export.onnx_graph import ServedEncoder, export_graph
from simclr_core.export.quantize import float16_graph, int8_graphs, is_transformer
from simclr_core.model.encoder import build_encoder
from tests.conftest import draw

SIDE = 16
METADATA = {"simclr_pipeline": "{}"}


def pictures(count: int, first: int = 0) -> NDArray[np.uint8]:
    return np.stack([np.asarray(draw(seed % 4, seed, SIDE)) for seed in range(first, first + count)])


def exported(encoder: nn.Module) -> bytes:
    return export_graph(ServedEncoder(encoder.eval(), (0.4,) * 3, (0.3,) * 3), SIDE, 20, METADATA)


@pytest.fixture(scope="module")
def network() -> bytes:
    torch.manual_seed(0)
    encoder = build_encoder("resnet10", 0.25, "compact").train()
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.randn(16, 3, SIDE, SIDE))
    return exported(encoder)


@pytest.fixture(scope="module")
def transformer() -> bytes:
    torch.manual_seed(0)
    encoder = VisionTransformer(SIDE, 4, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128)
    encoder.heads = nn.Identity()
    return exported(encoder)


def embeddings(graph: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # as in deploy.session
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return l2_normalize(session.run(None, {"images": pixels})[0])


def cosine_min(graph: bytes, exact: bytes, count: int = 20) -> float:
    pixels = pictures(count, first=1000)
    return compare(embeddings(graph, pixels), embeddings(exact, pixels)).cosine_min


def test_static_int8_of_a_convolutional_network(network: bytes) -> None:
    graphs = int8_graphs(network, pictures(64))
    assert list(graphs) == ["static"]
    assert 0.99 < cosine_min(graphs["static"], network) < 1
    assert len(graphs["static"]) < 0.32 * len(network)  # a small one: names and scales count
    tensors = onnx.load_from_string(graphs["static"]).graph.initializer
    weights = [tensor for tensor in tensors if len(tensor.dims) == 4 and tensor.dims[0] > 1]
    assert len(weights) == 12
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}


def test_two_products_of_8_and_7_bits_fit_into_16(network: bytes) -> None:
    """So that no processor saturates; on one with VNNI nothing else would show it."""
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(int8_graphs(network, pictures(64))["static"]).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    largest = max(int(np.abs(one.astype(int)).max()) for one in weights)
    assert len(weights) > 5
    assert 32 < largest <= 64
    assert 2 * 255 * largest <= 32767


@pytest.mark.seconds
def test_a_transformer_is_also_made_with_dynamic_scales(transformer: bytes) -> None:
    assert is_transformer(onnx.load_from_string(transformer))
    graphs = int8_graphs(transformer, pictures(64))
    assert sorted(graphs) == ["dynamic", "static"]
    for graph in graphs.values():
        assert cosine_min(graph, transformer) > 0.99
        assert len(graph) < 0.5 * len(transformer)


def test_float16_has_the_inputs_and_outputs_of_float32(network: bytes, transformer: bytes) -> None:
    for exact in (network, transformer):
        half = float16_graph(exact)
        assert cosine_min(half, exact) > 0.9999
        assert len(half) < 0.6 * len(exact)
        assert {
            tensor.data_type for tensor in onnx.load_from_string(half).graph.initializer if len(tensor.dims) > 1
        } == {onnx.TensorProto.FLOAT16}


@pytest.mark.seconds
def test_graphs_keep_the_metadata_and_pass_the_loaders_policy(network: bytes, transformer: bytes) -> None:
    pixels = pictures(32)
    for graph in (
        *int8_graphs(network, pixels).values(),
        *int8_graphs(transformer, pixels).values(),
        float16_graph(network),
    ):
        check_graph(graph)
        model = onnx.load_from_string(graph)
        assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
        assert [entry.domain for entry in model.opset_import] == [""]
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
        for secret in (sys.prefix, str(Path(__file__).parents[3]), os.environ.get("TMPDIR", "/tmp")):
            assert secret.encode() not in graph


@pytest.mark.seconds
def test_calibration_images_set_the_scales(network: bytes) -> None:
    dark = (pictures(32) // 8).astype(np.uint8)
    wrong, right = (int8_graphs(network, pixels)["static"] for pixels in (dark, pictures(32)))
    assert cosine_min(wrong, network) < cosine_min(right, network)


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(network: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(network)
    np.save(tmp_path / "pixels.npy", pictures(40))
    code = (
        "import sys, numpy as np; from pathlib import Path; from simclr_core.export.quantize import *;"
        "folder = Path(sys.argv[1]); graph = (folder / 'in.onnx').read_bytes();"
        "(folder / 'int8').write_bytes(int8_graphs(graph, np.load(folder / 'pixels.npy'))['static']);"
        "(folder / 'fp16').write_bytes(float16_graph(graph))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment, cwd=Path(__file__).parents[3])
    assert (tmp_path / "int8").read_bytes() == int8_graphs(network, pictures(40))["static"]
    assert (tmp_path / "fp16").read_bytes() == float16_graph(network)


def test_nothing_is_printed_and_logging_stays_as_it_was(network: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    int8_graphs(network, pictures(8))
    assert capfd.readouterr() == ("", "")
