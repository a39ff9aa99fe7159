"""The exported configuration matches the ONNX file, and the client in the README gets the vectors of the bundle."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from deploy.artifact import verify
from deploy.bundle import MODEL, Bundle, Variant
from deploy.cli.main import main
from deploy.encoder import load
from deploy.errors import ArgumentError
from deploy.triton import export_triton
from tests.deploy.conftest import DIM, SIZE, encoded, make_bundle, make_card, make_model, noise

# The used part of model_config.proto; a repeated field is a list.
TENSOR = {"name": str, "data_type": "name", "dims": [int]}
FIELDS: dict[str, Any] = {
    "name": str,
    "platform": str,
    "max_batch_size": int,
    "input": [TENSOR],
    "output": [TENSOR],
    "instance_group": [{"count": int, "kind": "name"}],
    "optimization": {"graph": {"level": int}},
}


def parse(text: str) -> dict[str, Any]:
    """Parse protobuf's text format with the fields in FIELDS; everything else is an error."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[\w-]+|[^\s\w]', re.sub(r"(?m)^#.*$", "", text))
    stream = iter([*tokens, "end"])
    message = _message(stream, FIELDS, "end")
    assert next(stream, None) is None
    return message


def _message(stream: Iterator[str], fields: dict[str, Any], last: str) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for field in stream:
        if field == last:
            return message
        assert field in fields.keys() - message, field
        kind, token = fields[field], next(stream)
        if isinstance(kind, dict) or (isinstance(kind, list) and isinstance(kind[0], dict)):
            separator = token
        else:
            assert token == ":", f"{field} {token}"
            separator = next(stream)
        message[field] = _value(stream, kind, separator)
    raise AssertionError("ends within a message")


def _value(stream: Iterator[str], kind: Any, token: str) -> Any:
    if isinstance(kind, list):
        assert token == "["
        values = [_value(stream, kind[0], next(stream))]
        while (token := next(stream)) == ",":
            values.append(_value(stream, kind[0], next(stream)))
        assert token == "]"
        return values
    if isinstance(kind, dict):
        assert token == "{"
        return _message(stream, kind, "}")
    pattern = {str: r'".*"', int: r"-?\d+", "name": r"[A-Z][A-Z0-9_]*"}[kind]
    assert re.fullmatch(pattern, token), token
    return int(token) if kind is int else token.strip('"')


def signature(model: Path) -> list[tuple[str, int, list[str | int]]]:
    """Return name, element type and dimensions of input and output, read with the library of ONNX."""
    graph = onnx.load(model).graph
    tensors = [(value.name, value.type.tensor_type) for value in (*graph.input, *graph.output)]
    return [(name, kind.elem_type, [d.dim_param or d.dim_value for d in kind.shape.dim]) for name, kind in tensors]


def with_variant(name: str) -> Bundle:
    tolerance = {"cosine_min": 0.9999, "max_abs": 1e-3}
    card = make_card(variants={"fp32": {}, name: {"tolerance": tolerance}}, left_out={})
    whole = make_bundle(card)
    return replace(whole, variants={name: Variant(whole.model, whole.golden_vectors, tolerance)})


def test_the_configuration_matches_the_graph(bundle: Path, tmp_path: Path) -> None:
    model = export_triton(bundle, tmp_path / "models")
    assert model == tmp_path / "models" / "mean-color"
    verify(model)
    assert (model / "1" / "model.onnx").read_bytes() == (bundle / MODEL).read_bytes()
    (source, uint8, source_dims), (target, float32, target_dims) = signature(model / "1" / "model.onnx")
    assert (uint8, float32) == (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)
    assert source_dims == ["batch", SIZE, SIZE, 3]
    assert parse((model / "config.pbtxt").read_text()) == {
        "name": "mean-color",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 64,
        "input": [{"name": source, "data_type": "TYPE_UINT8", "dims": source_dims[1:]}],
        "output": [{"name": target, "data_type": "TYPE_FP32", "dims": target_dims[1:]}],
        "instance_group": [{"count": 1, "kind": "KIND_AUTO"}],
    }


@pytest.mark.parametrize(
    "fault",
    ['nam: "a"', "name: a", 'name "a"', 'input { name: "a" }', 'name: "a" name: "b"', "input [ { dims: [ a ] } ]"],
)
def test_the_reader_finds_faults(fault: str) -> None:
    with pytest.raises(AssertionError):
        parse(fault)


@pytest.mark.parametrize(("variant", "kind", "level"), [("int8", "KIND_CPU", None), ("fp16", "KIND_GPU", 1)])
def test_each_variant_runs_on_its_device(
    publish_bundle: Callable[[Bundle], Path], tmp_path: Path, variant: str, kind: str, level: int | None
) -> None:
    model = export_triton(publish_bundle(with_variant(variant)), tmp_path / "models", variant)
    config = parse((model / "config.pbtxt").read_text())
    assert config["instance_group"] == [{"count": 1, "kind": kind}]
    assert config.get("optimization") == (level and {"graph": {"level": level}})


class InferInput:
    """Like tritonclient's: refuses an array that does not match its shape and type."""

    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, array: NDArray[Any]) -> None:
        assert (list(array.shape), array.dtype.name) == (self.shape, self.datatype.lower())
        self.array = array


class Server:
    """Stands in for Triton, its client and its answer."""

    def __init__(self, model: Path) -> None:
        self.config = parse((model / "config.pbtxt").read_text())
        self.session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])

    def infer(self, name: str, inputs: list[InferInput]) -> "Server":
        assert name == self.config["name"]
        self.answer = self.session.run(None, {tensor.name: tensor.array for tensor in inputs})
        return self

    def as_numpy(self, name: str) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = self.answer[[output["name"] for output in self.config["output"]].index(name)]
        return answer


def test_the_client_in_the_readme_gets_the_vectors_of_the_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = export_triton(bundle, tmp_path / "models")
    client = SimpleNamespace(InferInput=InferInput, InferenceServerClient=lambda url: Server(model))
    monkeypatch.setitem(sys.modules, "tritonclient", SimpleNamespace(http=client))
    monkeypatch.setitem(sys.modules, "tritonclient.http", client)
    monkeypatch.chdir(tmp_path)
    Path("cat.jpg").write_bytes(encoded(noise(1, 30, 20)))
    (code,) = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["vector"].shape == (DIM,)
    assert np.abs(names["vector"] - load(bundle).embed("cat.jpg").vectors[0]).max() < 1e-6


def test_a_name_in_the_graph_cannot_become_a_setting(publish_bundle: Callable[[Bundle], Path], tmp_path: Path) -> None:
    evil = 'a" } ] model_operations { op_library_filename: "evil.so" } #'
    proto = make_model(make_card())
    proto.graph.input[0].name = proto.graph.node[0].input[0] = evil
    published = publish_bundle(make_bundle(model=proto.SerializeToString()))
    config = parse((export_triton(published, tmp_path / "models") / "config.pbtxt").read_text())
    assert config["input"][0]["name"].replace('\\"', '"') == evil


@pytest.mark.parametrize("name", ["../outside", "", ".hidden", "a/b", 'a"b', "a b", "a\n"])
def test_an_invalid_model_name_is_refused(publish_bundle: Callable[[Bundle], Path], tmp_path: Path, name: str) -> None:
    published = publish_bundle(make_bundle(make_card(name=name)))
    with pytest.raises(ArgumentError, match="is not a valid model name"):
        export_triton(published, tmp_path / "models")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_the_command_reports_errors(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export-triton", str(bundle), str(tmp_path / "models")]
    assert main([*command, "--variant", "int8"]) == 2
    assert capsys.readouterr().err == "error: variant='int8'; this bundle has fp32\n"
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'models' / 'mean-color'}\n"
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_failed_export_leaves_no_files(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_FAILPOINT", "artifact.rename:enospc")
    with pytest.raises(OSError, match="No space left"):
        export_triton(bundle, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
