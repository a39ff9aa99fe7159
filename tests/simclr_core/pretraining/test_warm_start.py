"""Pretraining that continues from a champion: its weights, its own schedule, all images, and no bit lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from simclr_core.data.shards import ShardedImages
from simclr_core.errors import InitialError
from simclr_core.model.model_directory import load_model
from simclr_core.pretraining import checkpoint, initial, pretrain
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.training import Learner
from simclr_core.schedule import Schedule
from tests.conftest import write_prepared
from tests.simclr_core.conftest import configure, crown, interrupt, metrics_of, put_in_group, results

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

WARM = {"init": "champion", "warm_start": {"epochs": 1, "learning_rate_share": 0.25, "warmup_epochs": 0.5}}
STEPS = 6  # of the one epoch


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which something was learned from scratch and released as v0.0.1; it is not to be changed."""
    workspace = write_prepared(tmp_path_factory.mktemp("champion"))
    configure(workspace, epochs=12)
    pretrain.run(workspace)
    crown(workspace)
    return workspace


@pytest.fixture
def workspace(champion: Path, prepared: Path) -> Path:
    """The same images, to be trained on from that champion."""
    (prepared / "models" / "champion").symlink_to(champion / "models" / "champion")
    configure(prepared, **WARM)
    initial.run(prepared)
    return prepared


def spied(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the stage; what the loop was given."""
    seen: dict[str, Any] = {"positions": {}}
    loop, positions = pretrain.train, Batches.positions

    def noted(learner: Learner, batches: Any, observers: Any, schedule: Any, *rest: Any, **keywords: Any) -> Any:
        seen["network"] = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
        seen["optimizer"] = checkpoint.optimizer_tensors(learner.optimizer)
        seen["schedule"] = schedule
        return loop(learner, batches, observers, schedule, *rest, **keywords)

    def noted_positions(batches: Batches, step: int) -> Any:
        seen["positions"][step] = positions(batches, step)
        return seen["positions"][step]

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train", noted)
        patch.setattr(Batches, "positions", noted_positions)
        pretrain.run(workspace)
    return seen


@pytest.mark.seconds
def test_a_warm_start_has_the_weights_and_statistics_of_the_champion_and_a_fresh_optimizer(
    workspace: Path, champion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(workspace, monkeypatch)
    released = load_model(champion / "models" / "pretrained")
    expected = {f"0.{name}": tensor for name, tensor in released.encoder.state_dict().items()}
    expected |= {f"1.{name}": tensor for name, tensor in released.head.items()}
    assert seen["network"].keys() == expected.keys()
    assert all(torch.equal(seen["network"][name], tensor) for name, tensor in expected.items())
    assert seen["optimizer"] == {}
    model = load_model(workspace / "models" / "pretrained")
    assert model.card["init"] == metrics_of(workspace)["init"] == "champion v0.0.1"
    trained = {f"0.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    assert not torch.equal(trained["0.backbone.conv1.weight"], expected["0.backbone.conv1.weight"])


@pytest.mark.seconds
def test_a_warm_start_has_its_own_schedule(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = 0.1 * 16 / 256
    assert spied(workspace, monkeypatch)["schedule"] == Schedule(1, STEPS, 0.5, 0.25 * peak)
    assert (metrics_of(workspace)["epochs"], metrics_of(workspace)["steps"]) == (1, STEPS)
    configure(workspace, warm_start={})  # the defaults: the same number of epochs, half the rate
    assert spied(workspace, monkeypatch)["schedule"] == Schedule(2, STEPS, 1.0, 0.5 * peak)


@pytest.mark.slow
def test_without_a_champion_the_warm_start_changes_nothing(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain.run(prepared)
    weights = results(prepared)["models/pretrained/encoder.safetensors"]
    configure(prepared, **WARM)
    crown(prepared, None)
    initial.run(prepared)
    assert spied(prepared, monkeypatch)["schedule"] == Schedule(2, STEPS, 0, 0.1 * 16 / 256)
    assert results(prepared)["models/pretrained/encoder.safetensors"] == weights
    assert metrics_of(prepared)["init"] == "scratch"


@pytest.mark.seconds
def test_an_epoch_replays_every_image_of_the_old_batch_and_shows_every_new_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half of the images came in one raw batch, the second in another; see ``write_prepared``."""
    positions = spied(workspace, monkeypatch)["positions"]
    shown = np.concatenate([positions[step] for step in range(STEPS)])
    assert sorted(shown[shown < 48]) == list(range(48))
    assert sorted(shown[shown >= 48]) == list(range(48, 96))
    shards = np.asarray(ShardedImages(workspace / "data" / "prepared" / "train")._index["shard"])
    assert not set(shards[:48]) & set(shards[48:])
    mixed = [0 < np.sum(positions[step] < 48) < 16 for step in range(STEPS)]
    assert all(mixed)


@pytest.mark.seconds
def test_a_warm_start_begins_at_the_loss_of_the_champion(workspace: Path, champion: Path) -> None:
    pretrain.run(workspace)
    first, scratch = metrics_of(workspace)["loss_first"], metrics_of(champion)
    configure(workspace, **WARM | {"warm_start": {"epochs": 1, "learning_rate_share": 1e-6, "warmup_epochs": 0.5}})
    pretrain.run(workspace)  # nearly without learning: the champion's loss on the same batches
    assert abs(first - metrics_of(workspace)["loss_first"]) < 0.05
    assert scratch["loss_first"] - scratch["loss_last"] > 0.1, "a champion that learned nothing shows nothing"
    assert first < scratch["loss_first"] - 0.2


@pytest.fixture(scope="module")
def finished() -> dict[str, bytes]:
    return {}


@pytest.fixture
def undisturbed(workspace: Path, finished: dict[str, bytes]) -> dict[str, bytes]:
    """The results of an undisturbed warm start, made once for this file."""
    if not finished:
        pretrain.run(workspace)
        finished.update(results(workspace))
    return finished


@pytest.mark.seconds
@pytest.mark.parametrize("place", ["pretrain.step:raise@1", "pretrain.step:raise@4", "checkpoint.publish:raise@3"])
def test_an_interrupted_warm_start_continues_to_the_same_bytes(
    workspace: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    interrupt(workspace, monkeypatch, place)
    pretrain.run(workspace)
    assert results(workspace) == undisturbed


@pytest.mark.seconds
def test_an_interrupted_start_from_scratch_does_not_continue_from_a_champion(
    workspace: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only models/initial differs: the configuration asks for a champion in both."""
    champion = workspace / "models" / "champion"
    released = champion.readlink()
    champion.unlink()
    crown(workspace, None)
    initial.run(workspace)
    interrupt(workspace, monkeypatch, "pretrain.step:raise@4")
    (champion / "champion.json").unlink()
    (champion / "MANIFEST.sha256").unlink()
    champion.rmdir()
    champion.symlink_to(released)
    initial.run(workspace)
    pretrain.run(workspace)
    assert "continuing from step" not in caplog.text
    assert results(workspace) == undisturbed


def test_parameters_that_no_longer_fit_the_start(workspace: Path) -> None:
    configure(workspace, projection_head={"layers": 2, "width": 16, "dim": 4})
    with pytest.raises(InitialError, match=r"pretrain\.projection_head\.dim is 4, the champion's 8"):
        pretrain.run(workspace)
    configure(workspace, init="scratch")
    with pytest.raises(InitialError, match=r"pretrain\.init is scratch; run `simclr run --select initial`"):
        pretrain.run(workspace)
    assert results(workspace) == {}


@pytest.mark.slow
def test_after_sigkill_a_warm_start_continues_to_the_same_bytes(workspace: Path, undisturbed: dict[str, bytes]) -> None:
    command = [sys.executable, "-m", "simclr_core", "--workspace", str(workspace), "pretrain"]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "SIMCLR_FAILPOINT": "pretrain.step:kill@4", "OMP_NUM_THREADS": threads}
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    pretrain.run(workspace)
    assert results(workspace) == undisturbed


def a_warm_run(rank: int, workspace: Path) -> dict[str, torch.Tensor]:
    """The stage as one of two processes of a group: the network that this process ends with."""
    networks = []
    loop = pretrain.train

    def noted(learner: Learner, *rest: Any, **keywords: Any) -> Any:
        networks.append(learner.network)
        return loop(learner, *rest, **keywords)

    pretrain.train = noted
    put_in_group(pytest.MonkeyPatch(), rank, 2)  # for good: the process ends with the test
    pretrain.run(workspace)
    return dict(networks[0].state_dict())


@pytest.mark.slow
def test_two_processes_begin_with_the_champion_and_agree_to_the_end(
    workspace: Path, undisturbed: dict[str, bytes], on_ranks: Callable[..., list[Any]]
) -> None:
    first, second = on_ranks(2, a_warm_run, workspace)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = safetensors.torch.load(undisturbed["models/pretrained/encoder.safetensors"])
    for name, tensor in alone.items():
        torch.testing.assert_close(first[f"0.backbone.{name}"], tensor, rtol=1e-3, atol=1e-4, msg=name)
