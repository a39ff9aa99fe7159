"""The judge sees training images alone: by their labels, or without any by their views."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simclr_core.data.shards import ShardedImages, read_card, write_card
from simclr_core.errors import LabelError, NonFiniteFeaturesError
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.model.model_directory import load_model
from simclr_core.tune import judge as module
from simclr_core.tune.judge import LABELS, VIEWS, choose_judge, few, score_of
from tests.conftest import write_prepared
from tests.simclr_core.conftest import put_pretrained, relabel


@pytest.mark.parametrize("labeled", [True, False])
def test_it_judges_without_the_test_split(pretrained: Path, labeled: bool) -> None:
    shutil.rmtree(pretrained / "data" / "prepared" / "test")
    if not labeled:
        relabel(pretrained, "train", np.full(96, -1))
    judge, model = choose_judge(pretrained, 0), load_model(pretrained / "models" / "pretrained")
    assert (judge.name, judge.images) == ((LABELS, 48) if labeled else (VIEWS, 96))
    score = judge.score(model)
    assert score == choose_judge(pretrained, 0).score(model)
    assert 0 < score.value < 100
    assert score.interval > 0


def test_several_labels_of_an_image_are_not_judged(pretrained: Path) -> None:
    write_card(pretrained / "data" / "prepared", replace(read_card(pretrained / "data" / "prepared"), multi_label=True))
    assert choose_judge(pretrained, 0).name == VIEWS


def test_the_labels_decide_the_score(pretrained: Path) -> None:
    model = load_model(pretrained / "models" / "pretrained")
    true = choose_judge(pretrained, 0).score(model)
    relabel(pretrained, "train", np.where(np.arange(96) < 48, np.random.default_rng(0).integers(0, 4, 96), -1))
    assert choose_judge(pretrained, 0).score(model).value < true.value - 20


def test_too_few_images_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="20 training images without two classes"):
        choose_judge(put_pretrained(write_prepared(tmp_path, train=20, labeled=0.0)), 0)


def test_many_labels_are_reduced_alike(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LABELS", 16)
    images = few(EvaluationImages.of(ShardedImages(pretrained / "data" / "prepared" / "train")), 0)
    assert np.bincount(images.labels).tolist() == [4, 4, 4, 4]
    assert (images.images.keys[images.positions] == images.keys).all()


def test_features_that_are_not_finite_are_refused(pretrained: Path) -> None:
    model = load_model(pretrained / "models" / "pretrained")
    next(model.encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteFeaturesError):
        choose_judge(pretrained, 0).score(model)


def test_the_interval_is_of_the_images() -> None:
    score = score_of(100.0 * (np.arange(400) < 300))
    assert score.value == 75
    assert score.interval == pytest.approx(196 * (0.75 * 0.25 / 400) ** 0.5, rel=0.01)
