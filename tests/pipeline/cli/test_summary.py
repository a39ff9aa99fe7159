"""The summary says what the reports say, in the shape that was promised."""

import json

from pipeline.cli import summary
from pipeline.workspace import Workspace


def report(workspace: Workspace, name: str, content: dict[str, object], timing: bool = False) -> None:
    folder = workspace.scratch / "timings" if timing else workspace.reports
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_summary_gathers_every_report(workspace: Workspace) -> None:
    accuracies = {"knn_top1": 80.5, "linear_top1": {"0.01": 70.0, "0.1": 78.0, "1.0": 82.0}, "linear_top5": {}}
    images = {"ingested": 10, "accepted": 8, "converted": 1, "quarantined": {"truncated": 2}}
    drift = {"verdict": "drift", "batch": "0002"}
    report(workspace, "validation", {"images": images, "passed": True, "expectations": [], "drift": drift})
    report(workspace, "embedding_drift", {"verdict": "none", "batch": "0002"})
    report(workspace, "pretrain", {"epochs": 15, "loss_first": 5.5, "loss_last": 4.9, "finite": True})
    report(workspace, "linear_eval", {"simclr": accuracies, "random_init": accuracies, "pixels": accuracies})
    for fraction in (0.01, 0.1):
        report(
            workspace, f"finetune-{fraction}", {"fraction": fraction, "top1": 75.0, "ci95": 1.5, "scratch_top1": 60.0}
        )
    report(workspace, "export", {"cosine_min": 0.9999999, "max_abs": 1e-7, "bundle": "abcdef", "passed": True})
    report(workspace, "pretrain", {"seconds": 100.0, "images_per_second": 1234.5}, timing=True)
    report(workspace, "export", {"seconds": 9.0, "p50_ms": 0.8}, timing=True)

    shown = summary.write(workspace)
    written = json.loads((workspace.reports / "summary.json").read_text())
    assert written["images"]["quarantined"] == {"truncated": 2}
    assert written["pretrain"] == {"epochs": 15, "images_per_second": 1234.5, "loss_first": 5.5, "loss_last": 4.9}
    assert written["evaluation"]["simclr"] == {"knn_top1": 80.5, "linear_top1": accuracies["linear_top1"]}
    assert written["evaluation"].keys() == {"simclr", "random_init", "pixels"}
    assert written["finetune"] == {
        fraction: {"top1": 75.0, "ci95": 1.5, "scratch_top1": 60.0} for fraction in ("0.01", "0.1")
    }
    assert written["onnx"] == {"cosine_min": 0.9999999, "max_abs": 1e-7, "p50_ms": 0.8}
    assert written["bundle"] == "abcdef"
    assert written["seconds"]["pretrain"] == 100.0
    assert written["drift"] == {"images": "drift", "embeddings": "none"}
    assert "10 ingested, 8 accepted" in shown
    assert "drift       drift (images), none (embeddings)" in shown
    assert "75.0 ± 1.5" in shown


def test_what_was_never_run_is_null_and_shown_as_a_dash(workspace: Workspace) -> None:
    images = {"ingested": 1, "accepted": 1, "converted": 0, "quarantined": {}}
    report(workspace, "validation", {"images": images, "passed": True, "expectations": []})
    shown = summary.write(workspace)
    written = json.loads((workspace.reports / "summary.json").read_text())
    assert written["evaluation"]["pixels"] == {"knn_top1": None, "linear_top1": None}
    assert written["onnx"]["p50_ms"] is None
    assert "quarantine  none" in shown
    assert "drift       - (images), - (embeddings)" in shown
