"""Only a flat graph of standard operators that contains its weights reaches onnxruntime."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import deploy
from deploy import candidate
from deploy.bundle import Bundle
from deploy.errors import BundleError, BundleFormatError
from deploy.graph_policy import MAX_NODES, check_graph
from tests.deploy.conftest import make_bundle, make_card, make_model
from tests.processes.busy import stretched
from tests.repetitions import repeated, repetitions

MODEL = make_model(make_card()).SerializeToString()


def changed_model(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_from_string(MODEL)
    change(model)
    return model.SerializeToString()


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["features"], ["more"], then_branch=inner, else_branch=inner))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(3)


def operators_of(domain: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = domain

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "external data"),
        (external_in_an_attribute, "external data"),
        (subgraph, "subgraph"),
        (sparse, "sparse"),
        (operators_of("evil.ops"), r"operators of b'evil\.ops'"),
        (operators_of("com.microsoft"), "allowed are ONNX's own"),
        (lambda model: model.opset_import.add(domain="evil.ops", version=1), r"evil\.ops"),
        (lambda model: model.functions.add(name="f"), "functions"),
        (lambda model: model.training_info.add(), "training information"),
        (lambda model: model.ClearField("graph"), "0 graphs, not one"),
        (lambda model: model.graph.node.extend([onnx.NodeProto()] * MAX_NODES), "over"),
    ],
)
def test_contents_that_an_encoder_never_needs_are_refused(
    change: Callable[[onnx.ModelProto], None], message: str, publish_bundle: Callable[[Bundle], Path]
) -> None:
    model = changed_model(change)
    with pytest.raises(BundleFormatError, match=message):
        check_graph(model)
    with pytest.raises(BundleFormatError, match=rf"mean-color, fp32: .*{message}.*; export the bundle again"):
        deploy.load(publish_bundle(make_bundle(model=model)))


def test_plain_graphs_pass() -> None:
    check_graph(MODEL)
    check_graph(changed_model(lambda model: model.opset_import.add(domain="ai.onnx", version=20)))
    check_graph(changed_model(lambda model: setattr(model.graph.initializer[0], "data_location", TensorProto.DEFAULT)))
    check_graph(
        changed_model(lambda model: setattr(model.graph.node[0], "doc_string", "location, functions, evil.ops"))
    )


def test_a_second_occurrence_of_a_field_does_not_hide_the_first() -> None:
    # protobuf merges both, or takes the last: the first must be checked too
    with pytest.raises(BundleFormatError, match="2 graphs"):
        check_graph(MODEL + MODEL)
    with pytest.raises(BundleFormatError, match="external data"):
        check_graph(changed_model(external) + MODEL)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 graphs"),
        (b"not a model", "not a valid ONNX file|incomplete or damaged|unknown field"),
        (MODEL[:-1], "incomplete or damaged"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x08" + b"\xff" * 11, "incomplete or damaged"),
        (b"\x00\x00", "incomplete or damaged"),
        (b"\x3a\xff\xff\xff\xff\x0f", "incomplete or damaged"),
        (b"\x32\x06\x00\x00ORTM", "0 graphs"),
        (b"\xf8\x07\x01", "unknown field 127"),
        (b"\x32\x00" * 1_500_000, "over 1,000,000 fields"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_bytes_that_are_not_an_onnx_file_are_refused(content: bytes, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(BundleFormatError, match=message):
        check_graph(content)
    assert time.monotonic() - began < stretched(20)


def test_a_file_that_onnxruntime_would_read_in_its_own_format_is_read_as_onnx(
    publish_bundle: Callable[[Bundle], Path],
) -> None:
    # valid protobuf, with the mark of onnxruntime's flatbuffers in bytes 4 to 8
    polyglot = b"\x32\x06\x00\x00ORTM" + MODEL
    check_graph(polyglot)
    with pytest.raises(Exception, match=r"ORT format|ORT model|flatbuffer|verif"):
        onnxruntime.InferenceSession(polyglot, providers=["CPUExecutionProvider"])
    assert deploy.load(publish_bundle(make_bundle(model=polyglot)), threads=1).verify().images == 3


def mutate(seed: int) -> bytes:
    """Flip one bit if the seed is odd; otherwise remove, repeat or replace bytes at a few places."""
    random = np.random.default_rng(seed)
    content = bytearray(MODEL)
    if seed % 2:
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))
        return bytes(content)
    for _ in range(random.integers(1, 4)):
        start, length = int(random.integers(len(content))), int(random.integers(1, 24))
        kind = random.integers(3)
        if kind == 0:
            del content[start : start + length]
        elif kind == 1:
            content[start:start] = content[start : start + length] * int(random.integers(1, 50))
        else:
            content[start : start + length] = random.bytes(length)
    return bytes(content)


def test_500_mutated_files_are_accepted_or_refused_but_never_crash() -> None:
    refused = 0
    began = time.monotonic()
    for seed in range(500):
        try:
            check_graph(mutate(seed))
        except BundleFormatError:
            refused += 1
    assert 100 < refused < 400
    assert time.monotonic() - began < stretched(20)


@pytest.mark.slow
@repeated
def test_mutated_files_that_pass_the_policy_do_not_affect_the_calling_process(
    publish_bundle: Callable[[Bundle], Path],
) -> None:
    outcomes = set()
    for seed in range(1, repetitions(44, 120), 2):
        try:
            candidate.check(publish_bundle(make_bundle(model=mutate(seed))), memory_mb=1500, seconds=240)
            outcomes.add("passed")
        except BundleError as error:
            outcomes.add(type(error).__name__)
    assert {"passed", "BundleFormatError", "BundleInterfaceError", "GoldenMismatchError"} <= outcomes
