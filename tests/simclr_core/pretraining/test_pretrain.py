"""Pretraining as a stage: what it leaves, that it repeats, what changes it, and what it refuses."""

import csv
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy.artifact import identity, verify
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.order import Order
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.errors import (
    BatchSizeError,
    ConfigError,
    DatasetError,
    InitialError,
    NonFiniteFeaturesError,
    NonFiniteLossError,
    RunLockedError,
)
from simclr_core.launch import Member
from simclr_core.loss.nt_xent import nt_xent
from simclr_core.loss.objective import InBatch
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import load_model
from simclr_core.model.projection_head import build_projection_head
from simclr_core.pretraining import checkpoint, pretrain, training
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.precision import LossScaler
from simclr_core.pretraining.unfinished import run_key
from simclr_core.stopwatch import PARTS
from tests.simclr_core.conftest import STEPS, configure, interrupt, results, runs, weights

by_digest = pytest.mark.usefixtures("pictures_by_digest")


@pytest.mark.seconds
def test_pretraining_leaves_a_model_and_reports_and_no_temporary_files(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    pretrain.run(prepared)
    verify(prepared / "models" / "pretrained")
    model = load_model(prepared / "models" / "pretrained")
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


@pytest.mark.seconds
def test_the_same_inputs_give_the_same_bytes(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
    pretrain.run(prepared)  # also over its own results
    assert results(prepared) == undisturbed


def without_labels(workspace: Path) -> None:
    path = workspace / "data" / "prepared" / "train" / "index.npy"
    index = np.load(path)
    index["label"] = -1
    np.save(path, index)


@pytest.mark.seconds
@by_digest
def test_labels_never_touch_the_weights(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    without_labels(prepared)
    pretrain.run(prepared)
    assert weights(results(prepared)) == weights(undisturbed)
    assert json.loads((prepared / "reports" / "pretrain.json").read_text())["knn_top1"] is None
    assert json.loads(undisturbed["reports/pretrain.json"])["knn_top1"] is not None


@pytest.mark.seconds
@by_digest
@pytest.mark.parametrize(
    "changes", [{"monitor_images": 16}, pytest.param({"checkpoint_every_steps": 5}, marks=pytest.mark.slow)]
)
def test_watching_and_saving_do_not_touch_the_weights(
    prepared: Path, undisturbed: dict[str, bytes], changes: dict[str, object]
) -> None:
    configure(prepared, **changes)
    pretrain.run(prepared)
    assert (
        results(prepared)["models/pretrained/encoder.safetensors"]
        == (undisturbed["models/pretrained/encoder.safetensors"])
    )


@pytest.mark.seconds
@by_digest
def test_the_features_are_looked_at_every_second_epoch_also_after_an_interruption(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> list[dict[str, str]]:
        return list(csv.DictReader((prepared / "reports" / "pretrain.csv").read_text().splitlines()))

    configure(prepared, monitor_every=2)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    pretrain.run(prepared)
    assert weights(results(prepared)) == weights(undisturbed)
    (row,), epochs = rows(), list(csv.DictReader(undisturbed["reports/pretrain.csv"].decode().splitlines()))
    assert float(row["loss"]) == pytest.approx(sum(float(one["loss"]) for one in epochs) / 2, abs=1e-6)
    assert {**row, "loss": "", "gradient_norm": ""} == {**epochs[1], "loss": "", "gradient_norm": ""}
    configure(prepared, epochs=3)
    pretrain.run(prepared)
    assert [one["epoch"] for one in rows()] == ["2", "3"]


@pytest.mark.seconds
@by_digest
@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        *(pytest.param(one, marks=pytest.mark.slow) for one in ({"temperature": 0.4}, {"weight_decay": 0.1})),
    ],
)
def test_every_other_parameter_changes_the_weights(
    prepared: Path, undisturbed: dict[str, bytes], changes: dict[str, object]
) -> None:
    configure(prepared, **changes)
    pretrain.run(prepared)
    assert (
        results(prepared)["models/pretrained/encoder.safetensors"]
        != (undisturbed["models/pretrained/encoder.safetensors"])
    )


@pytest.mark.seconds
@by_digest
def test_pretraining_learns_without_labels(prepared: Path) -> None:
    """Without a label the loss falls well below chance, and neighbors come to share a class: chance is 25 %."""
    augmentation = {"crop_scale": [0.6, 1.0], "jitter_strength": 0.5, "blur": 0.0}
    configure(prepared, epochs=25, batch_size=48, augmentation=augmentation)
    pretrain.run(prepared)
    metrics = json.loads((prepared / "reports" / "pretrain.json").read_text())
    assert metrics["loss_last"] < metrics["loss_first"] - 0.7
    assert metrics["loss_last"] < metrics["loss_chance"] - 0.5
    assert metrics["knn_top1"] > 60


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


def test_weights_that_diverge_in_the_last_step_are_not_published(prepared: Path) -> None:
    configure(prepared, learning_rate=1e30, epochs=1, batch_size=96)
    with pytest.raises(NonFiniteFeaturesError, match=r"lower pretrain\.learning_rate"):
        pretrain.run(prepared)
    assert results(prepared) == {}


@pytest.mark.seconds
@by_digest
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
        ({"encoder": {"name": "resnet19"}}, ConfigError, "did you mean resnet18"),
    ],
)
def test_a_setup_that_cannot_be_trained_is_refused_with_the_reason(
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
    with pytest.raises(InitialError, match=r"models/initial: does not exist; run `simclr run --select initial`"):
        pretrain.run(empty)
    for shard in (prepared / "data" / "prepared" / "train").glob("*.tar"):
        os.truncate(shard, 2000)
    with pytest.raises(DatasetError, match="ends inside image"):
        pretrain.run(prepared)
    assert results(prepared) == {}


@pytest.mark.seconds
@by_digest
def test_two_trainers_of_one_configuration_exclude_each_other(prepared: Path) -> None:
    config = pretrain.read_block(prepared / "params.yaml", "pretrain", pretrain.PretrainConfig)
    digest, start = read_card(prepared / "data" / "prepared").digest, identity(prepared / "models" / "initial")
    key = run_key(config.model_dump(), digest, start)
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


def test_the_dry_batch_distinguishes_a_full_device_from_a_bug() -> None:
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
    pixels, order = TrainingImages(images), Order(0, len(images))
    batches = Batches(pixels, read_card(folder), Augmentation(16, blur=0.0), 16, order, member)
    torch.manual_seed(0)
    encoder = build_encoder("resnet10", 0.125, "compact")
    network = nn.Sequential(encoder, build_projection_head(encoder.feature_dim, 2, 16, 8))
    model = pretrain.distributed(network, member)
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
