"""Smaller copies of the served graph: int8 for processors with 8-bit dot products, float16 for GPUs.

Static int8 (QDQ): weights in 7 bits with a scale for each output channel, activations in 8 bits with a scale that
calibration images gave. Dynamic int8: activations get their scale at every call. Convolutions gain from static scales
alone, the matrix products of a transformer from either, so there both are made. Nothing but the bytes of the graph and
the calibration images goes in: the result is the same on every run.

Why 7 bits (``reduce_range``): x86-64 without VNNI adds two products in 16 bits, where those of 8 bits saturate. A graph
that was proven on a processor with VNNI would give other vectors there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from deploy.images.full_depth import Samples
from simclr_core.export.onnx_graph import strip

BATCH = 16  # calibration images at a time
PREPROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Tells onnxruntime not to ask for its own pre-processing. torch's exporter has folded what that would fold, and its
symbolic shape inference fails on some graphs of torch 2.14 (TypeError in _infer_Expand)."""

PRODUCTS = ("MatMul", "Gemm")


def int8_graphs(graph: bytes, pixels: Samples) -> dict[str, bytes]:
    """Int8 versions of an ONNX file by method: ``static``, and ``dynamic`` for a transformer.

    Args:
        pixels: calibration images as the graph takes them, [n, size, size, channels].
    """
    model = onnx.load_from_string(graph)
    if not is_transformer(model):
        return {"static": _static(graph, pixels, None)}
    # Apart from the products, a transformer's operators stay in float: rounding its sums and norms costs accuracy.
    return {"static": _static(graph, pixels, (*PRODUCTS, "Conv")), "dynamic": _dynamic(graph)}


def float16_graph(graph: bytes) -> bytes:
    """A version that computes in float16, and still takes the pixels as they are and gives float32."""
    model = onnx.load_from_string(graph)
    converted = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    return _finished(converted, graph)


def is_transformer(model: onnx.ModelProto) -> bool:
    """Whether most weights are in matrix products, not in convolutions."""
    sizes = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer}

    def weights(operators: Sequence[str]) -> int:
        nodes = (node for node in model.graph.node if node.op_type in operators)
        return sum(sizes.get(name, 0) for node in nodes for name in node.input)

    return weights(PRODUCTS) > weights(("Conv",))


def _static(graph: bytes, pixels: Samples, operators: Sequence[str] | None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "static.onnx"
        quantize_static(
            _prepared(graph),
            target,
            _Batches(graph, pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with signed weights, what x86-64 multiplies without widening
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        return _finished(onnx.load(target), graph)


def _dynamic(graph: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "dynamic.onnx"
        quantize_dynamic(
            _prepared(graph),
            target,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        return _finished(onnx.load(target), graph)


def _prepared(graph: bytes) -> onnx.ModelProto:
    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(model, PREPROCESSED)
    return model


def _finished(model: onnx.ModelProto, original: bytes) -> bytes:
    """Only what the graph needs: the original's metadata, the operator sets in use, no names of tools or paths."""
    source = onnx.load_from_string(original)
    strip(model)
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in source.metadata_props})
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
    def __init__(self, graph: bytes, pixels: Samples) -> None:
        name = onnx.load_from_string(graph).graph.input[0].name
        self._batches: Iterator[dict[str, Samples]] = (
            {name: pixels[start : start + BATCH]} for start in range(0, len(pixels), BATCH)
        )

    def get_next(self) -> dict[str, Samples] | None:
        return next(self._batches, None)
