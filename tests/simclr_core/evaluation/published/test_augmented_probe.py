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
from simclr_core.evaluation.features import extract
from simclr_core.evaluation.images import read_splits
from simclr_core.evaluation.published.augmented_probe import probe_augmented
from simclr_core.launch import Member
from simclr_core.model.model_directory import load_model
from simclr_core.schedule import learning_rate
from simclr_core.values import CropScale

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
    x = torch.from_numpy(extract(model.encoder, squares, card["mean"], card["std"])).double()
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


@pytest.mark.seconds
def test_the_stage_reports_it_if_asked(pretrained: Path) -> None:
    path = pretrained / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["linear_eval"] |= {"fractions": ["1.0"], "labels_per_class": [], "l2_count": 2, "sgd": {"epochs": 1}}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    linear_eval.run(pretrained)
    report = yaml.safe_load((pretrained / "reports" / "linear_eval.json").read_text(encoding="utf-8"))
    assert report["sgd"].keys() == {"epochs", "steps", "top1", "top5"}
    assert report["sgd"]["steps"] == 1
