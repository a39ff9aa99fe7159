"""What a whole run gave: ``reports/summary.json`` for a machine, a table for a person.

Everything is read from the stages' reports, so that nothing here can disagree with what the gates saw.
"""

import json
from pathlib import Path
from typing import Any

from deploy.artifact import write_atomically
from pipeline.workspace import Workspace

STAGES = ("validate", "prepare", "pretrain", "linear_eval", "finetune-0.01", "finetune-0.1", "export")
FEATURES = {"simclr": "SimCLR", "random_init": "random encoder", "pixels": "raw pixels"}


def write(workspace: Workspace) -> str:
    """Write the JSON and return the table."""
    summary = collect(workspace)
    write_atomically(workspace.reports / "summary.json", json.dumps(summary, indent=2) + "\n")
    return table(summary)


def collect(workspace: Workspace) -> dict[str, Any]:
    """Gather the reports; accuracies are percent, durations seconds, and what was never run is null."""
    reports = {path.stem: _read(path) for path in workspace.reports.glob("*.json")}
    timings = {path.stem: _read(path) for path in (workspace.scratch / "timings").glob("*.json")}
    pretrain, export = reports.get("pretrain", {}), reports.get("export", {})
    evaluation = reports.get("linear_eval", {})
    return {
        "images": reports.get("validation", {}).get("images"),
        "drift": {
            "images": reports.get("validation", {}).get("drift", {}).get("verdict"),
            "embeddings": reports.get("embedding_drift", {}).get("verdict"),
        },
        "pretrain": {
            "epochs": pretrain.get("epochs"),
            "images_per_second": timings.get("pretrain", {}).get("images_per_second"),
            "loss_first": pretrain.get("loss_first"),
            "loss_last": pretrain.get("loss_last"),
        },
        "evaluation": {
            name: {key: evaluation.get(name, {}).get(key) for key in ("knn_top1", "linear_top1")} for name in FEATURES
        },
        "finetune": {
            str(report["fraction"]): {key: report[key] for key in ("top1", "ci95", "scratch_top1")}
            for name, report in sorted(reports.items())
            if name.startswith("finetune-")
        },
        "onnx": {
            "cosine_min": export.get("cosine_min"),
            "max_abs": export.get("max_abs"),
            "p50_ms": timings.get("export", {}).get("p50_ms"),
        },
        "bundle": export.get("bundle"),
        "seconds": {name: timings.get(name, {}).get("seconds") for name in STAGES},
    }


def table(summary: dict[str, Any]) -> str:
    """The same for a person."""
    images, pretrain, onnx = summary["images"], summary["pretrain"], summary["onnx"]
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(images["quarantined"].items())) or "none"
    fractions = list(summary["evaluation"]["simclr"]["linear_top1"] or ())
    lines = [
        f"images      {images['ingested']:,} ingested, {images['accepted']:,} accepted",
        f"quarantine  {refused}",
        "drift       " + ", ".join(f"{verdict or '-'} ({of})" for of, verdict in summary["drift"].items()),
        f"pretraining {pretrain['epochs']} epochs, loss {_number(pretrain['loss_first'], 3)} to "
        f"{_number(pretrain['loss_last'], 3)}, {_number(pretrain['images_per_second'], 0)} images/s",
        "",
        "top-1 on the test images, percent",
        f"{'frozen features':<26}{'kNN':>8}" + "".join(f"{_percent(one) + ' linear':>13}" for one in fractions),
    ]
    for name, title in FEATURES.items():
        result = summary["evaluation"][name]
        linear = result["linear_top1"] or {}
        cells = "".join(f"{_number(linear.get(one)):>13}" for one in fractions)
        lines.append(f"{title:<26}{_number(result['knn_top1']):>8}{cells}")
    lines += ["", f"{'fine-tuned':<26}{'SimCLR':>14}{'from scratch':>14}"]
    for fraction, result in summary["finetune"].items():
        top1 = f"{_number(result['top1'])} ± {_number(result['ci95'])}"
        lines.append(f"{_percent(fraction) + ' of the labels':<26}{top1:>14}{_number(result['scratch_top1']):>14}")
    lines += [
        "",
        f"onnx        cosine to torch at least {onnx['cosine_min']}, {_number(onnx['p50_ms'], 2)} ms an image",
        "seconds     " + ", ".join(f"{name} {_number(seconds)}" for name, seconds in summary["seconds"].items()),
        "look at     reports/validation.html, reports/*.png, and `simclr ui`",
    ]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _percent(fraction: str) -> str:
    return f"{float(fraction):.0%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
