"""The stage: accuracies next to baselines, a probe that is published, and a test split that decides nothing."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import yaml
from numpy.typing import NDArray

from deploy.artifact import verify
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import ShardedImages
from simclr_core.data.subsets import LabelDraw, per_class_subset, subset
from simclr_core.evaluation import finetune, images, linear_eval
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.images import EvaluationImages, random_encoder
from simclr_core.evaluation.linear_eval import pixel_features
from simclr_core.evaluation.linear_probe import fit_probe, ranked_classes
from simclr_core.evaluation.scores.accuracies import mean_accuracies
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.evaluation_reports import Accuracies
from simclr_core.model.model_directory import load_model
from tests.conftest import write_prepared
from tests.simclr_core.conftest import put_in_group, put_label_sets, put_pretrained, relabel

OUTPUTS = tuple(
    f"reports/{name}"
    for name in (
        "linear_eval.json",
        "confusion.csv",
        "confusion.png",
        "neighbours.png",
        "map.png",
        "predictions.parquet",
    )
)
SETS = ("simclr", "random_init", "pixels")


@pytest.fixture
def workspace(pretrained: Path) -> Path:
    return pretrained


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the outputs of the stage. Who changes something takes a copy."""
    workspace = put_pretrained(write_prepared(tmp_path_factory.mktemp("evaluated")))
    change(workspace, labels_per_class=[2], draws=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMCLR_EVENTS", str(workspace / "events"))
        linear_eval.run(workspace)
    return workspace


def change(workspace: Path, **values: object) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["linear_eval"] |= values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def fit_few_probes(workspace: Path) -> None:
    """Nine tenths of the stage's time on so few images are probes."""
    change(workspace, fractions=["1.0"], l2_count=2)


def outputs(workspace: Path) -> list[bytes]:
    files = [workspace / name for name in OUTPUTS] + sorted((workspace / "models" / "probe").iterdir())
    return [file.read_bytes() for file in files]


def report(workspace: Path) -> dict:
    return json.loads((workspace / "reports" / "linear_eval.json").read_text())


@pytest.mark.seconds
def test_the_report_has_every_budget_of_every_feature_set(evaluated: Path) -> None:
    found = report(evaluated)
    assert found["labels"] == {"0.1": 4, "1.0": 48}
    assert (found["test_images"], found["classes"], found["reason"]) == (40, 4, None)
    for name in SETS:
        assert set(found[name]) == {"knn_top1", "linear_top1", "linear_top5"}
        assert set(found[name]["linear_top1"]) == {"0.1", "1.0"}
        assert found[name]["linear_top5"] == {"0.1": 100, "1.0": 100}  # there are four classes
        assert found[name]["linear_top1"]["1.0"] > 40  # chance is 25
    assert "seconds" in json.loads((evaluated / ".simclr/timings/linear_eval.json").read_text())


def test_it_says_how_far_it_is(evaluated: Path) -> None:
    """It takes minutes on many images, and a stage that is silent for long is taken for hung."""
    said = [json.loads(line)["message"] for line in (evaluated / "events").read_text().splitlines()]
    assert "features of 40 of 40 images" in said
    for one in report(evaluated)["budgets"].values():
        expected = [f"{name} {one[key]['top1']:.1f} %" for name, key in NAMES_IN_EVENTS.items()]
        assert f"{one['labels']} labels: {', '.join(expected)}" in said


NAMES_IN_EVENTS = {"linear": "simclr", "random weights": "random_init", "raw pixels": "pixels"}


def test_budgets_are_means_over_draws_with_their_interval(evaluated: Path) -> None:
    found = report(evaluated)
    budgets = found["budgets"]
    assert {name: (one["labels"], one["draws"]) for name, one in budgets.items()} == {
        "0.1": (4, 2),
        "1.0": (48, 1),
        "2 per class": (8, 2),
    }
    train, test = (
        EvaluationImages.of(ShardedImages(evaluated / "data" / "prepared" / one)) for one in ("train", "test")
    )
    pixels = [
        pixel_features(next(one.chunks(load_model(evaluated / "models/pretrained").preprocessing)))
        for one in (train, test)
    ]
    top1 = []
    for seed in (0, 1):
        chosen = per_class_subset(train.labels, train.keys, 2, seed)
        probe = fit_probe(pixels[0], train.labels, train.keys, 4, LabelDraw("", chosen), 3, seed)
        top1.append(np.mean(ranked_classes(probe, pixels[1])[:, 0] == test.labels))
    assert budgets["2 per class"]["pixels"] == asdict(estimate(top1, 40, 8))
    for name in SETS:  # the share of all labels has one draw, the one that was reported before there were budgets
        assert budgets["1.0"][name]["top1"] == pytest.approx(found[name]["linear_top1"]["1.0"], abs=1e-3)
        assert budgets["1.0"][name]["low"] < budgets["1.0"][name]["top1"] < budgets["1.0"][name]["high"] <= 100


def test_scores_by_class_agree_with_the_accuracies(evaluated: Path) -> None:
    found = report(evaluated)
    rows = list(csv.DictReader((evaluated / "reports" / "confusion.csv").read_text().splitlines()))
    for classifier, top1 in (("knn", found["simclr"]["knn_top1"]), ("probe", found["simclr"]["linear_top1"]["1.0"])):
        scores = found["scores"][classifier]
        assert scores["top1"]["top1"] == top1
        assert sum(one["images"] * one["recall"] for one in scores["per_class"].values()) / 40 == pytest.approx(top1)
        assert {one["labels"] for one in scores["per_class"].values()} == {12}
    for name, one in found["scores"]["probe"]["per_class"].items():
        assert one["answers"] == sum(row["predicted"] == name for row in rows)


def test_the_predictions_are_those_of_the_confusion_matrix(evaluated: Path) -> None:
    rows = pq.read_table(evaluated / "reports" / "predictions.parquet").to_pylist()
    confusion = csv.DictReader((evaluated / "reports" / "confusion.csv").read_text().splitlines())
    assert [(row["label"], row["probe"]) for row in rows] == [(one["actual"], one["predicted"]) for one in confusion]
    knn = np.mean([row["knn"] == row["label"] for row in rows])
    assert round(100 * knn, 3) == report(evaluated)["simclr"]["knn_top1"]
    assert all(0 <= row["probe_label"] <= row["probe_answer"] <= 1 for row in rows)


def test_the_published_head_gives_the_reported_accuracy_on_raw_features(evaluated: Path) -> None:
    verify(evaluated / "models" / "probe")
    head = np.load(evaluated / "models" / "probe" / "head.npz")
    model = load_model(evaluated / "models" / "pretrained")
    test = EvaluationImages.of(ShardedImages(evaluated / "data" / "prepared" / "test"))
    images = next(test.chunks(model.preprocessing))
    h = encode(model.encoder, images, model.card["mean"], model.card["std"]).numpy()
    predicted = (h @ head["weight"] + head["bias"]).argmax(axis=1)
    assert head["weight"].dtype == head["bias"].dtype == np.float32
    assert head["weight"].shape == (h.shape[1], 4)
    assert round(100 * np.mean(predicted == test.labels), 3) == report(evaluated)["simclr"]["linear_top1"]["1.0"]
    rows = list(csv.DictReader((evaluated / "reports" / "confusion.csv").read_text().splitlines()))
    names = ("circle", "cross", "square", "stripes")
    assert [(row["actual"], row["predicted"]) for row in rows] == [
        (names[actual], names[guess]) for actual, guess in zip(test.labels, predicted, strict=True)
    ]


@pytest.mark.seconds
def test_permuted_test_labels_change_neither_the_strength_nor_the_weights(evaluated: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(evaluated, tmp_path / "copy"))
    head = (workspace / "models/probe/head.npz").read_bytes()
    card, before = json.loads((workspace / "models/probe/probe.json").read_text()), report(workspace)
    relabel(workspace, "test", np.random.default_rng(0).permutation(np.arange(40) % 4))
    linear_eval.run(workspace)
    assert (workspace / "models/probe/head.npz").read_bytes() == head
    assert json.loads((workspace / "models/probe/probe.json").read_text())["l2"] == card["l2"]
    assert report(workspace)["simclr"] != before["simclr"]


@pytest.mark.seconds
def test_running_twice_gives_the_same_bytes(evaluated: Path, workspace: Path) -> None:
    change(workspace, labels_per_class=[2], draws=2)
    linear_eval.run(workspace)
    assert outputs(workspace) == outputs(evaluated)


def evaluate_in_a_group(rank: int, workspaces: tuple[Path, ...]) -> None:
    """Each workspace, with chunks so small that every process makes some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "CHUNK", 20)
        put_in_group(patch, rank, dist.get_world_size())
        for workspace in workspaces:
            linear_eval.run(workspace)


def test_large_features_are_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    assert images.reserve(3, 2, scratch).shape == (3, 2)
    assert not scratch.exists()
    monkeypatch.setattr(images, "IN_MEMORY", 16)
    found = images.reserve(3, 2, scratch)
    found[:] = 7
    assert (found.shape, found.dtype, found.sum()) == ((3, 2), np.float32, 42)
    assert f"{scratch}/" in Path("/proc/self/maps").read_text()
    assert list(scratch.iterdir()) == []


def test_features_stay_in_memory_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "IN_MEMORY", 16)
    monkeypatch.setattr(images.os, "posix_fallocate", refuse)
    found = images.reserve(3, 2, tmp_path)
    found[:] = 7
    assert f"{tmp_path}/" not in Path("/proc/self/maps").read_text()


@pytest.mark.slow
def test_processes_of_a_group_leave_what_one_leaves(
    pretrained: Path, tmp_path: Path, on_ranks: Callable[..., list[Any]]
) -> None:
    """Also out of fold, where the training images are asked about, and with several labels."""
    change(pretrained, labels_per_class=[2], draws=2, l2_count=2)
    others = [Path(shutil.copytree(pretrained, tmp_path / name)) for name in ("folds", "several")]
    relabel(others[0], "test", np.array(-1))
    put_label_sets(others[1])
    left = []
    for world in (1, 2):
        copies = [Path(shutil.copytree(one, tmp_path / f"{one.name}-{world}")) for one in (pretrained, *others)]
        on_ranks(world, evaluate_in_a_group, tuple(copies))
        left.append([outputs(one) for one in copies])
    assert left[0] == left[1]


@pytest.mark.seconds
@pytest.mark.parametrize("split", ["train", "test"])
def test_without_labels_every_output_exists_and_says_why(
    workspace: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_few_probes(workspace)
    relabel(workspace, split, np.array(-1))
    if split == "test":
        relabel(workspace, "train", np.where(np.arange(96) < 6, np.minimum(np.arange(96), 1), -1)[::-1])
    linear_eval.run(workspace)
    found = report(workspace)
    what = "training" if split == "train" else "test"
    assert f"no labeled {what} images" in found["reason"]
    assert capsys.readouterr().err.count(f"no labeled {what} images") == 1
    for name in SETS:
        assert found[name]["knn_top1"] is None
        assert set(found[name]["linear_top1"].values()) == {None}
    assert (found["budgets"], found["scores"]) == ({}, {})
    assert all((workspace / name).stat().st_size for name in OUTPUTS)
    verify(workspace / "models" / "probe")
    assert (workspace / "models" / "probe" / "head.npz").exists() == (split == "test")
    assert ("or label two training images of each of two classes" in found["reason"]) == (split == "test")


@pytest.mark.slow
def test_without_test_images_the_training_images_are_answered_out_of_fold(workspace: Path, evaluated: Path) -> None:
    change(workspace, labels_per_class=[2], draws=2)
    relabel(workspace, "test", np.array(-1))
    linear_eval.run(workspace)
    found = report(workspace)
    assert (found["estimate"], found["out_of_fold"]) == ("out_of_fold", {"images": 48, "folds": 5})
    assert (found["test_images"], found["reason"]) == (0, None)
    assert found["labels"] == report(evaluated)["labels"]
    assert {name: (one["labels"], one["draws"]) for name, one in found["budgets"].items()} == {
        "0.1": (4, 1),
        "1.0": (38, 1),
        "2 per class": (8, 1),
    }
    rows = pq.read_table(workspace / "reports" / "predictions.parquet").to_pylist()
    train = EvaluationImages.of(ShardedImages(workspace / "data" / "prepared" / "train"))
    assert [row["sha256"] for row in rows] == [bytes(key).hex() for key in train.keys]
    assert {row["split"] for row in rows} == {"out_of_fold"}
    for name, top1 in (("knn", found["simclr"]["knn_top1"]), ("probe", found["simclr"]["linear_top1"]["1.0"])):
        assert round(100 * np.mean([row[name] == row["label"] for row in rows]), 3) == top1 > 25
        one, other = (found["paired"][name]["pixels"][only][0] for only in ("trained_only", "baseline_only"))
        pixels = found["pixels"]["knn_top1"] if name == "knn" else found["pixels"]["linear_top1"]["1.0"]
        assert 100 * (one - other) / 48 == pytest.approx(top1 - pixels, abs=1e-2)
    confusion = csv.DictReader((workspace / "reports" / "confusion.csv").read_text().splitlines())
    assert [(row["label"], row["probe"]) for row in rows] == [(one["actual"], one["predicted"]) for one in confusion]
    head, before = (root / "models" / "probe" / "head.npz" for root in (workspace, evaluated))
    assert head.read_bytes() == before.read_bytes(), "what is published is fitted on all labels"
    assert json.loads(head.with_name("probe.json").read_text())["metrics"]["estimate"] == "out_of_fold"
    interval = found["scores"]["probe"]["top1"]
    assert interval == pytest.approx(asdict(estimate([interval["top1"] / 100], 48 * 4 / 9, 48)), abs=2e-3)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        (np.zeros(96, int), np.zeros(40, int), "all labeled training images are of one class"),
        pytest.param(
            *(np.arange(96) % 2, 2 + np.arange(40) % 2, "no test image is of a class that a training image is labeled"),
            marks=pytest.mark.slow,  # here fine-tuning trains
        ),
    ],
)
def test_accuracies_without_information_are_not_reported_as_100_percent(
    workspace: Path, train: NDArray[np.int64], test: NDArray[np.int64], reason: str
) -> None:
    fit_few_probes(workspace)
    relabel(workspace, "train", train)
    relabel(workspace, "test", test)
    linear_eval.run(workspace)
    found = report(workspace)
    assert found["reason"].startswith(reason)
    for name in SETS:
        assert found[name]["knn_top1"] is None
        assert set(found[name]["linear_top1"].values()) == {None}
    assert (found["budgets"], found["scores"]) == ({}, {})
    assert all((workspace / name).stat().st_size for name in OUTPUTS)
    finetune.run(workspace, "0.1")
    tuned = json.loads((workspace / "reports" / "finetune-0.1.json").read_text())
    assert (tuned["top1"], tuned["scratch_top1"]) == (None, None)
    assert tuned["reason"].startswith(reason)


def test_the_random_baseline_is_the_same_architecture_with_seeded_fresh_weights(workspace: Path) -> None:
    model = load_model(workspace / "models" / "pretrained")
    first, again, other = (random_encoder(model, seed).state_dict() for seed in (0, 0, 1))
    assert first.keys() == model.encoder.state_dict().keys()
    assert torch.equal(first["backbone.conv1.weight"], again["backbone.conv1.weight"])
    for one in (other, model.encoder.state_dict()):
        assert not torch.equal(first["backbone.conv1.weight"], one["backbone.conv1.weight"])


def test_pixels_are_averaged_over_areas_of_at_most_32_squared() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = (images / 255).reshape(2, 32, 2, 32, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(2, -1)
    np.testing.assert_allclose(pixel_features(images), expected, atol=1e-6)
    assert pixel_features(images[:, :16, :16]).shape == (2, 16 * 16 * 3)


def test_a_class_with_one_label_and_a_single_label_in_all_are_budgets_too() -> None:
    random = np.random.default_rng(0)
    features, names = random.normal(size=(21, 6)).astype(np.float32), random.integers(0, 256, (21, 32), np.uint8)
    labels = np.array([0] * 10 + [1] * 10 + [2])
    probe = fit_probe(features, labels, names, 3, LabelDraw("0.1", subset(labels, names, "0.1", 0)), 4, 0)
    assert probe.labels == 3
    assert np.isfinite(ranked_classes(probe, features)).all()
    only = np.where(np.arange(21) == 20, 2, -1)
    alone = fit_probe(features, only, names, 3, LabelDraw("1.0", subset(only, names, "1.0", 0)), 4, 0)
    assert (ranked_classes(alone, features)[:, 0] == 2).all()


def test_the_penalty_is_chosen_by_patients_that_the_probe_has_not_seen() -> None:
    """Ten nearly equal images of each patient, whose features hardly show the class: image by image, a probe that knows
    each patient by heart is best; patient by patient, one that learns next to nothing."""
    random = np.random.default_rng(1)
    of_patient = np.repeat(np.arange(40), 10)
    features = random.normal(size=(40, 60))[of_patient] + 0.01 * random.normal(size=(400, 60))
    labels, features = (of_patient % 2).astype(np.int64), features.astype(np.float32)
    names = random.integers(0, 256, (400, 32), np.uint8)
    draw = LabelDraw("1.0", np.arange(400))
    by_image, by_patient = (fit_probe(features, labels, keys, 2, draw, 7, 0).l2 for keys in (names, names[of_patient]))
    assert by_image is not None
    assert by_patient is not None
    assert by_patient > 100 * by_image


def test_the_random_baseline_is_the_mean_of_its_draws() -> None:
    draws = [
        Accuracies(knn, {"0.1": knn + 1, "1.0": None}, {"0.1": knn + 9, "1.0": None}) for knn in (70.0, 71.0, 75.0)
    ]
    assert mean_accuracies(draws) == Accuracies(72.0, {"0.1": 73.0, "1.0": None}, {"0.1": 81.0, "1.0": None})


@pytest.mark.seconds
@pytest.mark.parametrize("test_images", [40, 0])
def test_the_map_shows_the_test_images_or_without_them_the_training_images(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, test_images: int
) -> None:
    fit_few_probes(workspace)
    shown: list[np.ndarray] = []
    monkeypatch.setattr(
        "simclr_core.evaluation.pictures.save_map", lambda path, features, labels, classes: shown.append(labels)
    )
    if not test_images:
        shutil.rmtree(workspace / "data" / "prepared" / "test")
        write_shards(workspace / "data" / "prepared" / "test", [], max_bytes=1000)
    linear_eval.run(workspace)
    split = "test" if test_images else "train"
    expected = EvaluationImages.of(ShardedImages(workspace / "data" / "prepared" / split)).labels
    assert [labels.tolist() for labels in shown] == [expected.tolist()]
