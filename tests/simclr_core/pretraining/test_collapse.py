"""A collapse is reported, stops the run, or sends it back; whatever interrupts it, the result is the same."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.order import Order
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.errors import CollapseError
from simclr_core.launch import Member
from simclr_core.loss.nt_xent import nt_xent
from simclr_core.loss.objective import InBatch
from simclr_core.model.encoder import build_encoder
from simclr_core.model.projection_head import build_projection_head
from simclr_core.monitoring.history import Progress
from simclr_core.pretraining import checkpoint, pretrain, training
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.checkpoint import TrainingState
from simclr_core.pretraining.collapse import (
    CollapseAlarm,
    attempt_folder,
    collapsed_epochs,
    roll_backs,
    with_roll_backs,
)
from simclr_core.pretraining.precision import LossScaler
from simclr_core.pretraining.training import Learner, Observers
from simclr_core.schedule import Schedule
from tests.conftest import write_prepared
from tests.sentences import assert_plain
from tests.simclr_core.conftest import interrupt

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

PEAK = 0.1 * 16 / 256
ALONE = Member(0, 1, torch.device("cpu"))
HEALTHY = {"effective_rank": 9.0, "feature_std": 0.5, "effective_rank_z": 3.0, "feature_std_z": 0.3}


def record(epoch: int, **changes: float) -> dict[str, float]:
    return {"epoch": epoch, **HEALTHY, **changes}


@pytest.mark.parametrize(
    ("healthy", "expected"), [("", 0), ("+", 0), ("-", 1), ("+--", 2), ("--+", 0), ("-+---", 3), ("---", 3)]
)
def test_collapsed_epochs_are_counted_back_to_the_last_healthy_one(healthy: str, expected: int) -> None:
    history = [record(n, feature_std=0.5 if sign == "+" else 0.001) for n, sign in enumerate(healthy, 1)]
    assert collapsed_epochs(history) == expected


def test_the_alarm_waits_for_its_patience() -> None:
    alarm = CollapseAlarm(2, None)
    history = [record(1), record(2, effective_rank_z=1.0)]
    alarm.judge(TrainingState(12, {}, {}, history, []), ALONE)
    history.append(record(3, effective_rank_z=1.0))
    with pytest.raises(CollapseError, match=r"epoch 3: .*, 2 epochs in a row .*effective_rank_z 1.*Lower") as caught:
        alarm.judge(TrainingState(18, {}, {}, history, []), ALONE)
    assert caught.value.epoch == 3
    CollapseAlarm(None, None).judge(TrainingState(18, {}, {}, history, []), ALONE)  # only reported


def configure(workspace: Path, **on_collapse: object) -> None:
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["pretrain"] |= {"epochs": 4, "on_collapse": on_collapse}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")


def collapse_above(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """From the second epoch on, a learning rate above ``rate`` sets all weights to zero, so that features are alike."""
    update = training.update

    def collapsing(learner: Learner, learning_rate: float, *others: Any) -> None:
        update(learner, learning_rate, *others)
        first_epoch = learning_rate > 0.88 * PEAK  # of the four epochs' cosine
        if learning_rate > rate and not first_epoch:
            with torch.no_grad():
                for weight in learner.network.parameters():
                    weight.zero_()

    monkeypatch.setattr(training, "update", collapsing)


def published(workspace: Path) -> tuple[bytes, str, str]:
    reports = workspace / "reports"
    weights = (workspace / "models" / "pretrained" / "encoder.safetensors").read_bytes()
    return weights, (reports / "pretrain.csv").read_text(), (reports / "pretrain.json").read_text()


@pytest.mark.seconds
def test_stop_names_the_epoch_and_publishes_nothing(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(prepared, action="stop", patience=2)
    collapse_above(monkeypatch, 0.6 * PEAK)
    for _ in range(2):  # the same command again comes to the same end
        with pytest.raises(CollapseError, match=r"epoch 3: the features have collapsed, 2 epochs in a row"):
            pretrain.run(prepared)
    assert not (prepared / "models" / "pretrained").exists()


@pytest.mark.seconds
def test_a_collapse_inside_an_epoch_is_said_once_by_the_next_record_of_a_step(
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The weights are lost after step 7 of 24, and the epoch ends after step 12."""
    configure(prepared, action="report")
    path = prepared / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8")) | {"watch": {"log_every_steps": 1}}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.setenv("SIMCLR_EVENTS", str(prepared / "events"))
    collapse_above(monkeypatch, 0.6 * PEAK)
    pretrain.run(prepared)
    (said,) = (one for one in caplog.messages if "has collapsed (" in one)
    assert said.startswith("step 8: the output for the images of a batch has collapsed (effective rank 1, spread 0); ")
    assert_plain(said)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split("/")[0] for line in lines if "COLLAPSED" in line] == [f"step {n}" for n in range(8, 25)]
    events = [json.loads(line) for line in (prepared / "events").read_text(encoding="utf-8").splitlines()]
    assert [event["message"] for event in events if "collapsed_at_step" in event] == [said]


@pytest.mark.seconds
def test_roll_back_continues_from_the_last_healthy_epoch_at_a_lower_rate(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure(prepared, action="roll_back", patience=2)
    collapse_above(monkeypatch, 0.6 * PEAK)
    pretrain.run(prepared)
    rows = list(csv.DictReader((prepared / "reports" / "pretrain.csv").read_text().splitlines()))
    assert [(row["epoch"], row["learning_rate_scale"]) for row in rows] == [
        ("1", "1.0"),
        ("2", "0.5"),
        ("3", "0.5"),
        ("4", "0.5"),
    ]
    metrics = json.loads((prepared / "reports" / "pretrain.json").read_text())
    assert (metrics["collapsed"], metrics["learning_rate_scale"]) == (False, 0.5)
    schedule = Schedule(4, 6, 0, PEAK)
    assert float(rows[1]["learning_rate"]) == pytest.approx(0.5 * schedule.rate(11), abs=1e-6)
    assert "roll-back 1: continuing from epoch 1 with 0.5 of the learning rate" in caplog.text
    assert not list((prepared / ".simclr" / "runs").glob("*/"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str, str]:
    """What a run with a roll-back publishes that nothing interrupts."""
    workspace = write_prepared(tmp_path_factory.mktemp("undisturbed"))
    configure(workspace, action="roll_back", patience=2)
    with pytest.MonkeyPatch.context() as patch:
        collapse_above(patch, 0.6 * PEAK)
        pretrain.run(workspace)
    return published(workspace)


@pytest.mark.seconds
@pytest.mark.parametrize(
    "place",
    [
        pytest.param("pretrain.step:raise@15", marks=pytest.mark.slow),
        "pretrain.step:raise@19",
        pytest.param("pretrain.step:raise@25", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_with_a_roll_back_continues_to_the_same_bytes(
    prepared: Path, undisturbed: tuple[bytes, str, str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Before the roll-back, right after it (of 18 steps), and later."""
    configure(prepared, action="roll_back", patience=2)
    collapse_above(monkeypatch, 0.6 * PEAK)
    interrupt(prepared, monkeypatch, place)
    pretrain.run(prepared)
    assert published(prepared) == undisturbed


@pytest.mark.seconds
def test_an_interrupted_roll_back_continues_to_the_same_bytes(
    prepared: Path, undisturbed: tuple[bytes, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(prepared, action="roll_back", patience=2)
    collapse_above(monkeypatch, 0.6 * PEAK)
    load, seen = checkpoint.load_training, []

    def interrupted(path: Path) -> TrainingState:
        seen.append(path)
        if len(seen) == 1:
            raise KeyboardInterrupt
        return load(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_training", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain.run(prepared)
    assert seen[0].parent.name == "healthy"
    pretrain.run(prepared)
    assert published(prepared) == undisturbed


@pytest.mark.seconds
def test_the_run_stops_after_the_maximum_number_of_roll_backs(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(prepared, action="roll_back", patience=1, max_roll_backs=2)
    collapse_above(monkeypatch, 0.0)
    with pytest.raises(CollapseError, match=r"epoch 2: the features have collapsed \(effective_rank 1,"):
        pretrain.run(prepared)
    (run,) = (path for path in (prepared / ".simclr" / "runs").iterdir() if path.is_dir())
    assert roll_backs(run) == 2
    with pytest.raises(CollapseError):
        pretrain.run(prepared)
    assert roll_backs(run) == 2


@pytest.mark.seconds
def test_the_action_on_collapse_changes_no_weight_of_a_healthy_run(prepared: Path) -> None:
    weights = set()
    for action in ("report", "stop", "roll_back"):
        configure(prepared, action=action)
        pretrain.run(prepared)
        weights.add(published(prepared)[0])
    assert len(weights) == 1


def trained(rank: int, size: int, workspace: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Four epochs on this rank, with a collapse in the second at the full learning rate."""
    folder, run = workspace / "data" / "prepared", workspace / "run"
    member = Member(rank, size, torch.device("cpu"))
    card, images = read_card(folder), ShardedImages(folder / "train")
    batches = Batches(TrainingImages(images), card, Augmentation(16, blur=0.0), 16, Order(0, len(images)), member)
    torch.manual_seed(0)
    encoder = build_encoder("resnet10", 0.125, "compact")
    network = nn.Sequential(encoder, build_projection_head(encoder.feature_dim, 2, 16, 8))
    model = pretrain.distributed(network, member)
    monitor = pretrain.choose_monitor(images, card, pretrain.Preprocessing(16, 16), 48, 0, member)
    with pytest.MonkeyPatch.context() as patch, Progress(4, 384, workspace / "board", rank > 0) as progress:
        collapse_above(patch, 0.6 * PEAK)

        def train(folder: Path, learning_rate_scale: float) -> list[Any]:
            optimizer = pretrain.build_optimizer("sgd", network, 0.9, 1e-4)
            objective, scaler = InBatch(nt_xent, 0.5, torch.float32), LossScaler(torch.float32, member.device)
            return training.train(
                Learner(network, model, optimizer, objective, scaler),
                batches,
                Observers(monitor, progress, CollapseAlarm(1, run / "healthy")),
                Schedule(4, 6, 0, PEAK),
                checkpoint_every=4,
                folder=folder,
                learning_rate_scale=learning_rate_scale,
            )

        history = with_roll_backs(train, run, 0.5, 3, member)
    return [record["learning_rate_scale"] for record in history], dict(network.state_dict())


@pytest.mark.slow
def test_two_processes_roll_back_together(prepared: Path, on_ranks: Callable[..., list[Any]]) -> None:
    (scales, first), (_, second) = on_ranks(2, trained, 2, prepared)
    assert scales == [1.0, 0.5, 0.5, 0.5]
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert attempt_folder(prepared / "run", 1).is_dir()
