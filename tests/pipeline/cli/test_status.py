"""What ``simclr status`` says of labels, of what a run would do, and of raw images that are missing."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.artifact import write_atomically
from pipeline import waiting
from pipeline.cli.main import simclr
from pipeline.cli.status import describe_accuracy, describe_precision, find_contradiction, look, look_at_stages
from pipeline.dvc import client
from pipeline.dvc.client import exclusive
from pipeline.ingest.ingest import ingest
from pipeline.maintenance.state import UNKEPT, Unkept
from pipeline.reports import Outcome
from pipeline.validation import manifest
from pipeline.validation.expectations import NEAR_LABELS
from pipeline.waiting import Candidate
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.compute.record import Ran, write_ran
from simclr_core.evaluation_reports import Accuracies
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.validation.corpus.manifests import row, table
from tests.reports import EXPORT, FOLDED, LINEAR_EVAL, SEVERAL, VALIDATION
from tests.sentences import assert_plain


def lines_of(workspace: Workspace) -> list[str]:
    """What is said, each line of which is a sentence for a person."""
    lines = str(look(workspace)).splitlines()
    for line in lines:
        assert_plain(line.partition(" ")[2])  # after the title
    return lines


def stage_lines_of(workspace: Workspace) -> list[str]:
    lines = look_at_stages(workspace).lines()
    for line in lines:
        assert_plain(line.partition(" ")[2])
    return lines


@pytest.mark.seconds
def test_every_line_of_a_workspace_with_something_of_each_kind_is_plain(
    filled: Workspace,
) -> None:
    put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    ingest(filled)
    for report in (VALIDATION, LINEAR_EVAL, EXPORT):
        reports.write(filled.root, report)
    write_ran(filled.root, "linear_eval", Ran("local", ["here"], workers=1))
    write_ran(filled.root, "pretrain", Ran("ray", ["a", "b"], workers=8, gpus=8, seconds=36_000, attempts=2))
    write_atomically(filled.scratch / UNKEPT, json.dumps(asdict(Unkept("1f", "no route to host", "2026-11-29"))))
    asked = Candidate(
        "3f" * 32, "b" * 64, "c" * 40, None, ("drift in 0002",), {}, "2026-11-30T03:20", "2126-12-14T03:20+00:00"
    )
    waiting.keep(filled.root / "registry", asked)
    said = lines_of(filled)
    [ran] = [line for line in said if line.startswith("ran ")]
    assert ran == "ran        pretrain on ray: 8 processes with a GPU each, 10 GPU-hours, on a, b; begun 2 times"
    assert said[1] == "raw        41 images in 1 batch"
    assert f"waiting    {asked}; {asked.next}" in said
    shown = json.loads(look(filled).to_json())["waiting"]["candidates"][0]
    assert (shown["expires"], shown["next"]) == (asked.expires, asked.next)
    assert "not sent   the state of runs since 2026-11-29 is on this disk alone: no route to host" in said
    with exclusive(filled.root, "ingest"):
        assert any(line.startswith("running    ingest of process") for line in lines_of(filled))


@pytest.mark.seconds
def test_a_program_gets_the_same_as_json(filled: Workspace) -> None:
    ingest(filled)
    for report in (VALIDATION, LINEAR_EVAL, EXPORT):
        reports.write(filled.root, report)
    done = CliRunner().invoke(simclr, ["status", "--json", "--workspace", str(filled.root)])
    found = json.loads(done.stdout)
    assert (found["workspace"], found["images"], found["batches"]) == (str(filled.root), 40, 1)
    assert found["evaluation"]["simclr"]["knn_top1"] == LINEAR_EVAL.simclr.knn_top1
    assert found["bundle"] == EXPORT.bundle
    assert found["stages"]["next"] == "`simclr run`"
    assert set(found["disk"]) == {"cache", "raw", "registry", "scratch", "history"}
    assert all({"outcome", "reason"} == set(one) for one in found["gates"].values())


def test_near_copies_with_different_labels_are_named(workspace: Workspace) -> None:
    assert find_contradiction(workspace) is None
    near: dict[str, Any] = {"near_group": "g", "near_group_size": 2, "warnings": ["near_label_conflict"]}
    rows = [row("cat/1.png", label="cat", **near), row("dog/\u202e2.png", label="dog", **near), row("3.png")]
    workspace.manifest.mkdir(parents=True)
    manifest.write(workspace.manifest, [table(rows)])
    for success, said in (
        (True, None),
        (False, "2 near copies have different labels, such as cat/1.png (cat)"),
    ):
        outcome = Outcome(NEAR_LABELS, "splits", "warning", success, 0.0, "True", 2, [], None)
        reports.write(workspace.root, replace(VALIDATION, expectations=(outcome,)))
        found = find_contradiction(workspace)
        assert (found and found.partition(" and ")[0]) == said
    assert found is not None
    assert_plain(found)
    assert found.endswith("(dog); see reports/validation.html")
    assert "\u202e" not in found


@pytest.mark.parametrize(
    ("linear", "said"),
    [
        ({"0.01": 12.3456, "1.0": 71.25}, "; linear probe with 1 % of the labels: 12.3 %, 100 % of the labels: 71.2 %"),
        ({}, ""),
    ],
)
def test_accuracies_have_their_unit(linear: dict[str, float | None], said: str) -> None:
    found = Accuracies(knn_top1=22.414, linear_top1=linear, linear_top5={})
    assert describe_accuracy(found, LINEAR_EVAL.asked) == f"top-1: kNN 22.4 %{said}; of 2,000 test images"
    assert SEVERAL.multi_label is not None
    assert describe_precision(SEVERAL.multi_label, SEVERAL.asked) == (
        "mean average precision: kNN 60.0 %, linear probe 60.0 %, by chance 20.0 %; of 2,000 test images"
    )
    assert describe_accuracy(found, FOLDED.asked).endswith(
        "; of 40 labeled training images, estimated out of fold (5 folds); the encoder was pretrained on them too, "
        "without their labels"
    )


def test_raw_images_that_are_tracked_and_missing_are_restored_not_ingested_again(workspace: Workspace) -> None:
    workspace.raw.parent.mkdir(exist_ok=True)
    workspace.raw.with_suffix(".dvc").write_text("outs: [{path: raw, md5: 0123.dir}]\n")
    said = "\n".join(lines_of(workspace))
    assert "data/raw is missing" in said
    assert "next       `dvc checkout data/raw.dvc`, or `dvc pull data/raw.dvc`" in said
    assert "0 images" not in said
    assert "inbox" not in said


def test_stages_of_every_length_of_name_are_aligned(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"embedding_drift": ["data/manifest has changed"], "export": ["models/pretrained is missing"]}
    monkeypatch.setattr(client, "changed_stages", lambda root: changed)
    (workspace.root / "dvc.lock").write_text("stages: {embedding_drift: {cmd: a}, export: {cmd: a}}\n")
    assert stage_lines_of(workspace) == [
        "changed    embedding_drift: data/manifest has changed",
        "changed    export: models/pretrained is missing",
        "next       `simclr run`",
    ]


def test_a_stage_that_was_never_completed_is_not_run_yet_whatever_is_new(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ["validate in params.yaml is new", "data/raw is new"]
    changed = {"validate": new, "finetune@0.01": new, "prepare": ["data/raw has changed"], "data/raw.dvc": ["changed"]}
    monkeypatch.setattr(client, "changed_stages", lambda root: changed)
    (workspace.root / "dvc.lock").write_text("stages: {prepare: {cmd: a}, finetune@0.1: {cmd: a}}\n")
    assert stage_lines_of(workspace) == [
        "changed    validate: not run yet",
        "changed    finetune@0.01: not run yet",
        "changed    prepare: data/raw has changed",
        "changed    data/raw.dvc: changed",
        "next       `simclr run`",
    ]


def test_what_waits_for_the_data_contract_is_one_line_with_what_to_do(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Outcome("quarantine_rate", "contents", "critical", False, 0.91, "<= 0.05", None, [], None)
    reports.write(workspace.root, replace(VALIDATION, passed=False, expectations=(broken,)))
    changed = {"prepare": ["data/prepared is missing"], "pretrain": ["data/prepared is missing"]}
    monkeypatch.setattr(client, "changed_stages", lambda root: changed)
    waiting, step = stage_lines_of(workspace)
    assert waiting == "waiting    for data_contract: prepare, pretrain"
    assert "validate.max_quarantine_rate), then `simclr run`" in step
    changed["validate"] = ["data/raw has changed"]
    assert stage_lines_of(workspace)[-1] == "next       `simclr run`"
