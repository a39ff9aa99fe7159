"""A bundle that crashes, hangs or uses too much memory ends only its trial process; the caller continues."""

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper

import deploy
from deploy import candidate
from deploy.bundle import Bundle
from deploy.errors import (
    ArgumentError,
    BundleError,
    BundleFormatError,
    CandidateError,
    CorruptArtifactError,
    GoldenMismatchError,
    MissingArtifactError,
)
from tests.deploy.conftest import make_bundle, make_card, make_model, trials


def model_with_load(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> bytes:
    """Return the usual graph, with its mean color multiplied by ``burden``, for which ``nodes`` compute the value 1."""
    model = make_model(make_card())
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    last = model.graph.node.pop()
    last.input[0] = "loaded"
    model.graph.node.extend([*nodes, helper.make_node("Mul", ["scaled", "burden"], ["loaded"]), last])
    return model.SerializeToString()


def memory_eater() -> bytes:
    ones = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["large"], value=ones),
        helper.make_node("ReduceMean", ["large"], ["burden"], keepdims=0),
    ]
    return model_with_load(nodes, shape=np.array([1 << 18, 1 << 14], np.int64))  # 16 GB


def time_eater() -> bytes:
    nodes = [
        helper.make_node(
            "Expand", ["scaled", "shape"], ["wide"]
        ),  # depends on the input, so that onnxruntime does not fold it into a constant
        helper.make_node("Reshape", ["wide", "square"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(200)),
        helper.make_node("ReduceMin", ["m200"], ["lowest"], keepdims=0),
        helper.make_node("Pow", ["lowest", "zero"], ["burden"]),
    ]
    shape, square = np.array([1_000_000, 3, 3], np.int64), np.array([3000, -1], np.int64)
    return model_with_load(nodes, shape=shape, square=square, zero=np.zeros((), np.float32))


@pytest.mark.seconds
def test_a_good_bundle_passes_with_the_id_of_its_encoder(bundle: Path) -> None:
    checked = candidate.check(bundle, memory_mb=1500, seconds=60)
    assert checked.id == deploy.load(bundle).id
    assert checked.fidelity.images == 3
    assert checked.fidelity.cosine_min > 0.99999


@pytest.mark.seconds
def test_the_current_version_of_a_registry_is_checked(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "registry" / "v0.0.1")
    (tmp_path / "registry" / "CURRENT").write_text("v0.0.1\n")
    assert candidate.check(tmp_path / "registry").id == deploy.load(bundle).id


@pytest.mark.seconds
def test_a_graph_that_allocates_too_much_memory_is_refused(publish_bundle: Callable[[Bundle], Path]) -> None:
    directory = publish_bundle(make_bundle(model=memory_eater()))
    before = psutil.Process().memory_info().rss
    with pytest.raises(BundleError, match=r"(?i)memory|alloc"):
        candidate.check(directory, memory_mb=1500, seconds=60)
    assert psutil.Process().memory_info().rss - before < 50e6


@pytest.mark.seconds
def test_a_graph_that_runs_too_long_is_stopped(publish_bundle: Callable[[Bundle], Path]) -> None:
    directory = publish_bundle(make_bundle(model=time_eater()))
    with pytest.raises(CandidateError, match=r"bundle: (the trial did not finish within 2 s|.*signal)"):
        candidate.check(directory, seconds=2)
    assert trials() == []


@pytest.mark.seconds
def test_the_trial_process_has_the_lowest_priority(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_FAILPOINT", "candidate.loaded:stop")
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(candidate.check, bundle, seconds=60)
        stopped: list[psutil.Process] = []
        while not stopped:
            assert not checked.done()
            stopped = [trial for trial in trials() if trial.status() == psutil.STATUS_STOPPED]
        assert stopped[0].nice() == 19
        stopped[0].resume()
        assert checked.result().id == deploy.load(bundle).id


@pytest.mark.seconds
def test_a_crash_names_the_signal(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_FAILPOINT", "candidate.loaded:kill")
    with pytest.raises(CandidateError, match=r"ended with signal 9 \(Killed\); it does not replace the current model"):
        candidate.check(bundle)
    monkeypatch.setenv("SIMCLR_FAILPOINT", "candidate.loaded:raise")
    with pytest.raises(CandidateError, match=r"exit code 1: RuntimeError: failpoint candidate\.loaded"):
        candidate.check(bundle)


@pytest.mark.seconds
def test_deploy_errors_of_the_trial_process_are_raised_again(
    bundle: Path, publish_bundle: Callable[[Bundle], Path]
) -> None:
    (bundle / "labels.json").write_text("[]")
    with pytest.raises(CorruptArtifactError, match=r"labels\.json: its SHA-256 differs"):
        candidate.check(bundle)
    with pytest.raises(MissingArtifactError, match="no such directory"):
        candidate.check(bundle / "nowhere")
    whole = make_bundle()
    with pytest.raises(GoldenMismatchError, match="allowed are"):
        candidate.check(publish_bundle(replace(whole, golden_vectors=-whole.golden_vectors)))
    with pytest.raises(BundleFormatError, match="golden images"):
        candidate.check(publish_bundle(replace(whole, golden_images=(b"no image",) * 3)))
    with pytest.raises(ArgumentError, match="variant='int8'"):
        candidate.check(publish_bundle(whole), variant="int8")


@pytest.mark.parametrize("arguments", [{"memory_mb": 0}, {"seconds": 0}, {"seconds": float("nan")}], ids=str)
def test_limits_must_be_positive(arguments: dict[str, float], bundle: Path) -> None:
    with pytest.raises(ArgumentError, match=r"give a positive number|give an integer of 1 to"):
        candidate.check(bundle, **arguments)


@pytest.mark.seconds
def test_the_trial_imports_nothing_from_the_current_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the caller does, as `python` at a prompt."""
    for name in ("deploy.py", "numpy.py", "json.py"):
        (tmp_path / name).write_text("from pathlib import Path\nPath('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    for entry in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [entry, *sys.path])
        assert candidate.check(bundle).fidelity.images == 3
    assert not (tmp_path / "executed").exists()


@pytest.mark.seconds
def test_the_trial_runs_from_any_folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    assert candidate.check(Path("bundle")).fidelity.images == 3
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
