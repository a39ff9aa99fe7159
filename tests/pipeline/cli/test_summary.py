"""The summary says what the reports say, in the shape that was promised."""

import json
from dataclasses import asdict, replace

from pipeline.cli import summary
from pipeline.reports import ImageCounts
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.evaluation_reports import Estimate
from simclr_core.reporter import record_timing
from tests.reports import EMBEDDING_DRIFT, EXPORT, FINETUNE, FOLDED, LINEAR_EVAL, PRETRAIN, SEVERAL, TUNED, VALIDATION


def test_summary_gathers_every_report(workspace: Workspace) -> None:
    root = workspace.root
    for report in (VALIDATION, replace(EMBEDDING_DRIFT, verdict="none"), PRETRAIN, LINEAR_EVAL, EXPORT):
        reports.write(root, report)
    for fraction in ("0.1", "0.01"):
        reports.write(root, replace(FINETUNE, fraction=fraction))
    record_timing("pretrain", workspace=root, seconds=100.0, images_per_second=1234.5)
    record_timing("export", workspace=root, seconds=9.0, p50_ms=0.8)

    shown = summary.write(workspace)
    written = json.loads((workspace.reports / "summary.json").read_text())
    assert list(written) == [
        "images",
        "drift",
        "pretrain",
        "evaluation",
        "estimate",
        "estimated_on",
        "mean_average_precision",
        "finetune",
        "labels_saved",
        "onnx",
        "bundle",
        "gates",
        "seconds",
    ]
    assert written["images"] == asdict(VALIDATION.images)
    assert written["drift"] == {"images": "drift", "embeddings": "none"}
    assert written["pretrain"] == {"epochs": 40, "images_per_second": 1234.5, "loss_first": 5.1, "loss_last": 4.2}
    assert written["evaluation"] == {
        "simclr": {"knn_top1": 82.8, "linear_top1": {"0.01": 60.0, "0.1": 70.0}},
        "random_init": {"knn_top1": 70.1, "linear_top1": {"0.01": 50.0, "0.1": 65.0}},
        "pixels": {"knn_top1": None, "linear_top1": {"0.01": None, "0.1": None}},
    }
    top1 = {"top1": 70.0, "ci95": 1.0, "scratch_top1": 60.0}
    assert list(written["finetune"].items()) == [("0.01", top1), ("0.1", top1)]
    assert written["onnx"] == {"cosine_min": 0.999999, "max_abs": 1e-05, "p50_ms": 0.8}
    assert written["bundle"] == EXPORT.bundle
    assert list(written["seconds"].items()) == [
        ("validate", None),
        ("prepare", None),
        ("embedding_drift", None),
        ("initial", None),
        ("pretrain", 100.0),
        ("linear_eval", None),
        ("finetune-0.01", None),
        ("finetune-0.1", None),
        ("export", 9.0),
        ("compare", None),
        ("explore", None),
    ]
    assert "12 ingested, 9 accepted" in shown
    assert "drift       drift (images), none (embeddings)" in shown
    assert "70.0 ± 1.0" in shown
    assert "top-1 in percent, of 2,000 test images" in shown


def test_it_begins_with_what_labels_are_worth(workspace: Workspace) -> None:
    [one] = LINEAR_EVAL.budgets.values()
    better = replace(one, labels=800, simclr=Estimate(80.0, 78.0, 82.0), pixels=Estimate(70.0, 68.0, 72.0))
    reports.write(workspace.root, replace(LINEAR_EVAL, budgets={"0.01": one, "1.0": better}))
    shown = summary.write(workspace)
    sentence = json.loads((workspace.reports / "summary.json").read_text())["labels_saved"]["sentence"]
    assert sentence.startswith("20 labels with this encoder are worth 42 labels without it (95 % interval: ")
    assert shown.splitlines()[:2] == [sentence, ""]


def test_of_images_with_several_labels_it_has_mean_average_precisions(workspace: Workspace) -> None:
    for report in (VALIDATION, SEVERAL, TUNED):
        reports.write(workspace.root, report)
    shown = summary.write(workspace)
    assert json.loads((workspace.reports / "summary.json").read_text())["mean_average_precision"] == {
        "simclr": {"knn": 60.0, "probe": 60.0},
        "random_init": {"knn": 40.0, "probe": 40.0},
        "pixels": {"knn": 45.5, "probe": 45.5},
        "prevalence": {"knn": 20.0, "probe": 20.0},
        "finetune-0.01": {"simclr": 61.5, "scratch": 50.0},
    }
    assert "mean average precision in percent, of 2,000 test images" in shown
    assert [line.split()[-2:] for line in shown.splitlines() if line.startswith("chance")] == [["20.0", "20.0"]]
    assert [line.split()[-1] for line in shown.splitlines() if "of the labels" in line] == ["50.0"]
    assert "top-1" not in shown


def test_accuracies_out_of_fold_say_so(workspace: Workspace) -> None:
    reports.write(workspace.root, VALIDATION)
    reports.write(workspace.root, FOLDED)
    assert (
        "top-1 in percent, of 40 labeled training images, estimated out of fold (5 folds); the encoder was pretrained "
        "on them too, without their labels"
    ) in summary.write(workspace)
    assert json.loads((workspace.reports / "summary.json").read_text())["estimate"] == "out_of_fold"


def test_shares_of_the_labels_are_those_that_were_trained_on(workspace: Workspace) -> None:
    reports.write(workspace.root, VALIDATION)
    reports.write(workspace.root, replace(FINETUNE, fraction="0.05"))
    assert "5% of the labels" in summary.write(workspace)
    graph = workspace.root / "dvc.yaml"
    given = graph.read_text()
    graph.write_text(given.replace('fraction: ["0.01", "0.1"]', 'fraction: ["0.05"]'))
    assert graph.read_text() != given
    assert list(summary.collect(workspace).seconds)[-4:] == ["finetune-0.05", "export", "compare", "explore"]


def test_what_was_never_run_is_null_and_shown_as_a_dash(workspace: Workspace) -> None:
    reports.write(workspace.root, replace(VALIDATION, images=ImageCounts(1, 1, 0, {}), drift=None))
    shown = summary.write(workspace)
    written = json.loads((workspace.reports / "summary.json").read_text())
    assert written["evaluation"]["pixels"] == {"knn_top1": None, "linear_top1": None}
    assert written["onnx"]["p50_ms"] is None
    assert "quarantine  none" in shown
    assert "drift       - (images), - (embeddings)" in shown
