"""Check the bytes of an ONNX file against a list of allowed contents, before onnxruntime reads them.

An ONNX file is a protobuf message (onnx.proto of ONNX 1.23; the encoding is protobuf.dev/programming-guides/encoding).
``check_graph`` walks through it without building objects and accepts a flat graph of standard operators that contains
its weights. It refuses everything that an encoder never needs, whether an attack is known or not: external data
(onnxruntime opens the files that it names), custom operators, functions, subgraphs, training information, and unlisted
fields.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from deploy.errors import BundleFormatError

DOMAINS = (b"", b"ai.onnx")
MAX_FIELDS = 1_000_000  # a ViT-L has 60,000; a million take about a second
MAX_NODES = 20_000

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Kind(NamedTuple):
    """The field numbers of a message of onnx.proto: text, other values, messages, and fields that are refused."""

    text: tuple[int, ...]
    values: tuple[int, ...] = ()
    messages: Mapping[int, str] = MappingProxyType({})
    refused: Mapping[int, str] = MappingProxyType({})


_EXTERNAL = "external data; export it with its weights inside"
_SUBGRAPH = "a subgraph"
_SPARSE = "sparse tensors"
_DEVICE = "a device configuration"
SCHEMA = {
    "model": Kind(
        (2, 3, 4, 6),
        (1, 5),
        {7: "graph", 8: "operator set", 14: "property"},
        {20: "training information", 25: "functions", 26: _DEVICE},
    ),
    "operator set": Kind((1,), (2,)),
    "property": Kind((1, 2)),
    "graph": Kind(
        (2, 10), (14,), {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 16: "property"}, {15: _SPARSE}
    ),
    "node": Kind((1, 2, 3, 4, 6, 7, 8), (), {5: "attribute", 9: "property"}, {10: _DEVICE}),
    "attribute": Kind(
        (1, 13),
        (2, 3, 4, 7, 8, 9, 20),
        {5: "tensor", 10: "tensor"},
        {6: _SUBGRAPH, 11: _SUBGRAPH, 14: "types", 15: "types", 21: "functions", 22: _SPARSE, 23: _SPARSE},
    ),
    "tensor": Kind(
        (8, 12), (1, 2, 4, 5, 6, 7, 9, 10, 11), {16: "property"}, {3: "segments", 13: _EXTERNAL, 14: _EXTERNAL}
    ),
    "value": Kind((1, 3), (), {2: "type", 4: "property"}),
    "type": Kind((6,), (), {1: "tensor type"}),
    "tensor type": Kind((), (1,), {2: "shape"}),
    "shape": Kind((), (), {1: "dimension"}),
    "dimension": Kind((2, 3), (1,)),
}


def check_graph(model: bytes) -> None:
    """Check that an ONNX file holds only a flat graph of standard operators with its weights.

    Raises:
        BundleFormatError: the file is incomplete, is not ONNX, or holds something else; the message names it.
    """
    data = memoryview(model)
    counts = {"field": 0, "node": 0, "graph": 0}
    pending = [("model", 0, len(data))]
    while pending:
        name, start, end = pending.pop()
        if name in counts:
            counts[name] += 1
        for field, wire, value_start, value_end in _fields(data, start, end):
            counts["field"] += 1
            if counts["field"] > MAX_FIELDS or counts["node"] > MAX_NODES:
                raise BundleFormatError(f"the model has over {MAX_FIELDS:,} fields or {MAX_NODES:,} nodes")
            content = data[value_start:value_end]
            if _is_message(name, field, wire, content):
                pending.append((SCHEMA[name].messages[field], value_start, value_end))
    if counts["graph"] != 1:
        raise BundleFormatError(f"the model holds {counts['graph']} graphs, not one")


def _is_message(name: str, field: int, wire: int, content: memoryview) -> bool:
    """Check one field of the message ``name``; return whether it is a message to walk through in turn."""
    kind = SCHEMA[name]
    if name == "tensor" and (field, wire) == (14, VARINT) and not any(content):
        return False  # data_location DEFAULT, written explicitly
    if field in kind.refused:
        raise BundleFormatError(f"the model has {kind.refused[field]}")
    if (name, field) in (("node", 7), ("operator set", 1)) and bytes(content) not in DOMAINS:
        raise BundleFormatError(f"the model needs operators of {bytes(content[:60])!r}; allowed are ONNX's own")
    if field in kind.messages and wire == BYTES:
        return True
    if field in kind.text and wire == BYTES:
        try:
            str(content, "utf-8")  # onnxruntime does not check names, and Python later fails to decode them
        except UnicodeDecodeError:
            raise BundleFormatError(
                f"the model is not a valid ONNX file: field {field} of a {name} is not text"
            ) from None
    elif field not in kind.values:
        raise BundleFormatError(f"the model has an unknown field {field} of type {wire} in a {name}")
    return False


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, and start and end of the value, of each field of the message at [start, end)."""
    while start < end:
        tag, start = _varint(data, start, end)
        field, wire = tag >> 3, tag & 7
        begin = start
        if wire == VARINT:
            _, start = _varint(data, start, end)
        elif wire in (FIXED32, FIXED64):
            start += 4 if wire == FIXED32 else 8
        elif wire == BYTES:
            length, begin = _varint(data, start, end)
            start = begin + length
        else:
            raise BundleFormatError(f"the model is not a valid ONNX file: wire type {wire} at byte {begin}")
        if start > end or not field:
            raise BundleFormatError(f"the model is an incomplete or damaged ONNX file: bad field at byte {begin}")
        yield field, wire, begin, start


def _varint(data: memoryview, start: int, end: int) -> tuple[int, int]:
    value = 0
    for position in range(start, min(end, start + 10)):  # 64 bits, seven in a byte
        value |= (data[position] & 127) << 7 * (position - start)
        if data[position] < 128:
            return value, position + 1
    raise BundleFormatError(f"the model is an incomplete or damaged ONNX file: bad number at byte {start}")
