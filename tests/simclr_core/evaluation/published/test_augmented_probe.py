"""A linear classifier by SGD on augmented images: of a frozen encoder, and the same however many processes train it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml

from simclr_core.config import SgdConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.evaluation import linear_eval
from simclr_core.evaluation.classifier_training import (
    Labels,
    Optimization,
    Start,
    few_label_augmentation,
    train_classifier,
)
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.images import read_splits
from simclr_core.evaluation.published.augmented_probe import describe_steps, probe_augmented, steps_over
from simclr_core.launch import Member
from simclr_core.model.model_directory import load_model
from simclr_core.schedule import learning_rate
from simclr_core.values import CropScale
from tests.sentences import assert_plain
from tests.simclr_core.conftest import put_label_sets, relabel

WHOLE: CropScale = (1.0, 1.0)
CONFIG = SgdConfig(epochs=30, batch_size=16, learning_rate=16.0, crop_scale=(0.8, 1.0))


def probe_in_a_group(rank: int, workspace: Path, config: SgdConfig) -> dict[str, Any]:
    member = Member(rank, dist.get_world_size(), torch.device("cpu"))
    model = load_model(workspace / "models" / "pretrained")
    return asdict(probe_augmented(config, model, *read_splits(workspace / "data" / "prepared"), 4, member))


@pytest.mark.seconds
def test_one_process_or_two_of_which_one_trains_where_the_batch_is_odd(
    pretrained: Path, on_ranks: Callable[..., list[Any]]
) -> None:
    alone = probe_augmented(
        CONFIG,
        load_model(pretrained / "models" / "pretrained"),
        *read_splits(pretrained / "data" / "prepared"),
        4,
        Member(0, 1, torch.device("cpu")),
    )
    assert (alone.epochs, alone.steps) == (30, 30 * (48 // 16))
    assert 40 < alone.top1 < alone.top5 == 100  # chance is 25; there are four classes
    for shared in on_ranks(2, probe_in_a_group, pretrained, CONFIG):
        assert shared["top1"] == pytest.approx(alone.top1, abs=2.6)  # an image of 40: sums are in another order


def test_it_is_softmax_regression_on_features_that_stay(pretrained: Path) -> None:
    """Of whole images without flips the features are fixed: Nesterov's steps by hand, in float64."""
    model = load_model(pretrained / "models" / "pretrained")
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    train, _ = read_splits(pretrained / "data" / "prepared")
    card = {**model.card, "config": {"augmentation": {"flip": 0.0}}}
    known = Labels(train.positions, train.labels, 4)
    how = Optimization(6, len(train.labels), 0.5)
    crops = few_label_augmentation(card, WHOLE)
    start = Start(model.encoder, frozen=True)
    network, loss = train_classifier(start, card, TrainingImages(train.images), known, crops, how, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network[0].state_dict().items())
    squares = next(train.chunks(model.preprocessing))
    x = encode(model.encoder, squares, card["mean"], card["std"]).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    truth = torch.nn.functional.one_hot(torch.from_numpy(train.labels), 4).double()
    weight, speed = torch.zeros(x.shape[1], 4, dtype=torch.float64), 0.0
    for step in range(6):
        likely = (x @ weight).softmax(dim=1)
        expected = -float((truth * likely.log()).sum(dim=1).mean())
        slope = x.T @ (likely - truth) / len(x)
        speed = 0.9 * speed + slope
        weight = weight - learning_rate(step, 6, 0, 0.5) * (slope + 0.9 * speed)
    assert loss == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(network[1].weight.detach().numpy(), weight[:-1].T, atol=2e-3)


def test_the_rate_is_that_of_the_images_in_a_step() -> None:
    """0.1 for 256 images, as the authors' code scales it; of fewer labels than a batch, all are a batch."""
    rates = {labels: steps_over(labels, SgdConfig()).peak_rate for labels in (256, 800, 4096, 1_281_167)}
    assert rates == pytest.approx({256: 0.1, 800: 0.3125, 4096: 1.6, 1_281_167: 1.6})
    assert [steps_over(labels, SgdConfig()).steps for labels in (800, 1_281_167)] == [90, 90 * 312]
    assert describe_steps(8_192, SgdConfig()) == "linear_eval.sgd: 180 steps of 4,096 images, learning rate 1.6"
    few = describe_steps(800, SgdConfig())
    assert few.startswith("linear_eval.sgd: 90 steps of 800 images, learning rate 0.312; ")
    assert few.endswith("linear_eval.sgd.batch_size is 4,096, and a smaller one than 800 takes more steps")
    assert_plain(few)


def evaluate(workspace: Path, **sgd: object) -> dict[str, Any]:
    """The report of the stage, which is asked for this too."""
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["linear_eval"] |= {"fractions": ["1.0"], "labels_per_class": [], "l2_count": 2, "sgd": {"epochs": 1, **sgd}}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    linear_eval.run(workspace)
    found: dict[str, Any] = yaml.safe_load((workspace / "reports" / "linear_eval.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.seconds
def test_the_stage_reports_it_if_asked(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(pretrained)["sgd"]
    assert found.keys() == {"epochs", "steps", "top1", "top5", "reason"}
    assert (found["steps"], found["reason"]) == (1, None)
    assert "linear_eval.sgd" not in capsys.readouterr().err


@pytest.mark.seconds
def test_a_rate_that_is_too_high_costs_this_number_alone(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(pretrained, epochs=4, batch_size=16, learning_rate=4.8e39)  # up to 3e38, near the largest float32
    assert (found["sgd"]["top1"], found["sgd"]["top5"], found["sgd"]["steps"]) == (None, None, 12)
    assert found["sgd"]["reason"].startswith("the loss of seed 0 became ")
    assert found["sgd"]["reason"].endswith("; lower linear_eval.sgd.learning_rate")
    assert found["simclr"]["linear_top1"]["1.0"] > 0
    (line,) = (one for one in capsys.readouterr().err.splitlines() if "linear_eval.sgd" in one)
    assert line == f"linear_eval: linear_eval.sgd has no accuracies: {found['sgd']['reason']}"
    assert_plain(line)


@pytest.mark.seconds
@pytest.mark.parametrize("why", ["these answers are out of fold", "here an image may have several"])
def test_where_it_cannot_be_measured_a_line_says_so(
    why: str, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "fold" in why:
        relabel(pretrained, "test", np.array(-1))
    else:
        put_label_sets(pretrained)
    assert evaluate(pretrained)["sgd"] is None
    (line,) = (one for one in capsys.readouterr().err.splitlines() if "linear_eval.sgd" in one)
    assert line.startswith("linear_eval: linear_eval.sgd is left out: ")
    assert line.endswith(why)
    assert_plain(line)
