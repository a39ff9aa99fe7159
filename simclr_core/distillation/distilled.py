"""What distillation leaves behind: ``models/distilled`` and its reports, or the reason why there is no student."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from deploy.artifact import publish
from simclr_core import reports
from simclr_core.config import DistillConfig
from simclr_core.distillation.report import DistillReport
from simclr_core.distillation.teacher import Teacher
from simclr_core.evaluation.calibration import log_odds
from simclr_core.evaluation.images import (
    count_pairs,
    missing_labels,
    outputs,
    percent,
    read_splits,
)
from simclr_core.evaluation.scores.classification import score
from simclr_core.launch import Member
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, save_model
from simclr_core.monitoring.diagnostics import Record
from simclr_core.monitoring.history import write_table

OFF = (
    "distill.teacher is null: distillation pays where the teacher is better than the student would be alone, as with "
    "few labels and many images without any, or where a smaller encoder is wanted; name a teacher to switch it on"
)


def publish_nothing(workspace: Path) -> str:
    """The same small directory and report each time; returns the reason."""
    with publish(workspace / "models" / "distilled", replace=True) as work:
        (work / "reason.json").write_text(json.dumps({"reason": OFF}) + "\n", encoding="utf-8")
    reports.write(workspace, DistillReport(teacher=None, reason=OFF))
    return OFF


def examine(
    report: DistillReport, workspace: Path, network: nn.Sequential, teacher: Teacher, model: Model, member: Member
) -> DistillReport:
    """The report with what student and teacher say of the test images; ``model`` has the normalization of both."""
    if not teacher.has_classes:
        return replace(report, reason="the teacher has no classes; simclr_core linear_eval judges encoders")
    train, test = read_splits(workspace / "data" / "prepared")
    if missing := missing_labels(train, test):
        return replace(report, reason=missing)
    alone = Member(0, 1, member.device)
    logits, said = outputs([network, teacher.network], test, model, alone)
    answers, taught = logits.argmax(axis=1), said.argmax(axis=1)
    right, known = answers == test.labels, taught == test.labels
    return replace(
        report,
        top1=percent(right),
        teacher_top1=percent(known),
        agreement=percent(answers == taught),
        test_images=test.labeled,
        paired=count_pairs([(right, known)]),
        scores=score(log_odds(logits), test.labels, answers, train.labels, model.card["classes"]),
    )


def publish_distilled(
    workspace: Path,
    config: DistillConfig,
    network: nn.Sequential,
    card: dict[str, Any],
    history: Sequence[Record],
    report: DistillReport,
) -> None:
    """The student as a model directory with the history of its training, and ``distill.json``: the same for the same
    run."""
    encoder, head = network
    assert isinstance(encoder, Encoder)
    state = head.state_dict() if card["classes"] else {f"map.{name}": one for name, one in head.state_dict().items()}
    metrics = {name: value for name, value in asdict(report).items() if name not in ("scores", "paired", "reason")}
    with publish(workspace / "models" / "distilled", replace=True) as work:
        save_model(work, encoder, state, {**card, "config": config.model_dump(), "metrics": metrics})
        write_table(work / "history.csv", history)
    reports.write(workspace, report)


def describe_student(
    pretrained: Model,
    config: DistillConfig,
    encoder: Encoder,
    shape: dict[str, Any],
    teacher: Teacher,
    classes: Sequence[str],
) -> dict[str, Any]:
    """The model card, but for configuration and metrics. Preprocessing and normalization are those of pretraining."""
    kept = ("preprocessing", "mean", "std", "normalized_by", "data_digest")
    seen = None if teacher.learned_from is None else dict(zip(("fraction", "seed"), teacher.learned_from, strict=True))
    start = "models/pretrained" if config.init == "pretrained" else "scratch"
    return {
        "kind": "distilled",
        "encoder": shape,
        "feature_dim": encoder.feature_dim,
        **{name: pretrained.card[name] for name in kept if name in pretrained.card},
        "classes": list(classes) if teacher.has_classes else None,
        "init": f"{start}, taught by {teacher.name}",
        "labels": seen,
        "producer": f"simclr-pipeline {version('simclr-pipeline')}",
    }
