"""Files of weights: each kind gives its tensors, and nothing in a hostile or damaged one is run or believed."""

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper

from simclr_core.errors import WeightsError
from simclr_core.weights.weights_file import read_weights_file

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
MORE_THAN_WEIGHTS = (  # to the end: torch's own advice is the opposite
    r": holds more than weights, or is damaged, and was not run; save the state dict alone, as "
    r"`torch\.save\(model\.state_dict\(\), FILE\)` or as safetensors$"
)


def onnx_file(path: Path, *initializers: Any, nodes: tuple[Any, ...] = ()) -> Path:
    graph = helper.make_graph(nodes, "g", [], [], initializer=initializers)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "whatever"])
def test_the_first_bytes_tell_the_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.safetensors":
        safetensors.torch.save_file(STATE, path)
    else:
        torch.save({"epoch": 3, "state_dict": STATE, "note": "x"}, path, _use_new_zipfile_serialization=name == "a.pth")
    found = {key.removeprefix("state_dict."): value for key, value in read_weights_file(path).items()}
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_parameters_of_onnx_get_their_names_back(tmp_path: Path) -> None:
    values = {
        "e.conv.weight": np.ones((2, 3, 1, 1), np.float32),
        "e.conv.weight_bias": np.array([1, 2], np.float32),
        "val_3": np.arange(6, dtype=np.float32).reshape(3, 2),
        "e.attention.in_proj_bias": np.zeros(2, np.float32),
        "shape": np.array([1], np.int64),
    }
    nodes = (
        helper.make_node("Conv", ["x", "e.conv.weight", "e.conv.weight_bias"], ["y"]),
        helper.make_node("MatMul", ["y", "val_3"], ["product"]),
        helper.make_node("Add", ["product", "e.attention.in_proj_bias"], ["z"]),
    )
    path = onnx_file(tmp_path / "m", *(numpy_helper.from_array(v, k) for k, v in values.items()), nodes=nodes)
    found = read_weights_file(path)
    assert found.keys() == {"e.conv.weight", "e.conv.bias", "e.attention.in_proj_weight", "e.attention.in_proj_bias"}
    assert torch.equal(found["e.attention.in_proj_weight"], torch.from_numpy(values["val_3"].T.copy()))
    assert found["e.conv.bias"].tolist() == [1, 2]


class Attack:
    """Unpickled, it would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, new: bool) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    torch.save({"weight": torch.ones(2), "x": Attack(mark)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}{MORE_THAN_WEIGHTS}"):
        read_weights_file(path)
    path.write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(WeightsError):
        read_weights_file(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_program_of_torchscript_is_refused_without_the_advice_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)  # type: ignore[no-untyped-call]
    with pytest.raises(WeightsError, match=r"program\.pt: ") as refused:
        read_weights_file(path)
    assert "weights_only" not in str(refused.value)


def test_every_truncation_is_refused_in_one_line(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "cut"
    safetensors.torch.save_file(STATE, whole)
    contents = [whole.read_bytes()]
    for new in (True, False):
        torch.save(STATE, whole, _use_new_zipfile_serialization=new)
        contents.append(whole.read_bytes())
    for content in contents:
        for length in {0, 1, 8, 9, 40, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:length])
            with pytest.raises(WeightsError) as refused:
                read_weights_file(path)
            assert "\n" not in str(refused.value)


def safetensors_of(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def zip_bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (safetensors_of(b"{}", length=2**40), "says that its header has 1,099,511,627,776 bytes"),
        (safetensors_of(b'{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,4]}}', data=b"1234"), "is damaged as saf"),
        (safetensors_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9]}}', data=b"1234"), "is damaged as saf"),
        (safetensors_of(b"{}"), "holds no tensors"),
        (zip_bomb(), "would unpack to 10,000,000 bytes, more than the file has"),
        (b"GIF89a", "is neither safetensors, nor a state dict that torch.save wrote, nor ONNX"),
        (b"\x08\xff\xff\xff", "is damaged as ONNX"),
    ],
)
def test_hostile_bytes_are_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_weights_file(path)


def test_onnx_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="secret"))
    with pytest.raises(WeightsError, match="'w' are in another file, which is not opened"):
        read_weights_file(onnx_file(tmp_path / "m", tensor))


def test_onnx_of_wrong_sizes_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[10**9, 10**9], raw_data=bytes(16))
    with pytest.raises(WeightsError, match="the weights 'w' are damaged"):
        read_weights_file(onnx_file(tmp_path / "m", tensor))


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.ones(2)}
    content["again"] = content
    torch.save(content, tmp_path / "loop.pth")
    assert read_weights_file(tmp_path / "loop.pth").keys() == {"w"}


@pytest.mark.parametrize(("content", "what"), [([1], "list"), (3.0, "float")])
def test_an_object_of_another_kind_is_named(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"holds a {what}, not a state dict"):
        read_weights_file(tmp_path / "w.pth")


def test_a_folder_or_nothing_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(WeightsError, match="is not a file"):
            read_weights_file(path)
