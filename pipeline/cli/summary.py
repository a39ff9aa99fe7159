"""What a whole run gave: ``reports/summary.json`` for a machine, a table for a person.

Everything is read from the stages' reports, so that nothing here can disagree with what the gates saw.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from deploy.artifact import write_atomically
from deploy.plural import counted
from pipeline.gates.all_gates import verdicts
from pipeline.reports import EmbeddingDriftReport, ImageCounts, ValidationReport
from pipeline.run_report.charts import FEATURES
from pipeline.run_report.facts import read_timings
from pipeline.run_report.labels_saved import LabelsSaved, find_labels_saved
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.evaluation_reports import (
    Accuracies,
    FinetunePrecision,
    FinetuneReport,
    LinearEvalReport,
    MultiLabelResults,
    finetune_name,
)
from simclr_core.reports import ExportReport, PretrainReport

START = "weights, unadapted"


@dataclass(frozen=True)
class Drift:
    """The verdicts on the newest batch, by what was looked at."""

    images: str | None
    embeddings: str | None


@dataclass(frozen=True)
class Pretraining:
    epochs: int | None
    images_per_second: float | None
    loss_first: float | None
    loss_last: float | None


@dataclass(frozen=True)
class FrozenFeatures:
    knn_top1: float | None
    linear_top1: dict[str, float | None] | None


@dataclass(frozen=True)
class FineTuning:
    top1: float | None
    ci95: float | None
    scratch_top1: float | None


@dataclass(frozen=True)
class Onnx:
    cosine_min: float | None
    max_abs: float | None
    p50_ms: float | None


@dataclass(frozen=True)
class Summary:
    """As in the file: accuracies are percent, durations seconds, and what was never run, or cannot be read, is None."""

    images: ImageCounts | None
    drift: Drift
    pretrain: Pretraining
    evaluation: dict[str, FrozenFeatures]
    estimate: str | None  # test or out_of_fold: what the accuracies of frozen features are of
    estimated_on: str | None  # which images these are
    mean_average_precision: dict[str, dict[str, float]]  # where images have several labels: by features and classifier
    finetune: dict[str, FineTuning]  # by share of the labels
    labels_saved: LabelsSaved | None
    onnx: Onnx
    bundle: str | None
    gates: dict[str, str]  # by name: passed, refused, undecided, not applicable, or not judged
    seconds: dict[str, float | None]  # by stage


def write(workspace: Workspace) -> str:
    """Write the JSON and return the table."""
    summary = collect(workspace)
    write_atomically(workspace.reports / "summary.json", json.dumps(asdict(summary), indent=2) + "\n")
    return table(summary)


def collect(workspace: Workspace) -> Summary:
    """Gather the reports."""
    root = workspace.root
    validation, embedding = reports.known(root, ValidationReport), reports.known(root, EmbeddingDriftReport)
    pretrain, evaluation = reports.known(root, PretrainReport), reports.known(root, LinearEvalReport)
    finetune = reports.known_each(root, FinetuneReport)
    shares = {one.fraction: FineTuning(one.top1, one.ci95, one.scratch_top1) for one in finetune}
    export = reports.known(root, ExportReport)
    unknown = Accuracies(None, {}, {})
    features: dict[str, Accuracies] = {name: getattr(evaluation, name, unknown) for name in FEATURES}
    if evaluation and evaluation.start:
        features["start"] = evaluation.start
    timings = read_timings(root)
    return Summary(
        images=validation.images if validation else None,
        drift=Drift(
            validation.drift.verdict if validation and validation.drift else None,
            embedding.verdict if embedding else None,
        ),
        pretrain=Pretraining(
            pretrain.epochs if pretrain else None,
            timings.get("pretrain", {}).get("images_per_second"),
            pretrain.loss_first if pretrain else None,
            pretrain.loss_last if pretrain else None,
        ),
        evaluation={name: FrozenFeatures(one.knn_top1, one.linear_top1 or None) for name, one in features.items()},
        estimate=evaluation.estimate if evaluation else None,
        estimated_on=evaluation.asked if evaluation and not evaluation.reason else None,
        mean_average_precision={
            **(precisions(evaluation.multi_label) if evaluation and evaluation.multi_label else {}),
            **{one.name: tuned(one.multi_label) for one in finetune if one.multi_label},
        },
        finetune=shares,
        labels_saved=find_labels_saved(evaluation, finetune),
        onnx=Onnx(
            export.cosine_min if export else None,
            export.max_abs if export else None,
            timings.get("export", {}).get("p50_ms"),
        ),
        bundle=export.bundle if export else None,
        gates={name: verdict.outcome for name, verdict in verdicts(workspace).items()},
        seconds={stage: numbers.get("seconds") for stage, numbers in timings.items()},
    )


def precisions(found: MultiLabelResults) -> dict[str, dict[str, float]]:
    """Of the trained features and of each baseline, by classifier."""
    trained = {one: scores.mean_average_precision.value for one, scores in found.scores.items()}
    baselines: dict[str, dict[str, float]] = {}
    for classifier, gains in found.gains.items():
        for name, gain in gains.items():
            baselines.setdefault(name, {})[classifier] = gain.other
    return {"simclr": trained, **baselines}


def tuned(found: FinetunePrecision) -> dict[str, float]:
    """Of networks that began with the encoder, and from scratch."""
    return {"simclr": found.simclr.value, "scratch": found.scratch.value}


def table(summary: Summary) -> str:
    """The same for a person."""
    images, pretrain, onnx = summary.images or ImageCounts(0, 0, 0, {}), summary.pretrain, summary.onnx
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(images.quarantined.items())) or "none"
    epochs = "-" if pretrain.epochs is None else counted(pretrain.epochs, "epoch")
    saved = summary.labels_saved
    lines = [
        *((saved.sentence, "") if saved else ()),
        f"images      {images.ingested:,} ingested, {images.accepted:,} accepted",
        f"quarantine  {refused}",
        "drift       " + ", ".join(f"{verdict or '-'} ({of})" for of, verdict in asdict(summary.drift).items()),
        f"pretraining {epochs}, loss {_number(pretrain.loss_first, 3)} to "
        f"{_number(pretrain.loss_last, 3)}, {_number(pretrain.images_per_second, 0)} images/s",
        "",
        *(_precision_lines(summary) if summary.mean_average_precision else _accuracy_lines(summary)),
    ]
    lines += ["", f"{'fine-tuned':<26}{'SimCLR':>14}{'from scratch':>14}"]
    for fraction, result in summary.finetune.items():
        if several := summary.mean_average_precision.get(finetune_name(fraction)):
            result = FineTuning(several["simclr"], None, several["scratch"])
        top1 = f"{_number(result.top1)} ± {_number(result.ci95)}"
        lines.append(f"{_percent(fraction) + ' of the labels':<26}{top1:>14}{_number(result.scratch_top1):>14}")
    lines += [
        "",
        f"onnx        cosine to torch at least {_number(onnx.cosine_min, 4)}, {_number(onnx.p50_ms, 2)} ms an image",
        "gates       " + ", ".join(f"{name} {outcome}" for name, outcome in summary.gates.items()),
        "seconds     "
        + ", ".join(f"{name} {seconds:,.1f}" for name, seconds in summary.seconds.items() if seconds is not None),
        "look at     reports/run.html, reports/validation.html, reports/*.png, and `simclr ui`",
    ]
    return "\n".join(lines)


def _accuracy_lines(summary: Summary) -> Iterator[str]:
    fractions = list(summary.evaluation["simclr"].linear_top1 or ())
    yield f"top-1 in percent, of {summary.estimated_on or 'the test images'}"
    yield f"{'frozen features':<26}{'kNN':>8}" + "".join(f"{_percent(one) + ' linear':>13}" for one in fractions)
    for name, features in summary.evaluation.items():
        title = FEATURES.get(name, START)
        cells = "".join(f"{_number((features.linear_top1 or {}).get(one)):>13}" for one in fractions)
        yield f"{title:<26}{_number(features.knn_top1):>8}{cells}"


def _precision_lines(summary: Summary) -> Iterator[str]:
    yield f"mean average precision in percent, of {summary.estimated_on or 'the test images'}"
    yield f"{'frozen features':<26}{'kNN':>8}{'linear':>13}"
    titles = FEATURES | {"prevalence": "chance"}
    for name, one in summary.mean_average_precision.items():
        if name.startswith("finetune"):
            continue
        yield f"{titles.get(name, START):<26}{_number(one.get('knn')):>8}{_number(one.get('probe')):>13}"


def _percent(fraction: str) -> str:
    return f"{float(fraction):.0%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
