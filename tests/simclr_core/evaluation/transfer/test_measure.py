import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from simclr_core.errors import LabelError
from simclr_core.evaluation.images import random_encoder
from simclr_core.evaluation.logistic_regression import l2_values
from simclr_core.evaluation.transfer.labeled_set import LabeledSet, digits, hold_out
from simclr_core.evaluation.transfer.measure import PENALTIES, compute_features, measure, per_class, two_sided_p
from simclr_core.evaluation.transfer.report import describe, page, to_json
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import Model

CARD = {
    "encoder": {"name": "resnet18", "width": 0.0625, "stem": "compact"},
    "preprocessing": {"size": 16, "resize": 16},
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(build_encoder("resnet18", 0.0625, "compact", image_size=16).eval(), {}, CARD)


def some_digits(count: int) -> LabeledSet:
    return digits().only(np.arange(1797) < count, "fewer")


def test_the_penalties_are_the_45_of_appendix_b8() -> None:
    # SimCLR (2002.05709), appendix B.8.1: "45 logarithmically spaced values between 1e-6 and 1e5"
    values = l2_values(PENALTIES)
    assert len(values) == 45
    assert values == pytest.approx(sorted(10 ** np.linspace(-6, 5, 45), reverse=True))


def test_mcnemar_is_the_exact_test_of_a_fair_coin() -> None:
    one = np.array([True] * 9 + [False] * 2 + [True] * 5)
    other = np.array([False] * 9 + [True] * 2 + [True] * 5)
    assert two_sided_p(one, other) == pytest.approx(binomtest(9, 11, 0.5).pvalue)
    assert two_sided_p(one, other) == two_sided_p(other, one)
    assert two_sided_p(one, one) == 1


def test_the_mean_over_classes_gives_each_class_the_same_weight() -> None:
    right = np.array([True, True, True, True, False, True])
    assert per_class(right, np.array([0, 0, 0, 0, 1, 1])) == 75


@pytest.mark.seconds
def test_a_set_is_compared_with_random_weights_and_pixels(model: Model) -> None:
    found = measure(some_digits(300), model, {"simclr": model.encoder, "random": random_encoder(model, 1)})
    assert list(found.worth) == ["simclr", "random", "pixels"]
    assert list(found.above) == ["random", "pixels"]
    assert found.worth["pixels"].linear > 80
    assert found.worth["pixels"].knn > 80
    few_shot = found.worth["pixels"].few_shot
    assert few_shot is not None
    assert 70 < few_shot[0] < 100
    assert found.above["pixels"].linear == pytest.approx(found.worth["simclr"].linear - found.worth["pixels"].linear)
    assert json.loads(to_json("models/pretrained", [found]))["sets"][0]["test"] == found.test
    above = replace(found.above["pixels"], linear=1.25, linear_p=0.2, knn=-3.0, knn_p=0.04, few_shot=(2.0, 2.5))
    row = describe([replace(found, above={"pixels": above})]).splitlines()[-2]
    assert row.split() == ["raw", "pixels", "+1.2", "0.2", "-3.0", "*", "0.04", "+2.0", "±", "2.5"]
    assert "&lt;b&gt;" in page([replace(found, name="<b>")])


def test_small_images_are_enlarged_not_padded(model: Model) -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    images = replace(some_digits(200), pictures=(white,) * 200)
    _, features = compute_features(images, model, {})
    assert features["pixels"].shape == (200, 16 * 16 * 3)
    assert (features["pixels"] == 1).all()


def test_unreadable_files_are_named_and_left_out(model: Model, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG not an image")
    images = some_digits(200)
    given = replace(images, pictures=(bad, *images.pictures[1:]))
    kept, features = compute_features(given, model, {})
    assert len(kept) == len(features["pixels"]) == 199
    assert any("1 file that cannot be read" in note and "bad.png" in note for note in kept.notes)
    with pytest.raises(LabelError, match="none of 200 images can be read"):
        compute_features(replace(images, pictures=(bad,) * 200), model, {})


def test_rows_are_those_of_their_images_when_some_are_left_out(model: Model) -> None:
    images = some_digits(200)
    train = np.flatnonzero(~images.is_test)[0]
    keys = images.keys.copy()
    keys[train] = keys[np.flatnonzero(images.is_test & (images.labels == images.labels[train]))[0]]
    kept, features = compute_features(replace(images, keys=keys), model, {})
    _, whole = compute_features(images, model, {})
    assert len(kept) == 199
    assert (features["pixels"] == np.delete(whole["pixels"], train, axis=0)).all()


def test_the_split_is_fixed() -> None:
    assert hold_out(digits().keys).tolist() == digits().is_test.tolist()
