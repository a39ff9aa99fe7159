"""A step again, with a fault injected: the report names the place where it began and the image that brought it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simclr_core.data.shards import ShardedImages
from simclr_core.errors import NonFiniteLossError, ReplayError
from simclr_core.loss.objective import Outcome
from simclr_core.pretraining import pretrain, replay, training
from simclr_core.pretraining.batches import Batches
from tests.simclr_core.conftest import configure, interrupt, put_groups, put_in_group

by_digest = pytest.mark.usefixtures("pictures_by_digest")


def checkpoints(workspace: Path) -> dict[str, bytes]:
    files = (path for path in (workspace / ".simclr" / "runs").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def report(workspace: Path, step: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((workspace / ".simclr" / "replay" / f"step-{step}.json").read_text())
    return found


def test_an_image_that_becomes_nan_is_named_and_drawn(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second view of image 3 of step 5; the last checkpoint is that of step 4."""
    inputs = Batches.network_inputs

    def poisoned(batches: Batches, first: int, last: int) -> Iterator[Tensor]:
        for step, views in enumerate(inputs(batches, first, last), first):
            if step == 5:
                views[16 + 3, :, 2, 2] = float("nan")
            yield views

    monkeypatch.setattr(Batches, "network_inputs", poisoned)
    with pytest.raises(NonFiniteLossError) as caught:
        pretrain.run(prepared)
    before, key = checkpoints(prepared), caught.value.keys[3]
    replay.run(prepared, 5)
    assert checkpoints(prepared) == before
    found = report(prepared, 5)
    assert (found["step"], found["loss"], found["images"]) == (5, "nan", [key])
    views, layer, gradient = found["findings"]  # type: ignore[misc]
    assert views == {"place": "augmented views", "not_finite": 3, "numbers": 32 * 3 * 16 * 16, "rows": [19]}
    assert layer["place"] == "output of layer 0.backbone.conv1 (Conv2d)"
    assert layer["rows"] == [19]
    assert gradient["place"].startswith("gradient of 1.")
    output = capsys.readouterr().out
    assert "augmented views: 3 of 24,576 numbers are not finite, in 1 rows" in output
    assert key[:12] in output
    with Image.open(prepared / ".simclr" / "replay" / "step-5.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10


@by_digest
def test_diverged_weights_are_distinguished_from_a_bad_image(prepared: Path) -> None:
    configure(prepared, learning_rate=1e30, checkpoint_every_steps=1)
    with pytest.raises(NonFiniteLossError, match="step 1:"):
        pretrain.run(prepared)
    replay.run(prepared, 1)
    places = [finding["place"] for finding in report(prepared, 1)["findings"]]  # type: ignore[attr-defined]
    assert places[0].startswith("output of layer 0.backbone.")
    assert "augmented views" not in places


@pytest.mark.seconds
@by_digest
@pytest.mark.parametrize("grouped", [False, True], ids=["images", "groups"])
def test_a_step_between_checkpoints_is_reached_with_the_weights_it_had(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    if grouped:
        put_groups(prepared, np.arange(96) // 4)
    losses: dict[int, float] = {}
    gradients = training.gradients
    steps = {training.step_seed(0, step, 0): step for step in range(12)}

    def noted(learner: training.Learner, views: Tensor, seed: int, groups: Tensor | None) -> Outcome:
        found = gradients(learner, views, seed, groups)
        losses[steps[seed]] = float(found.loss)
        return found

    monkeypatch.setattr(training, "gradients", noted)
    configure(prepared, checkpoint_every_steps=4)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@9")
    assert losses.keys() == set(range(8))
    monkeypatch.setattr(replay, "gradients", noted)
    replay.run(prepared, 10)
    replayed = dict(losses)
    pretrain.run(prepared)
    assert losses == pytest.approx({**losses, **replayed}, abs=0)
    assert {8, 9, 10} <= replayed.keys()


@pytest.mark.seconds
@by_digest
def test_a_small_extra_crop_that_becomes_nan_is_named_and_drawn(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one of image 3 of the first step."""
    inputs = Batches.network_inputs

    def poisoned(batches: Batches, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        for pair, extras in inputs(batches, first, last):
            extras[16 + 3, :, 2, 2] = float("nan")
            yield pair, extras

    monkeypatch.setattr(Batches, "network_inputs", poisoned)
    configure(prepared, augmentation={"extra_crops": 2, "extra_crop_size": 8})
    with pytest.raises(NonFiniteLossError) as caught:
        pretrain.run(prepared)
    replay.run(prepared, 0)
    found = report(prepared, 0)
    assert found["images"] == [caught.value.keys[3]]
    views, layer, *_ = found["findings"]  # type: ignore[misc]
    numbers = 32 * 3 * (16 * 16 + 8 * 8)
    assert views == {"place": "augmented views", "not_finite": 3, "numbers": numbers, "rows": [32 + 16 + 3]}
    assert layer["rows"] == []  # of a pass over one size
    with Image.open(prepared / ".simclr" / "replay" / "step-0.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10


def replay_on(rank: int, workspace: Path) -> str:
    """Training and replay as this rank of two, of which the second has a bad pixel in its fourth image."""
    inputs = Batches.network_inputs

    def poisoned(batches: Batches, first: int, last: int) -> Iterator[Tensor]:
        for step, views in enumerate(inputs(batches, first, last), first):
            if step == 1 and batches.member.rank == 1:
                views[8 + 3, :, 2, 2] = float("nan")
            yield views

    with pytest.MonkeyPatch.context() as patch:
        put_in_group(patch, rank, 2)
        patch.setattr(Batches, "network_inputs", poisoned)
        with pytest.raises(NonFiniteLossError) as caught:
            pretrain.run(workspace)
        replay.run(workspace, 1)
    return caught.value.keys[8 + 3]


@pytest.mark.seconds
def test_every_process_replays_its_share(prepared: Path, on_ranks: Callable[..., list[Any]]) -> None:
    key, _ = on_ranks(2, replay_on, prepared)
    found = report(prepared, 1)
    assert (found["loss"], found["images"]) == ("nan", [key])
    views, layer, gradient = found["findings"]  # type: ignore[misc]
    assert views == {"place": "augmented views", "not_finite": 3, "numbers": 32 * 3 * 16 * 16, "rows": [16 + 8 + 3]}
    assert layer["place"] == "output of layer 0.backbone.conv1 (Conv2d)"
    assert layer["rows"] == [16 + 8 + 3]
    assert gradient["place"].startswith("gradient of 1.")
    with Image.open(prepared / ".simclr" / "replay" / "step-1.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 10


@pytest.mark.seconds
@by_digest
def test_a_part_of_the_batch_names_no_image_by_its_row(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With micro-batches a row of a layer's output is not that of the batch; the views still name the image."""
    configure(prepared, micro_batch_size=8, learning_rate=1e30, checkpoint_every_steps=1)
    with pytest.raises(NonFiniteLossError):
        pretrain.run(prepared)
    replay.run(prepared, 1)
    assert [finding["rows"] for finding in report(prepared, 1)["findings"]] == [[], []]  # type: ignore[attr-defined]
    assert report(prepared, 1)["images"] == []


@by_digest
def test_a_healthy_step_has_no_findings(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay.run(prepared, 1)  # nothing has been trained: the replay itself begins at the start
    assert "every number on the way to it and back is finite" in capsys.readouterr().out
    assert report(prepared, 1)["findings"] == []
    assert torch.isfinite(torch.tensor(float(str(report(prepared, 1)["loss"]))))
    assert ShardedImages(prepared / "data" / "prepared" / "train")


@by_digest
@pytest.mark.parametrize("step", [-1, 12])
def test_a_step_that_cannot_be_replayed_is_explained(prepared: Path, step: int) -> None:
    with pytest.raises(ReplayError, match=f"step {step} cannot be run again: .* give a step from 0 to 11"):
        replay.run(prepared, step)
