"""The stages on images with several labels: what they measure, leave, and refuse."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

import deploy
from deploy.artifact import publish
from simclr_core.data.label_sets import rarest
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.data.subsets import LabelDraw, subset
from simclr_core.evaluation import compare, finetune, linear_eval
from simclr_core.evaluation.images import EvaluationImages, missing_labels
from simclr_core.evaluation.linear_probe import fit_probe, probe_logits
from simclr_core.evaluation.multi_label.classifiers import vote
from simclr_core.evaluation.multi_label.images import LabelSets
from simclr_core.evaluation.multi_label.images import missing_labels as missing
from simclr_core.export import export
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import save_model
from simclr_core.monitoring.diagnostics import KNN_NEIGHBORS, KNN_TEMPERATURE, PROBE_L2, choose_monitor
from tests.conftest import CLASSES, write_prepared
from tests.sentences import assert_plain
from tests.simclr_core.conftest import CARD, SETS, put_label_sets
from tests.simclr_core.pixel_encoders import CANDIDATE, mixing, put_bundle, put_champion


def change(workspace: Path, block: str, **values: object) -> None:
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params[block] |= values
    path.write_text(yaml.safe_dump(params))


def report(workspace: Path, name: str = "linear_eval") -> dict[str, Any]:
    return json.loads((workspace / "reports" / f"{name}.json").read_text())


def make(root: Path, unlabeled: tuple[str, ...] = ()) -> Path:
    workspace = write_prepared(root)
    torch.manual_seed(7)
    with publish(workspace / "models" / "pretrained") as work:
        save_model(work, build_encoder("resnet10", 0.125, "compact"), {}, CARD | {"data_digest": "0" * 64})
    put_label_sets(workspace, unlabeled)
    change(workspace, "linear_eval", labels_per_class=[2], draws=2, l2_count=4)
    return workspace


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the outputs of linear_eval. Who changes something takes a copy."""
    workspace = make(tmp_path_factory.mktemp("evaluated"))
    linear_eval.run(workspace)
    return workspace


@pytest.fixture
def workspace(tmp_path: Path, evaluated: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "copy"))


@pytest.fixture(scope="module")
def truth(evaluated: Path) -> np.ndarray:
    return LabelSets.of(ShardedImages(evaluated / "data/prepared/test")).targets


def test_what_is_learned_are_the_sets_of_the_labeled_images(evaluated: Path) -> None:
    images = ShardedImages(evaluated / "data/prepared/train")
    found = LabelSets.of(images)
    assert images.label_sets is not None
    assert found.targets.shape == (48, 4)
    for row, position in zip(found.targets, found.images.positions, strict=True):
        assert np.array_equal(row, images.label_sets[position] == 1)
        assert row.tolist() in SETS.tolist()
    assert np.array_equal(found.images.labels, rarest(found.targets))
    assert not EvaluationImages.of(images).labeled  # nothing takes a number for the class of an image


@pytest.mark.seconds
def test_what_linear_evaluation_reports_is_what_its_predictions_give(evaluated: Path, truth: np.ndarray) -> None:
    found, rows = report(evaluated), pq.read_table(evaluated / "reports/predictions.parquet").to_pylist()
    several = found["multi_label"]
    assert (found["reason"], found["classes"], found["test_images"]) == (None, 4, 40)
    assert found["simclr"] == {
        "knn_top1": None,
        "linear_top1": {"0.1": None, "1.0": None},
        "linear_top5": {"0.1": None, "1.0": None},
    }
    assert several["labels_per_image"] == pytest.approx(truth.sum() / 40, abs=1e-3)
    assert several["prevalence"] == pytest.approx(100 * truth.mean(), abs=1e-3)
    names = np.array(CLASSES)
    assert [row["labels"] for row in rows] == [names[row].tolist() for row in truth]
    for name, ranking in (("knn", "knn_scores"), ("probe", "probe_log_odds")):
        scores, ranked = (np.array([row[column] for row in rows]) for column in (f"{name}_scores", ranking))
        reached = several["scores"][name]
        expected = [100 * average_precision_score(truth[:, one], ranked[:, one]) for one in range(4)]
        assert reached["mean_average_precision"]["value"] == pytest.approx(np.mean(expected), abs=2e-3)
        assert [row[name] for row in rows] == [names[row >= 0.5].tolist() for row in scores]
        for one, label in enumerate(CLASSES):
            of_class = reached["per_class"][label]
            assert of_class["average_precision"] == pytest.approx(expected[one], abs=2e-3)
            assert of_class["images"] == truth[:, one].sum()
            assert of_class["answers"] == (scores[:, one] >= 0.5).sum()
        interval = reached["mean_average_precision"]
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert set(several["gains"][name]) == {"random_init", "pixels", "prevalence"}
        chance = several["gains"][name]["prevalence"]
        assert (chance["other"], chance["trained"]) == (several["prevalence"], interval["value"])
    np.testing.assert_allclose(scores, expit(ranked), rtol=1e-12)
    assert {row["split"] for row in rows} == {"test"}
    with (evaluated / "reports/confusion.csv").open() as file:
        matrix = Counter((row["actual"], row["predicted"]) for row in csv.DictReader(file))
    for label, of_class in several["scores"]["probe"]["per_class"].items():
        assert matrix[label, label] == of_class["right"]
        assert matrix[label, "(nothing)"] == of_class["images"] - of_class["right"]
        assert matrix["(nothing)", label] == of_class["answers"] - of_class["right"]


@pytest.mark.seconds
def test_budgets_are_shares_and_numbers_of_the_rarest_classes(evaluated: Path) -> None:
    found = report(evaluated)["multi_label"]["budgets"]
    train = LabelSets.of(ShardedImages(evaluated / "data/prepared/train"))
    strata = train.images.labels
    assert {name: one["labels"] for name, one in found.items()} == {
        "0.1": len(subset(strata, train.images.keys, "0.1", 0)),
        "1.0": 48,
        "2 per class": 2 * len(np.unique(strata)),
    }
    assert {name: one["draws"] for name, one in found.items()} == {"0.1": 2, "1.0": 1, "2 per class": 2}
    whole = report(evaluated)["multi_label"]["scores"]["probe"]["mean_average_precision"]["value"]
    assert found["1.0"]["simclr"]["value"] == whole


@pytest.mark.seconds
def test_the_published_probe_says_that_its_classes_do_not_exclude_each_other(evaluated: Path) -> None:
    card = json.loads((evaluated / "models/probe/probe.json").read_text())
    assert (card["multi_label"], card["classes"], card["labels"]) == (True, list(CLASSES), 48)
    assert set(card["metrics"]) == {"knn_mean_average_precision", "probe_mean_average_precision"}


@pytest.mark.seconds
def test_the_same_inputs_give_the_same_bytes(workspace: Path) -> None:
    names = ("reports/linear_eval.json", "reports/predictions.parquet", "models/probe/probe.json")
    before = [(workspace / name).read_bytes() for name in names]
    linear_eval.run(workspace)
    assert [(workspace / name).read_bytes() for name in names] == before


@pytest.mark.seconds
def test_without_test_images_each_fold_is_answered_by_the_others(tmp_path: Path) -> None:
    workspace = make(tmp_path, unlabeled=("test",))
    change(workspace, "linear_eval", labels_per_class=[], fractions=["1.0"])
    linear_eval.run(workspace)
    found = report(workspace)
    assert (found["estimate"], found["out_of_fold"]) == ("out_of_fold", {"images": 48, "folds": 5})
    rows = pq.read_table(workspace / "reports/predictions.parquet").to_pylist()
    assert (len(rows), {row["split"] for row in rows}) == (48, {"out_of_fold"})
    assert found["labels"] == {"1.0": 48}  # of what is published
    assert found["multi_label"]["budgets"]["1.0"]["labels"] < 48


@pytest.mark.seconds
def test_without_labels_the_report_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = make(tmp_path, unlabeled=("train", "test"))
    linear_eval.run(workspace)
    found = report(workspace)
    assert found["reason"] == "no labeled training images; name their labels in inbox/labels.csv"
    assert found["multi_label"] is None
    assert f"linear_eval: no accuracies: {found['reason']}" in capsys.readouterr().err
    assert pq.read_table(workspace / "reports/predictions.parquet").num_rows == 0
    assert_plain(found["reason"])


def test_labels_that_tell_no_images_apart_are_a_reason() -> None:
    one = np.array([[True, False]] * 3)

    class Some:
        labeled = 3

    same = LabelSets(Some(), one)  # type: ignore[arg-type]
    varied = LabelSets(Some(), np.array([[True, False], [True, True], [True, False]]))  # type: ignore[arg-type]
    assert "all labeled training images have the same labels" in str(missing(same, varied))
    assert "no test image has a class that some training images have" in str(missing(varied, same))
    assert missing(varied, varied) is None


def test_what_takes_one_label_for_each_image_says_so(evaluated: Path) -> None:
    train, test = (EvaluationImages.of(ShardedImages(evaluated / "data/prepared" / name)) for name in ("train", "test"))
    assert missing_labels(train, test) == "an image may have several labels, and this takes one label for each"


@pytest.mark.seconds
def test_the_monitor_of_pretraining_measures_mean_average_precision(evaluated: Path) -> None:
    """Half of the labeled images answer for the other half; scikit-learn is the oracle."""
    images = ShardedImages(evaluated / "data/prepared/train")
    monitor = choose_monitor(images, read_card(evaluated / "data/prepared"), CANDIDATE, 60, seed=0)
    assert monitor.sets is not None
    rows = np.flatnonzero((monitor.sets >= 0).all(axis=1))
    assert (len(rows), monitor.judged) == (48, 24)
    expected_names = ["|".join(sorted(np.array(CLASSES)[row == 1])) or "-" for row in monitor.sets[rows]]
    assert [monitor.names[row] for row in rows] == expected_names
    assert {monitor.names[row] for row in range(len(monitor.names)) if row not in rows} <= {"no label"}
    bank, queries, sets = rows[::2], rows[1::2], monitor.sets == 1
    features = np.random.default_rng(0).normal(size=(len(monitor.sets), 6)).astype(np.float32)
    features[:, :4] += sets
    found = monitor.accuracies(torch.from_numpy(features))
    votes = vote(features[bank], sets[bank], features[queries], KNN_NEIGHBORS, KNN_TEMPERATURE)
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    scores = [
        LogisticRegression(C=1 / (PROBE_L2 * len(bank)), tol=1e-8, max_iter=1000)
        .fit(inputs[bank], sets[bank, one])
        .decision_function(inputs[queries])
        for one in range(4)
    ]
    for name, answers in (("knn_top1", votes), ("probe_top1", np.stack(scores, axis=1))):
        expected = 100 * average_precision_score(sets[queries], answers, average="macro")
        assert found[name] == pytest.approx(expected, abs=0.5 if name == "probe_top1" else 1e-3), name


@pytest.mark.seconds
def test_candidate_and_champion_are_compared_by_mean_average_precision(tmp_path: Path) -> None:
    workspace = write_prepared(tmp_path)
    put_label_sets(workspace)
    put_bundle(workspace / "models" / "bundle", mixing(1), CANDIDATE)
    put_champion(workspace, mixing(2))
    compare.run(workspace)
    found = report(workspace, "compare")
    sets = {name: LabelSets.of(ShardedImages(workspace / "data/prepared" / name)) for name in ("train", "test")}
    encoder = deploy.load(workspace / "models" / "bundle")
    bank, queries = (
        encoder.embed([one.images.images.read(int(position)) for position in one.images.positions]).vectors
        for one in sets.values()
    )
    train, truth = sets["train"], sets["test"].targets
    draw = LabelDraw("1.0", subset(train.images.labels, train.images.keys, "1.0", 0))
    probe = fit_probe(bank, train.targets, train.images.keys, 4, draw, 2, 0)
    answers = {"knn": vote(bank, train.targets, queries, 5, 0.1), "probe": probe_logits(probe, queries)}
    for name, scores in answers.items():
        expected = 100 * np.mean([average_precision_score(truth[:, one], scores[:, one]) for one in range(4)])
        assert found["precision"][name] == found["gains"][name]["trained"] == pytest.approx(expected, abs=2e-3)
    assert found["knn"]["candidate"] is None
    assert found["old_index"]["comparable"]
    assert found["old_index"]["old_queries"] == found["gains"]["knn"]["other"]


@pytest.mark.seconds
def test_the_first_release_has_a_precision_and_no_gain(tmp_path: Path) -> None:
    workspace = write_prepared(tmp_path)
    put_label_sets(workspace)
    put_bundle(workspace / "models" / "bundle", mixing(1), CANDIDATE)
    put_champion(workspace, None)
    compare.run(workspace)
    found = report(workspace, "compare")
    assert (set(found["precision"]), found["gains"]) == ({"knn", "probe"}, {})


@pytest.mark.seconds
def test_fine_tuning_learns_every_class_for_itself(workspace: Path) -> None:
    change(workspace, "finetune", seeds=[0, 1], min_steps=60, epochs=1)
    finetune.run(workspace, "1.0")
    found = report(workspace, "finetune-1.0")
    assert (found["top1"], found["paired"], found["labels"], found["test_images"]) == (None, None, 48, 40)
    tuned = found["multi_label"]
    prevalence = report(workspace)["multi_label"]["prevalence"]
    assert tuned["simclr"]["value"] > prevalence + 10
    assert len(tuned["gain_per_seed"]) == 2
    assert tuned["gain"]["difference"] == pytest.approx(np.mean(tuned["gain_per_seed"]), abs=2e-3)
    card = json.loads((workspace / "models/finetuned/1.0/model.json").read_text())
    assert card["multi_label"] is True
    assert card["metrics"]["mean_average_precision"] == tuned["simclr"]["value"]


@pytest.mark.seconds
@pytest.mark.parametrize("source", ["pretrained", "finetuned"])
def test_the_bundle_gives_each_class_a_probability(workspace: Path, source: str) -> None:
    if source == "finetuned":
        change(workspace, "finetune", seeds=[0], min_steps=2, epochs=1)
        finetune.run(workspace, "1.0")
    path = workspace / "params.yaml"
    path.write_text(
        yaml.safe_dump(yaml.safe_load(path.read_text()) | {"export": {"source": source, "variants": ["fp32", "int8"]}})
    )
    export.run(workspace)
    encoder = deploy.load(workspace / "models" / "bundle")
    assert (encoder.info["multi_label"], encoder.info["format_version"]) == (True, 3)
    test = ShardedImages(workspace / "data/prepared/test")
    (prediction,) = encoder.classify([test.read(0)], top_k=4)
    assert prediction.assigned == tuple(
        label for label, likely in zip(prediction.labels, prediction.probabilities, strict=True) if likely >= 0.5
    )
    text = (workspace / "models/bundle/MODEL_CARD.md").read_text()
    assert "An image may have several of the classes, or none" in text
    found = report(workspace, "export")
    assert found["results"]["test_images"] == 40
    assert found["variants"]["fp32"]["knn_top1"] is None
    assert found["variants"]["fp32"]["knn_precision"] > 0
    said = str(found["left_out"].get("int8") or found["variants"]["int8"]["undecided"])
    assert re.search("_precision .* points under fp32|a loss of .*_precision up to|mean cosine", said), said
    if source == "pretrained":
        rows = pq.read_table(workspace / "reports/predictions.parquet").to_pylist()
        scores, temperature = np.array(rows[0]["probe_scores"]), found["results"]["temperature"]
        expected = dict(zip(CLASSES, expit(logit(scores) / temperature), strict=True))
        for label, likely in zip(prediction.labels, prediction.probabilities, strict=True):
            assert likely == pytest.approx(expected[label], abs=1e-3)
