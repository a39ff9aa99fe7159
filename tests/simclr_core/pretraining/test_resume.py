"""Pretraining that was interrupted continues, and no interruption changes a byte of the result."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy.artifact import publish
from simclr_core.errors import CheckpointError
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import load_model
from simclr_core.model.projection_head import build_projection_head
from simclr_core.monitoring.history import Progress
from simclr_core.pretraining import pretrain, training
from tests.repetitions import repeated, some
from tests.simclr_core.conftest import configure, interrupt, results, runs

pytestmark = pytest.mark.usefixtures("pictures_by_digest")


OTHER_PLACES = (
    "pretrain.step:raise@1",
    "pretrain.step:raise@12",
    "checkpoint.network:raise@2",
    "checkpoint.publish:raise@1",
    "checkpoint.publish:raise@6",  # the one of the last step
    "artifact.rename:raise@3",
    "artifact.renamed:raise@2",
    "artifact.renamed:raise@7",  # the model is there, the reports are not
    "pretrain.reported:raise@1",
    "dataset.decode:raise@40",  # in a thread that reads images
    "checkpoint.remove:raise@1",  # all is published, and no checkpoint is left to continue from
)


@repeated
@pytest.mark.seconds
@pytest.mark.parametrize(
    "place",
    [
        "pretrain.step:raise@6",  # after four saved steps: in mid-epoch
        "artifact.rename:raise@7",  # the model itself
        *(pytest.param(place, marks=pytest.mark.slow) for place in some(OTHER_PLACES, 4)),
    ],
)
def test_an_interrupted_run_continues_to_the_same_bytes(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    interrupt(prepared, monkeypatch, place)
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
    assert runs(prepared) == []


@pytest.mark.seconds
def test_what_is_said_first_is_that_it_continues(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    announced = [message for message in caplog.messages if "from scratch" in message]
    assert announced[0].startswith("from scratch: 96 images")
    caplog.clear()
    pretrain.run(prepared)
    (announced,) = (message for message in caplog.messages if "from scratch" in message)
    assert announced.startswith("continuing at step 6 of 12, begun from scratch: 96 images")


@pytest.mark.seconds
def test_a_disk_that_fills_in_the_background_stops_the_training_and_loses_nothing(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SIMCLR_FAILPOINT", "checkpoint.publish:enospc@3")
        with pytest.raises(CheckpointError, match=r"step 6 cannot be saved .No space left .*; free some disk space"):
            pretrain.run(prepared)
    assert runs(prepared) == ["step-00000002", "step-00000004"]
    assert results(prepared) == {}
    pretrain.run(prepared)
    assert results(prepared) == undisturbed


@pytest.mark.seconds
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


@pytest.mark.seconds
def test_a_checkpoint_that_names_no_run_is_refused(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    (newest,) = (prepared / ".simclr" / "runs").glob("*/step-00000006")
    content = {path.name: path.read_bytes() for path in newest.iterdir() if path.name != "MANIFEST.sha256"}
    card = json.loads(content["training.json"])
    del card["run"]
    with publish(newest, replace=True) as work:
        for name, data in (content | {"training.json": json.dumps(card).encode()}).items():
            (work / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"saved by run unknown, .*remove it"):
        pretrain.run(prepared)
    assert results(prepared) == {}


@pytest.mark.seconds
def test_a_damaged_newest_checkpoint_costs_steps_but_no_bit(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    assert runs(prepared) == ["step-00000004", "step-00000006"]
    (newest,) = (prepared / ".simclr" / "runs").glob("*/step-00000006/network.safetensors")
    os.truncate(newest, 1000)
    pretrain.run(prepared)
    assert "continuing from step-00000004" in caplog.text
    assert results(prepared) == undisturbed


def test_when_every_checkpoint_is_damaged_the_stage_fails(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    for path in (prepared / ".simclr" / "runs").glob("*/*/optimizer.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint verifies"):
        pretrain.run(prepared)
    assert results(prepared) == {}


@pytest.mark.seconds
@pytest.mark.parametrize("optimizer", ["lars", pytest.param("adamw", marks=pytest.mark.slow)])
def test_other_optimizers_resume_too(prepared: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    configure(prepared, optimizer=optimizer, epochs=1, checkpoint_every_steps=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    resumed = results(prepared)
    pretrain.run(prepared)
    assert resumed == results(prepared)


@pytest.mark.seconds
def test_an_average_of_weights_continues_to_the_same_bytes_and_is_what_is_published(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(prepared, epochs=1, checkpoint_every_steps=2, average_decay=0.5, clip_gradient_norm=0.5)
    states: list[dict[str, torch.Tensor]] = []
    update = training.update

    def noted(learner: training.Learner, *others: Any) -> None:
        update(learner, *others)
        states.append({name: value.clone() for name, value in learner.network[0].state_dict().items()})

    interrupt(prepared, monkeypatch, "pretrain.step:raise")
    pretrain.run(prepared)
    resumed = results(prepared)
    monkeypatch.setattr(training, "update", noted)
    pretrain.run(prepared)
    assert resumed == results(prepared)
    published = load_model(prepared / "models" / "pretrained").encoder.state_dict()
    name = "backbone.layer1.0.conv1.weight"
    assert not torch.equal(published[name], states[-1][name])
    torch.manual_seed(0)
    start = build_encoder("resnet10", 0.125, "compact", 16).state_dict()[name]
    expected = start.lerp(states[0][name], 0.9)
    for step, state in enumerate(states[1:], start=1):
        expected = expected.lerp(state[name], max(0.5, 9 / (10 + step)))
    torch.testing.assert_close(published[name], expected)


@pytest.mark.seconds
def test_networks_that_draw_random_numbers_resume_too(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout(feature_dim: int, layers: int, width: int, dim: int) -> nn.Module:
        return nn.Sequential(build_projection_head(feature_dim, layers, width, dim), nn.Dropout(0.5))

    monkeypatch.setattr(pretrain, "build_projection_head", with_dropout)
    configure(prepared, epochs=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    torch.rand(7)  # whatever happened to the global generator meanwhile
    pretrain.run(prepared)
    resumed = results(prepared)
    pretrain.run(prepared)
    assert resumed == results(prepared)


@pytest.mark.seconds
def test_another_configuration_does_not_resume_into_this_one(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(prepared, learning_rate=0.3)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    configure(prepared, learning_rate=0.1)
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
    assert runs(prepared) == ["step-00000004", "step-00000006"]  # the other run can still continue


@pytest.mark.seconds
def test_sigterm_finishes_the_step_saves_and_says_143(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Progress.step

    def terminated_at_the_fifth(progress: Progress, images: int, *reading: Any) -> None:
        step(progress, images, *reading)
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


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pretrain.step:kill@8", "checkpoint.publish:kill@3", "artifact.renamed:kill@2"])
def test_after_sigkill_the_same_command_continues_to_the_same_bytes(
    prepared: Path, undisturbed: dict[str, bytes], place: str
) -> None:
    command = [sys.executable, "-m", "simclr_core", "--workspace", str(prepared), "pretrain"]
    environment = {**os.environ, "SIMCLR_FAILPOINT": place, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert runs(prepared)
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
