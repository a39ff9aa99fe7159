"""A variant ships when it loses next to nothing, with separate golden vectors; else the bundle says why not."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from deploy.bundle import Bundle, Head, read_bundle
from deploy.encoder import Encoder, compare
from simclr_core.data.shards import ShardedImages
from simclr_core.evaluation.served_accuracy import LabeledImages, accuracies, ask, served_features
from simclr_core.export import variants
from simclr_core.export.variants import Variants, build_variants, calibration_pixels, find_missed, judge_losses
from simclr_core.reports import VariantReport
from tests.conftest import CLASSES
from tests.simclr_core.export.test_export import export_once

GOOD = VariantReport("static", 0.26, 0.999, 1.0, 90.0, 80.0, {})


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, None),
        ({"knn_top1": 95.0}, None),
        ({"cosine_mean": 0.9899}, r"mean cosine to fp32 0\.9899, at least 0\.99 is required"),
        ({"cosine_mean": float("nan")}, "mean cosine to fp32 nan"),
        ({"batch_cosine_min": 0.998}, r"alone and in a batch .* cosine 0\.99800, at least 0\.999"),
    ],
    ids=str,
)
def test_a_variant_passes_the_gate_within_its_limits(facts: dict[str, float], reason: str | None) -> None:
    found = find_missed(replace(GOOD, **facts))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found)


@pytest.mark.parametrize("measure", ["knn_top1", "classifier_top1"])
@pytest.mark.parametrize(
    ("images", "won", "lost", "left_out", "undecided"),
    [
        (1000, 0, 6, r"_top1 89\.40 %, 0\.60 points under fp32; at most 0\.5 may be lost \(export\.max_loss\)", None),
        (1000, 0, 5, None, "a loss of .*_top1 up to"),  # half a point is allowed, and more is not ruled out
        (1000, 30, 40, None, r"not judged: on 1000 test images a loss of .*_top1 up to"),  # one point, by chance
        (58, 0, 1, None, "not judged: on 58 test images"),  # one of 58 images is 1.7 points
        (5000, 3, 3, None, None),
        (5000, 2, 40, r"0\.76 points under fp32", None),
        (5000, 2, 20, None, "not ruled out"),  # shown to lose, and not more than is allowed
    ],
)
def test_a_loss_of_accuracy_is_judged_by_pairs(
    measure: str, images: int, won: int, lost: int, left_out: str | None, undecided: str | None
) -> None:
    exact = np.arange(images) < images * 0.9
    found = exact.copy()
    found[:lost], found[images - won :] = False, True
    other = "classifier_top1" if measure == "knn_top1" else "knn_top1"
    sure = np.arange(100_000) < 90_000  # the other measure decides nothing
    verdicts = judge_losses({measure: exact, other: sure}, {measure: found, other: sure}, None, 0.5)
    for said, expected in zip(verdicts, (left_out, undecided), strict=True):
        assert (said is None) is (expected is None), said
        assert not expected or re.search(expected, said or "")


def chances(images: int, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which of three classes images have, and probabilities that know something of it."""
    random = np.random.default_rng(seed)
    sets = random.random((images, 3)) < (0.5, 0.3, 0.1)
    return sets, np.clip(0.4 * sets + 0.6 * random.random(sets.shape), 0, 1)


@pytest.mark.seconds
def test_a_loss_of_precision_of_several_labels_is_judged_by_resamples() -> None:
    sets, exact = chances(4000)
    noise = np.random.default_rng(1).normal(size=exact.shape)
    worse, same = exact + 0.15 * noise, exact + 1e-4 * noise
    lost, _ = judge_losses({"knn_precision": exact}, {"knn_precision": worse}, sets, 0.5)
    assert re.search(r"^knn_precision \d\d\.\d\d %, \d+\.\d\d points under fp32; at most 0\.5 may be lost", str(lost))
    assert judge_losses({"knn_precision": exact}, {"knn_precision": same}, sets, 0.5) == (None, None)
    assert judge_losses({"knn_precision": worse}, {"knn_precision": exact}, sets, 0.5)[0] is None  # a gain


def test_few_images_with_several_labels_cannot_rule_out_a_loss() -> None:
    sets, exact = chances(40)
    lost, undecided = judge_losses({"knn_precision": exact}, {"knn_precision": exact}, sets, 0.5)
    assert lost is None
    assert str(undecided).startswith("not judged: on 40 test images a loss of knn_precision up to 6.3 points is not")


def test_without_labels_only_the_vectors_are_judged() -> None:
    assert judge_losses({}, {}, None, 0.5) == (None, None)
    unlabeled = replace(GOOD, knn_top1=None, classifier_top1=None)
    assert find_missed(unlabeled) is None
    assert find_missed(replace(unlabeled, cosine_mean=0.5)) is not None


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Bundle:
    whole = read_bundle(exported / "models" / "bundle")
    return replace(whole, variants={}, id=None)


@pytest.fixture(scope="module")
def images(exported: Path) -> LabeledImages:
    return LabeledImages.of(exported / "data" / "prepared")


@pytest.fixture(scope="module")
def pictures(exported: Path) -> list[bytes]:
    split = ShardedImages(exported / "data" / "prepared" / "test")
    return [split.read(position) for position in range(len(split))]


def build(bundle: Bundle, names: list[str], images: LabeledImages, pictures: list[bytes], workspace: Path) -> Variants:
    calibration = calibration_pixels(workspace / "data" / "prepared", bundle.preprocessing)
    answers = ask(served_features(Encoder(bundle), images), images, bundle.head)
    return build_variants(bundle, names, calibration, pictures, images, answers, max_loss=0.5)


@pytest.mark.seconds
def test_each_variant_that_passes_is_held_to_its_own_vectors(
    bundle: Bundle,
    images: LabeledImages,
    pictures: list[bytes],
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = build(bundle, ["fp32", "int8", "fp16"], images, pictures, exported)
    assert list(made.passed) == list(made.facts) == ["int8", "fp16"]
    assert made.left_out == {}
    assert made.facts["int8"].method == "static"
    assert made.facts["int8"].cosine_mean > 0.99
    assert made.facts["fp16"].cosine_mean > 0.9999
    served = replace(bundle, variants=made.passed)
    for name in made.passed:
        encoder = Encoder(served, variant=name)
        assert encoder.verify().cosine_min > 0.99999
        exact = Encoder(served).embed(pictures).vectors
        cosines = (encoder.embed(pictures).vectors * exact).sum(axis=1)
        assert abs(cosines.mean() - made.facts[name].cosine_mean) < 1e-5
    again = build(bundle, ["int8"], images, pictures, exported)
    assert again.passed["int8"].model == made.passed["int8"].model
    assert again.facts["int8"] == made.facts["int8"]


def test_a_variant_that_misses_its_gate_is_left_out_with_the_reason(
    bundle: Bundle,
    images: LabeledImages,
    pictures: list[bytes],
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(graph: bytes, _: object) -> dict[str, bytes]:
        model = onnx.load_from_string(graph)
        for tensor in model.graph.initializer:
            weights = onnx.numpy_helper.to_array(tensor)
            if weights.ndim == 4 and weights.shape[1] >= 3:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.sign(weights), tensor.name))
        return {"static": model.SerializeToString()}

    monkeypatch.setattr(variants, "int8_graphs", broken)
    made = build(bundle, ["fp32", "int8"], images, pictures, exported)
    assert (made.passed, made.facts) == ({}, {})
    assert "mean cosine to fp32" in made.left_out["int8"]


@pytest.mark.seconds
def test_accuracy_decides_between_the_methods(
    bundle: Bundle,
    images: LabeledImages,
    pictures: list[bytes],
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    int8 = variants.int8_graphs
    monkeypatch.setattr(
        variants, "int8_graphs", lambda graph, pixels: {"static": int8(graph, pixels)["static"], "dynamic": graph}
    )
    made = build(bundle, ["int8"], images, pictures, exported)
    assert (made.facts["int8"].method, made.facts["int8"].cosine_mean) == ("dynamic", 1.0)


def test_calibration_images_are_training_images_and_always_the_same(exported: Path, bundle: Bundle) -> None:
    prepared = exported / "data" / "prepared"
    first, second = (calibration_pixels(prepared, bundle.preprocessing) for _ in range(2))
    assert first.shape == (40, 16, 16, 3)  # all that there are
    assert np.array_equal(first, second)


def test_the_tolerance_covers_what_other_kernels_give(
    bundle: Bundle, images: LabeledImages, pictures: list[bytes], exported: Path
) -> None:
    calibration = calibration_pixels(exported / "data" / "prepared", bundle.preprocessing)
    graph = variants.int8_graphs(bundle.model, calibration)["static"]
    candidate = variants._load(bundle, "int8", graph)
    variant = variants.golden_variant(candidate, "int8", Encoder(candidate, variant="int8"))
    pixels = np.stack([bundle.preprocessing.read(image) for image in bundle.golden_images])
    other = compare(variants.run_unoptimized(graph, pixels), variant.golden_vectors)
    assert 0.99 < variant.tolerance["cosine_min"] <= other.cosine_min
    assert other.max_abs <= variant.tolerance["max_abs"] < 0.1


def test_the_classifier_is_that_of_the_bundle(bundle: Bundle, images: LabeledImages) -> None:
    features = served_features(Encoder(bundle), images)
    assert features.train.shape == (20, 64)
    assert features.test.shape == (40, 64)
    weight = np.zeros((64, 4), np.float32)
    head = Head(weight, np.array([0, 0, 9, 0], np.float32), CLASSES)  # says the third class of everything
    assert accuracies(ask(features, images, head)).classifier_top1 == 25.0
    assert accuracies(ask(features, images, None)).classifier_top1 is None
