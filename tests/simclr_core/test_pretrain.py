"""Pretraining as a stage: what it leaves, that it repeats, and that no interruption changes the result."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deploy.failpoint
from deploy.artifact import identity, verify
from simclr_core import checkpoint, compilation, precision, pretrain, training
from simclr_core.augmentations import Augmentation
from simclr_core.batches import Batches
from simclr_core.encoder import build_encoder
from simclr_core.errors import (
    BatchSizeError,
    CheckpointError,
    CompileError,
    ConfigError,
    DatasetError,
    InitialError,
    NonFiniteFeaturesError,
    NonFiniteLossError,
    RunLockedError,
    UnknownEncoderError,
)
from simclr_core.history import Progress
from simclr_core.launch import Member
from simclr_core.nt_xent import nt_xent
from simclr_core.objective import InBatch
from simclr_core.precision import LossScaler
from simclr_core.projection_head import build_projection_head
from simclr_core.shards import ShardedImages, read_card
from simclr_core.stopwatch import PARTS
from tests.simclr_core.conftest import configure

STEPS = 12  # two epochs of six, as the `prepared` workspace asks


def results(workspace: Path) -> dict[str, bytes]:
    """Every byte that the stage is answerable for."""
    files = [
        path
        for folder in ("models/pretrained", "reports")
        for path in (workspace / folder).rglob("*")
        if path.is_file()
    ]
    return {path.relative_to(workspace).as_posix(): path.read_bytes() for path in sorted(files)}


def network_bytes(workspace: Path) -> tuple[bytes, bytes]:
    model = workspace / "models" / "pretrained"
    return (model / "encoder.safetensors").read_bytes(), (model / "head.safetensors").read_bytes()


def runs(workspace: Path) -> list[str]:
    """Checkpoints that an interrupted run has left."""
    return sorted(path.name for path in (workspace / ".simclr" / "runs").glob("*/step-*"))


def interrupt(workspace: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Run the stage, and make it fail at a failpoint."""
    deploy.failpoint._reached.clear()
    with monkeypatch.context() as patch:
        patch.setenv("SIMCLR_FAILPOINT", place)
        with pytest.raises(RuntimeError, match="failpoint"):
            pretrain.run(workspace)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that runs the stage undisturbed: its results, and the workspace it had."""
    return {}


@pytest.fixture
def undisturbed(prepared: Path, finished: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    """The results of an undisturbed run in a copy of ``prepared``, made once for this file."""
    if not finished:
        workspace = tmp_path / "undisturbed"
        shutil.copytree(prepared, workspace, ignore=shutil.ignore_patterns("undisturbed"))
        pretrain.run(workspace)
        finished.update(results(workspace))
    return finished


def test_leaves_a_model_reports_and_no_trace_of_the_way_there(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    pretrain.run(prepared)
    verify(prepared / "models" / "pretrained")
    model = checkpoint.load_model(prepared / "models" / "pretrained")
    metrics = json.loads((prepared / "reports" / "pretrain.json").read_text())
    assert model.card["metrics"] == metrics
    assert model.card["kind"] == "pretrained"
    assert model.card["init"] == metrics["init"] == "scratch"
    assert model.card["feature_dim"] == model.encoder.feature_dim == 64
    assert model.card["config"]["batch_size"] == 16
    assert model.card["data_digest"] == read_card(prepared / "data" / "prepared").digest
    assert (metrics["epochs"], metrics["steps"], metrics["finite"], metrics["collapsed"]) == (2, STEPS, True, False)
    assert metrics["loss_chance"] == pytest.approx(math.log(31), abs=1e-6)
    assert metrics["parameters"] == sum(p.numel() for p in model.encoder.parameters())

    rows = list(csv.DictReader((prepared / "reports" / "pretrain.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert (float(rows[0]["loss"]), float(rows[1]["loss"])) == (metrics["loss_first"], metrics["loss_last"])
    assert all(float(value) == float(value) for row in rows for value in row.values())
    assert {path.name for path in (prepared / "reports").iterdir()} == {
        "pretrain.csv",
        "pretrain.json",
        "curves.png",
        "augmentations.png",
    }
    assert runs(prepared) == []
    assert list((prepared / ".simclr" / "tensorboard").rglob("events.*"))
    timings = json.loads((prepared / ".simclr" / "timings" / "pretrain.json").read_text())
    assert timings.keys() == {"seconds", "images_per_second"} | {f"{name}_seconds" for name in PARTS}
    assert 0 < sum(timings[f"{name}_seconds"] for name in PARTS) <= timings["seconds"] + 0.01
    assert timings["images_per_second"] > 0

    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "progress", "end"]
    assert {event["stage"] for event in events} == {"pretrain"}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "images/s" in lines[0]


def test_the_same_inputs_give_the_same_bytes(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
    pretrain.run(prepared)  # also over its own results
    assert results(prepared) == undisturbed


@pytest.mark.parametrize(
    "place",
    [
        "pretrain.step:raise@6",  # after four saved steps: in mid-epoch
        "artifact.rename:raise@7",  # the model itself
        *(
            pytest.param(place, marks=pytest.mark.slow)
            for place in (
                "pretrain.step:raise@1",
                "pretrain.step:raise@12",
                "checkpoint.network:raise@2",
                "checkpoint.publish:raise@1",
                "checkpoint.publish:raise@6",  # the one of the last step
                "artifact.rename:raise@3",
                "artifact.renamed:raise@2",
                "artifact.renamed:raise@7",  # the model is there, the reports are not
                "dataset.decode:raise@40",  # in a thread that reads images
                "pretrain.reported:raise@1",
                "checkpoint.remove:raise@1",  # all is published, and no checkpoint is left to go on from
            )
        ),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    interrupt(prepared, monkeypatch, place)
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
    assert runs(prepared) == []


def test_a_disk_that_fills_in_the_background_stops_the_training_and_loses_nothing(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy.failpoint._reached.clear()
    with monkeypatch.context() as patch:
        patch.setenv("SIMCLR_FAILPOINT", "checkpoint.publish:enospc@3")
        with pytest.raises(CheckpointError, match=r"step 6 cannot be saved .No space left .*; free the disk"):
            pretrain.run(prepared)
    assert runs(prepared) == ["step-00000002", "step-00000004"]
    assert results(prepared) == {}
    pretrain.run(prepared)
    assert results(prepared) == undisturbed


def test_a_checkpoint_that_was_moved_into_another_run_is_refused(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    (run,) = (path for path in (prepared / ".simclr" / "runs").iterdir() if path.is_dir())
    configure(prepared, encoder={"name": "resnet10", "width": 0.25, "stem": "compact"})
    interrupt(prepared, monkeypatch, "pretrain.step:raise@1")  # to learn the name of the other run
    (other,) = {path.with_suffix("") for path in (prepared / ".simclr" / "runs").glob("*.lock")} - {run}
    run.rename(other)
    with pytest.raises(CheckpointError, match=r"saved by run [0-9a-f]{16}, whose configuration, data or start"):
        pretrain.run(prepared)
    assert results(prepared) == {}


def test_a_damaged_newest_checkpoint_costs_steps_but_no_bit(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    assert runs(prepared) == ["step-00000004", "step-00000006"]
    (newest,) = (prepared / ".simclr" / "runs").glob("*/step-00000006/network.safetensors")
    os.truncate(newest, 1000)
    pretrain.run(prepared)
    assert "going on from step-00000004" in caplog.text
    assert results(prepared) == undisturbed


def test_when_every_checkpoint_is_damaged_the_stage_fails(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    for path in (prepared / ".simclr" / "runs").glob("*/*/optimizer.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint verifies"):
        pretrain.run(prepared)
    assert results(prepared) == {}


@pytest.mark.parametrize("optimizer", ["lars", pytest.param("adamw", marks=pytest.mark.slow)])
def test_other_optimizers_go_on_too(prepared: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    configure(prepared, optimizer=optimizer, epochs=1, checkpoint_every_steps=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    resumed = results(prepared)
    pretrain.run(prepared)
    assert resumed == results(prepared)


def test_networks_that_draw_random_numbers_go_on_too(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout(*arguments: object, **keywords: object) -> nn.Module:
        return nn.Sequential(build_projection_head(*arguments, **keywords), nn.Dropout(0.5))  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain, "build_projection_head", with_dropout)
    configure(prepared, epochs=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    torch.rand(7)  # whatever happened to the global generator meanwhile
    pretrain.run(prepared)
    resumed = results(prepared)
    pretrain.run(prepared)
    assert resumed == results(prepared)


def test_another_configuration_does_not_resume_into_this_one(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(prepared, learning_rate=0.3)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    configure(prepared, learning_rate=0.1)
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
    assert runs(prepared) == ["step-00000004", "step-00000006"]  # the other run can still go on


def test_sigterm_finishes_the_step_saves_and_says_143(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Progress.step

    def terminated_at_the_fifth(progress: Progress, images: int) -> None:
        step(progress, images)
        if progress._done == 5 * 16:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", terminated_at_the_fifth)
        with pytest.raises(SystemExit) as stopped:
            pretrain.run(prepared)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert runs(prepared) == ["step-00000004", "step-00000005"]
    assert results(prepared) == {}
    pretrain.run(prepared)
    assert results(prepared) == undisturbed


def without_labels(workspace: Path) -> None:
    path = workspace / "data" / "prepared" / "train" / "index.npy"
    index = np.load(path)
    index["label"] = -1
    np.save(path, index)


def test_labels_never_touch_the_weights(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    without_labels(prepared)
    pretrain.run(prepared)
    for part in ("encoder", "head"):
        name = f"models/pretrained/{part}.safetensors"
        assert results(prepared)[name] == undisturbed[name]
    assert json.loads((prepared / "reports" / "pretrain.json").read_text())["knn_top1"] is None
    assert json.loads(undisturbed["reports/pretrain.json"])["knn_top1"] is not None


@pytest.mark.parametrize("changes", [{"monitor_images": 16}, {"checkpoint_every_steps": 5}])
def test_watching_and_saving_do_not_touch_the_weights(
    prepared: Path, undisturbed: dict[str, bytes], changes: dict[str, object]
) -> None:
    configure(prepared, **changes)
    pretrain.run(prepared)
    assert (
        results(prepared)["models/pretrained/encoder.safetensors"]
        == (undisturbed["models/pretrained/encoder.safetensors"])
    )


@pytest.mark.parametrize("changes", [{"seed": 1}, {"temperature": 0.4}, {"weight_decay": 0.1}])
def test_everything_else_does(prepared: Path, undisturbed: dict[str, bytes], changes: dict[str, object]) -> None:
    configure(prepared, **changes)
    pretrain.run(prepared)
    assert (
        results(prepared)["models/pretrained/encoder.safetensors"]
        != (undisturbed["models/pretrained/encoder.safetensors"])
    )


def test_it_learns(prepared: Path) -> None:
    """Without a label the loss falls well below chance, and neighbours come to share a class: chance is 25 %."""
    augmentation = {"crop_scale": [0.6, 1.0], "jitter_strength": 0.5, "blur": 0.0}
    configure(prepared, epochs=25, batch_size=48, augmentation=augmentation)
    pretrain.run(prepared)
    metrics = json.loads((prepared / "reports" / "pretrain.json").read_text())
    assert metrics["loss_last"] < metrics["loss_first"] - 0.7
    assert metrics["loss_last"] < metrics["loss_chance"] - 0.5
    assert metrics["knn_top1"] > 60


def test_bfloat16_trains_too(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    configure(prepared, precision="bfloat16")
    pretrain.run(prepared)
    loss = json.loads((prepared / "reports" / "pretrain.json").read_text())["loss_first"]
    assert loss == pytest.approx(json.loads(undisturbed["reports/pretrain.json"])["loss_first"], abs=0.2)


def metrics_of(workspace: Path) -> dict[str, Any]:
    return json.loads((workspace / "reports" / "pretrain.json").read_text())


def test_a_precision_that_fails_its_test_falls_back_and_says_so(
    prepared: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    monkeypatch.setattr(precision, "layer_fault", lambda *_: "Conv2d is off by 3 of its norm")
    configure(prepared, precision="bfloat16")
    pretrain.run(prepared)
    reason = "bfloat16 gives wrong numbers here: Conv2d is off by 3 of its norm"
    assert caplog.text.count(f"going on in float32: {reason}") == 1
    assert f"float32, because {reason}" in json.loads((tmp_path / "events").read_text().splitlines()[0])["message"]
    assert (metrics_of(prepared)["precision"], metrics_of(prepared)["precision_fallback"]) == ("float32", reason)
    assert checkpoint.load_model(prepared / "models" / "pretrained").card["metrics"]["precision_fallback"] == reason
    for part in ("encoder", "head"):  # and the test itself has left no trace
        name = f"models/pretrained/{part}.safetensors"
        assert results(prepared)[name] == undisturbed[name]


def test_an_interrupted_run_keeps_the_precision_it_began_with(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(prepared, precision="bfloat16", epochs=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    with monkeypatch.context() as patch:
        patch.setattr(precision, "layer_fault", lambda *_: "this would be wrong now")
        pretrain.run(prepared)
    resumed = results(prepared)
    assert metrics_of(prepared)["precision"] == "bfloat16"
    pretrain.run(prepared)
    assert results(prepared) == resumed


def test_float16_skips_what_overflows_counts_it_and_goes_on_after_an_interruption(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient_scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *_, **given: gradient_scaler("cpu", init_scale=2.0**20, **given)
    )
    configure(prepared, precision="float16")
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    resumed = results(prepared)
    assert metrics_of(prepared)["precision"] == "float16"
    assert 0 < metrics_of(prepared)["skipped_steps"] < STEPS
    pretrain.run(prepared)
    assert results(prepared) == resumed


def test_gradient_checkpointing_changes_no_bit(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    configure(prepared, gradient_checkpointing=True)
    pretrain.run(prepared)
    for part in ("encoder", "head"):
        name = f"models/pretrained/{part}.safetensors"
        assert results(prepared)[name] == undisturbed[name]


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_same_bytes(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(prepared, compile=True, epochs=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    resumed = results(prepared)
    assert metrics_of(prepared)["compiled"] is True
    pretrain.run(prepared)
    assert results(prepared) == resumed
    configure(prepared, compile=False)
    pretrain.run(prepared)
    eager, compiled = json.loads(resumed["reports/pretrain.json"])["loss_last"], metrics_of(prepared)["loss_last"]
    assert compiled == pytest.approx(eager, abs=1e-3)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(model: nn.Module) -> nn.Module:
        def broken(graph: object, inputs: object) -> Any:
            raise FileNotFoundError("g++ is not there")

        return torch.compile(model, backend=broken)

    monkeypatch.setattr(compilation, "torch_compile", no_compiler)


def test_without_a_compiler_the_run_is_eager_and_says_why(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_compiler(monkeypatch)
    configure(prepared, compile=True)
    pretrain.run(prepared)
    assert metrics_of(prepared)["compiled"] is False
    assert "g++ is not there" in metrics_of(prepared)["compile_fallback"]
    assert caplog.text.count("going on in eager: torch.compile failed") == 1
    assert network_bytes(prepared) == tuple(
        undisturbed[f"models/pretrained/{part}.safetensors"] for part in ("encoder", "head")
    )


def test_a_run_that_began_compiled_does_not_go_on_otherwise(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(prepared, compile=True)
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "torch_compile", lambda model: model)  # a compiler, as far as the run can tell
        interrupt(prepared, patch, "pretrain.step:raise@4")
    without_compiler(monkeypatch)
    with pytest.raises(CompileError, match=r"was compiled until it was interrupted, and torch\.compile fails now"):
        pretrain.run(prepared)
    assert results(prepared) == {}


def test_a_loss_that_is_not_finite_stops_before_the_step(prepared: Path) -> None:
    configure(prepared, learning_rate=1e30, checkpoint_every_steps=1)
    with pytest.raises(NonFiniteLossError, match=r"step 1: the loss is nan.*Images: .* and 12 more") as caught:
        pretrain.run(prepared)
    assert caught.value.step == 1
    images = ShardedImages(prepared / "data" / "prepared" / "train")
    assert len(set(caught.value.keys) & {images.key(position) for position in range(96)}) == 16
    (listed,) = (prepared / ".simclr" / "runs").glob("*/non-finite-step-1.json")
    assert f"all in {listed}" in str(caught.value)
    assert "python -m simclr_core replay 1`" in str(caught.value)
    found = json.loads(listed.read_text())
    assert (found["step"], found["loss"], found["images"]) == (1, "nan", caught.value.keys)
    assert results(prepared) == {}
    assert runs(prepared) == ["step-00000001"]  # nothing of step 1 was saved


def test_weights_that_run_away_in_the_last_step_are_not_published(prepared: Path) -> None:
    configure(prepared, learning_rate=1e30, epochs=1, batch_size=96)
    with pytest.raises(NonFiniteFeaturesError, match=r"lower pretrain\.learning_rate"):
        pretrain.run(prepared)
    assert results(prepared) == {}


def test_collapse_is_reported(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Constant(nn.Module):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.encoder(images) * 0 + 1

    def constant(*arguments: object, **keywords: object) -> nn.Module:
        encoder = build_encoder(*arguments, **keywords)  # type: ignore[arg-type]
        encoder.backbone = Constant(encoder.backbone)
        return encoder

    monkeypatch.setattr(pretrain, "build_encoder", constant)
    pretrain.run(prepared)
    assert json.loads((prepared / "reports" / "pretrain.json").read_text())["collapsed"] is True
    assert "COLLAPSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 97}, BatchSizeError, "batch_size is 97, but there are 96 training images"),
        ({"batch_size": 1}, ConfigError, "batch_size: given 1, allowed: greater than or equal to 2"),
        ({"temperature": 0}, ConfigError, "temperature: given 0, allowed: greater than 0"),
        ({"encoder": {"name": "resnet19"}}, UnknownEncoderError, "did you mean"),
    ],
)
def test_what_cannot_be_trained_is_explained(
    prepared: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    configure(prepared, **changes)
    with pytest.raises(error, match=message):
        pretrain.run(prepared)
    assert results(prepared) == {}


def test_a_workspace_without_data_and_a_truncated_shard(prepared: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(prepared / "params.yaml", empty)
    with pytest.raises(DatasetError):
        pretrain.run(empty)
    shutil.copytree(prepared / "data", empty / "data")
    with pytest.raises(InitialError, match=r"models/initial: not there; run `simclr run --select initial`"):
        pretrain.run(empty)
    for shard in (prepared / "data" / "prepared" / "train").glob("*.tar"):
        os.truncate(shard, 2000)
    with pytest.raises(DatasetError, match="ends inside image"):
        pretrain.run(prepared)
    assert results(prepared) == {}


def test_two_trainers_of_one_configuration(prepared: Path) -> None:
    config = pretrain.read_block(prepared / "params.yaml", "pretrain", pretrain.PretrainConfig)
    digest, start = read_card(prepared / "data" / "prepared").digest, identity(prepared / "models" / "initial")
    key = checkpoint.run_key(config.model_dump(), digest, start)
    with checkpoint.locked(prepared / ".simclr" / "runs" / key):
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
            pretrain.run(prepared)
        configure(prepared, seed=1)
        pretrain.run(prepared)  # another configuration is another run


def a_learner(network: nn.Sequential) -> training.Learner:
    optimizer = torch.optim.SGD(network.parameters())
    scaler = LossScaler(torch.float32, torch.device("cpu"))
    return training.Learner(network, network, optimizer, InBatch(nt_xent, 0.5, torch.float32), scaler)


def test_the_dry_batch_leaves_no_trace() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training._dry_batch(a_learner(network), torch.randn(8, 3, 2, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_dry_batch_tells_a_full_device_from_a_bug() -> None:
    class Full(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BatchSizeError, match=r"8 views per process needs more memory.*set pretrain\.micro_batch_size"):
        training._dry_batch(a_learner(nn.Sequential(Full(2, 2))), torch.randn(8, 3, 2, 2))


def a_step(rank: int, size: int, workspace: Path) -> dict[str, Any]:
    """One step of pretraining as one of ``size`` processes: loss, gradients, weights and statistics after it."""
    folder = workspace / "data" / "prepared"
    member = Member(rank, size, torch.device("cpu"))
    images = ShardedImages(folder / "train")
    batches = Batches(images, read_card(folder), Augmentation(16, blur=0.0), 16, 0, member)
    torch.manual_seed(0)
    encoder = build_encoder("resnet10", 0.125, "compact")
    network = nn.Sequential(encoder, build_projection_head(encoder.feature_dim, 2, 16, 8))
    model = pretrain._distributed(network, member)
    outcome = InBatch(nt_xent, 0.5, torch.float32).backward(model, next(batches.network_inputs(0, 1)))
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    optimizer = pretrain.build_optimizer("sgd", network, 0.9, 1e-4)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.05
    optimizer.step()
    return {"loss": outcome.loss, "gradients": gradients, "network": dict(network.state_dict())}


@pytest.mark.slow
def test_two_processes_on_halves_equal_one_on_the_whole_batch(
    prepared: Path, on_ranks: Callable[..., list[Any]]
) -> None:
    whole = a_step(0, 1, prepared)
    for half in on_ranks(2, a_step, 2, prepared):
        torch.testing.assert_close(half["loss"], whole["loss"], rtol=1e-6, atol=0)
        for kind in ("gradients", "network"):
            assert half[kind].keys() == whole[kind].keys()
            for name, expected in whole[kind].items():
                torch.testing.assert_close(half[kind][name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pretrain.step:kill@8", "checkpoint.publish:kill@3", "artifact.renamed:kill@2"])
def test_after_sigkill_the_same_command_goes_on_to_the_same_bytes(
    prepared: Path, undisturbed: dict[str, bytes], place: str
) -> None:
    command = [sys.executable, "-m", "simclr_core", "--workspace", str(prepared), "pretrain"]
    environment = {**os.environ, "SIMCLR_FAILPOINT": place, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert runs(prepared)
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
