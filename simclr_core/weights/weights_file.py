"""Weights of others, read without running anything in the file: names and tensors, for ``weight_names`` to match.

The first bytes tell three kinds apart, whatever the file is called: safetensors; what ``torch.save`` writes of
a state dict or of a checkpoint that holds one, read with ``weights_only``; and ONNX, whose initializers get the names
that the network's parameters had. Bytes are checked before they are believed.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto
from safetensors import SafetensorError
from torch import Tensor

from simclr_core.errors import WeightsError

ONNX = b"\x08"  # the first field of its message, which is its version
ZIP, PICKLE = b"PK", b"\x80"  # what torch.save writes, and wrote before version 1.6
LARGEST_ONNX = 2**31 - 1  # of a protobuf message
LARGEST_HEADER = 100_000_000  # of safetensors: what its own reader allows
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)

# What an unpickler raises where bytes are not what they should be.
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, EOFError,
    ImportError, AssertionError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """Every tensor in the file by its name; those of nested objects are joined by dots: ``state_dict.encoder.conv1``.

    Raises:
        WeightsError: it is not such a file, it is damaged, or it holds more than weights, such as code.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: is not a file; put the file with the weights there")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((ZIP, PICKLE)):
        tensors = _read_torch(path, start)
    elif start[8:] == b"{":
        tensors = _read_safetensors(path, int.from_bytes(start[:8], "little"))
    elif start.startswith(ONNX):
        tensors = _read_onnx(path)
    else:
        raise WeightsError(
            f"{path}: is neither safetensors, nor a state dict that torch.save wrote, nor ONNX; export the weights as "
            "one of these"
        )
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors; give the file with the weights of the encoder")
    return tensors


def is_onnx(path: Path) -> bool:
    """Whether the file begins as an ONNX graph does."""
    with path.open("rb") as file:
        return file.read(9)[:1] == ONNX


def _read_safetensors(path: Path, header: int) -> dict[str, Tensor]:
    if header > min(LARGEST_HEADER, path.stat().st_size - 8):
        raise WeightsError(
            f"{path}: says that its header has {header:,} bytes, of {path.stat().st_size:,} in all; it is truncated or "
            "not what it seems, so get it again"
        )
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:  # ValueError: text that is not Unicode
        raise WeightsError(f"{path}: is damaged as safetensors ({error}); get it again") from None


def _read_torch(path: Path, start: bytes) -> dict[str, Tensor]:
    try:
        if start.startswith(ZIP):
            _refuse_compression(path)
        with warnings.catch_warnings(action="ignore"):  # of protocols that it may not read: then it raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        # torch's own words are left out: they advise to load without weights_only, which runs the code.
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in reason:
            raise WeightsError(
                f"{path}: holds more than weights, or is damaged, and was not run; save the state dict alone, as "
                "`torch.save(model.state_dict(), FILE)` or as safetensors"
            ) from None
        raise WeightsError(f"{path}: cannot be read as what torch.save writes ({reason[:200]}); get it again") from None
    if isinstance(content, Tensor):
        content = {"tensor": content}
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a state dict; save `model.state_dict()`")
    return dict(_flatten(content, set()))


def _refuse_compression(path: Path) -> None:
    """torch stores without compressing: torch did not write what unpacks to more than the file.

    Raises:
        zipfile.BadZipFile: it does, or is not a whole archive.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise zipfile.BadZipFile(f"it would unpack to {unpacked:,} bytes, more than the file has")


def _flatten(content: Mapping[Any, Any], seen: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each mapping once, since a file may let one hold itself."""
    if id(content) in seen:
        return
    seen.add(id(content))
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, seen, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
            yield f"{prefix}{name}", value.detach()


def _read_onnx(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    if size > LARGEST_ONNX:
        raise WeightsError(f"{path}: has {size:,} bytes, over the {LARGEST_ONNX:,} of ONNX; give safetensors instead")
    try:
        graph = onnx.load_model_from_string(path.read_bytes()).graph
    except DecodeError as error:
        raise WeightsError(f"{path}: is damaged as ONNX ({error}); export it again") from None
    names = _parameter_names(graph)
    tensors = {}
    for one in graph.initializer:
        if one.data_location == TensorProto.EXTERNAL or one.external_data:
            raise WeightsError(
                f"{path}: the weights {one.name!r} are in another file, which is not opened; export with the weights "
                "inside, as external_data=False does"
            )
        if one.data_type not in FLOATS:
            continue
        name, transposed = names.get(one.name, (one.name, False))
        try:
            values = torch.from_numpy(np.array(onnx.numpy_helper.to_array(one), np.float32))
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path}: the weights {one.name!r} are damaged ({error}); export it again") from None
        tensors[name] = values.T.contiguous() if transposed else values
    return tensors


def _parameter_names(graph: Any) -> dict[str, tuple[str, bool]]:
    """Initializer -> the name of the parameter that it was, and whether it is transposed.

    Exporters move BatchNorm into a convolution, whose bias then has an invented name, and transpose the weights of
    linear layers, which lose theirs; the bias that is added next still has its own.
    """
    weights, names = {one.name for one in graph.initializer}, {}
    multiplied: dict[str, str] = {}  # output of a product with weights -> those weights
    for node in graph.node:
        inputs = list(node.input)
        if node.op_type == "Conv" and len(inputs) == 3 and inputs[1].endswith(".weight"):
            names[inputs[2]] = (f"{inputs[1].removesuffix('weight')}bias", False)
        elif node.op_type == "MatMul" and len(inputs) == 2 and inputs[1] in weights:
            multiplied[node.output[0]] = inputs[1]
        elif node.op_type == "Add" and len(inputs) == 2:
            for product, bias in (inputs, inputs[::-1]):
                if product in multiplied and bias.endswith("bias"):
                    names[multiplied[product]] = (f"{bias.removesuffix('bias')}weight", True)
    return names
