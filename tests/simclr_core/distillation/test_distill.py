"""The stage: it is off without a teacher; a kill changes no byte; two processes learn what one does; it is exported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deploy.failpoint
from deploy.bundle import read_bundle
from simclr_core import reports
from simclr_core.data.shares import require_shares
from simclr_core.distillation import distill
from simclr_core.distillation.report import DistillReport
from simclr_core.errors import CheckpointError, DistillationError, SimclrError
from simclr_core.evaluation import finetune
from simclr_core.export import export
from simclr_core.export.trained import choose_model
from simclr_core.launch import Member
from simclr_core.pretraining import pretrain
from tests.sentences import assert_plain
from tests.simclr_core.conftest import configure, put_in_group, put_label_sets
from tests.simclr_core.distillation.conftest import QUICK, change

ALONE = Member(0, 1, torch.device("cpu"))


def made(workspace: Path) -> dict[str, bytes]:
    files = [*(workspace / "models" / "distilled").iterdir(), *(workspace / "reports").glob("distill*")]
    return {path.name: path.read_bytes() for path in files}


def test_without_a_teacher_the_stage_writes_why(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also for a params.yaml that has no block of it, and with neither encoder nor images to read."""
    caplog.set_level("INFO")
    distill.run(prepared)
    first = made(prepared)
    assert sorted(first) == ["MANIFEST.sha256", "distill.json", "reason.json"]
    assert "distill.teacher is null" in caplog.text
    assert_plain(reports.read(prepared, DistillReport).reason or "")
    distill.run(prepared)
    assert made(prepared) == first
    with pytest.raises(CheckpointError, match="no student was distilled"):
        choose_model(prepared, "distilled")


@pytest.mark.seconds
@pytest.mark.parametrize("place", ["pretrain.step:raise@7", "checkpoint.publish:raise@2", "distill.trained:raise@1"])
def test_an_interrupted_distillation_ends_with_the_same_bytes(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    change(tuned, "distill", alpha=0.7)
    distill.run(tuned)
    undisturbed = made(tuned)
    for path in (tuned / "models" / "distilled").iterdir():
        path.unlink()
    deploy.failpoint._reached.clear()
    with monkeypatch.context() as patch:
        patch.setenv("SIMCLR_FAILPOINT", place)
        with pytest.raises(RuntimeError, match="failpoint"):
            distill.run(tuned)
    assert list((tuned / ".simclr" / "runs").glob("*/step-*"))
    distill.run(tuned)
    assert made(tuned) == undisturbed
    assert not list((tuned / ".simclr" / "runs").glob("*/step-*"))


def distill_on(rank: int, workspace: Path) -> float:
    with pytest.MonkeyPatch.context() as patch:
        put_in_group(patch, rank, 2)
        distill.run(workspace)
    return float(reports.read(workspace, DistillReport).loss_last or 0)


@pytest.mark.seconds
def test_two_processes_learn_what_one_learns(tuned: Path, on_ranks: Callable[..., list[Any]]) -> None:
    change(tuned, "distill", alpha=0.5)
    distill.run(tuned)
    alone = {name: load_file(tuned / "models" / "distilled" / f"{name}.safetensors") for name in ("encoder", "head")}
    loss = reports.read(tuned, DistillReport).loss_last
    on_ranks(2, distill_on, tuned)
    report = reports.read(tuned, DistillReport)
    assert report.processes == 2
    assert report.loss_last == pytest.approx(loss, abs=2e-4)
    for name, tensors in alone.items():
        found = load_file(tuned / "models" / "distilled" / f"{name}.safetensors")
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[key], tensor, rtol=0.02, atol=2e-3)


@pytest.mark.seconds
def test_the_student_is_exported_and_calibrated_on_labels_that_its_teacher_has_not_seen(tuned: Path) -> None:
    distill.run(tuned)
    report = reports.read(tuned, DistillReport)
    assert report.teaches == "classes"
    assert report.test_images == 40
    assert report.paired is not None
    difference = report.paired.trained_only[0] - report.paired.baseline_only[0]
    assert report.top1 == pytest.approx((report.teacher_top1 or 0) + 100 * difference / 40)
    card = json.loads((tuned / "models" / "distilled" / "model.json").read_text())
    assert card["labels"] == {"fraction": "0.1", "seed": 0}
    change(tuned, "export", source="distilled", variants=["fp32"])
    export.run(tuned)
    bundle = read_bundle(tuned / "models" / "bundle")
    assert bundle.card["provenance"]["kind"] == "distilled"
    assert bundle.head is not None
    assert bundle.head.labels == ("circle", "cross", "square", "stripes")
    served = reports.read(tuned, export.ExportReport).variants["fp32"]
    assert served.classifier_top1 == report.top1


def test_labels_have_a_part_only_if_the_teacher_has_seen_them(tuned: Path) -> None:
    assert distill.read_inputs(tuned).labels is None
    change(tuned, "distill", alpha=0.5)
    inputs = distill.read_inputs(tuned)
    assert inputs.labels is not None
    kept = np.flatnonzero(inputs.labels >= 0)
    assert len(kept) == 4  # a tenth of 48, one of each class at least
    assert inputs.labels[kept].tolist() == inputs.images.labels[kept].tolist()
    marks = inputs.batches(ALONE).marks(3)
    assert marks is not None
    assert marks.tolist() == inputs.labels[inputs.batches(ALONE).positions(3)].tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "0.5"}, "models/finetuned/0.5: does not exist, and distill.teacher names it"),
        ({"teacher": "gone.onnx"}, "gone.onnx: does not exist .*distill.teacher"),
        ({"init": "pretrained", "student": {"name": "resnet18"}}, "distill.init is pretrained, and distill.student"),
        ({"batch_size": 97}, "distill.batch_size is 97, but there are 96 training images"),
        ({"learning_rate": 1e9, "optimizer": "sgd"}, "lower distill.learning_rate"),
        ({"mean": [0, 0, 0]}, "distill: must have mean and std both, or neither"),
        ({"warmup_epochs": 3}, r"distill: must have warmup_epochs up to epochs \(2\), not 3"),
    ],
)
def test_what_cannot_be_distilled_is_refused_in_a_sentence(tuned: Path, changes: dict[str, Any], said: str) -> None:
    change(tuned, "distill", **changes)
    with pytest.raises(SimclrError, match=said) as caught:
        distill.run(tuned)
    assert_plain(str(caught.value))
    assert not (tuned / "models" / "distilled").exists()


def test_images_with_several_labels_are_refused(tuned: Path) -> None:
    put_label_sets(tuned)
    with pytest.raises(DistillationError, match="one label for each image"):
        distill.run(tuned)


def test_the_key_of_the_batch_is_named() -> None:
    with pytest.raises(SimclrError, match=r"^distill.batch_size is 15, which 2 processes"):
        require_shares(15, 96, 2, "distill.batch_size")


@pytest.mark.slow
def test_a_student_with_a_quarter_of_the_parameters_learns_from_its_teacher(
    prepared: Path, pictures_by_digest: None
) -> None:
    """A network that was fine-tuned on all labels teaches nearly all that it knows."""
    shape = {"name": "resnet10", "stem": "compact"}
    configure(prepared, encoder={**shape, "width": 0.25})
    pretrain.run(prepared)
    change(prepared, "finetune", seeds=[0], epochs=20)
    finetune.run(prepared, "1.0")
    change(prepared, "distill", **QUICK | {"teacher": "1.0", "student": {**shape, "width": 0.125}, "epochs": 30})
    distill.run(prepared)
    report = reports.read(prepared, DistillReport)
    assert 3.5 < (report.teacher_parameters or 0) / (report.parameters or 1) < 4.5
    assert (report.agreement or 0) >= 80
    assert (report.top1 or 0) >= (report.teacher_top1 or 0) - 10
