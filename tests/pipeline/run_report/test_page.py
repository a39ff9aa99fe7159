"""The page of a run: what it shows of which report, that names stay text, and that half a run has one too."""

import csv
import io
import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from pipeline import waiting
from pipeline.gates.all_gates import GATES
from pipeline.reports import Outcome
from pipeline.run_report import page
from pipeline.run_report.facts import Mistake, Reason, _of_several, collect, reasons
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data.shards import ShardedImages
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.scores import predictions
from simclr_core.evaluation_reports import BudgetAccuracies, ClassScores, Estimate
from tests.conftest import write_prepared
from tests.reports import (
    COMPARE,
    EMBEDDING_DRIFT,
    EXPORT,
    FINETUNE,
    FOLDED,
    LINEAR_EVAL,
    PRETRAIN,
    SCORES,
    SEVERAL,
    TUNED,
    VALIDATION,
)

HOSTILE = '"><script>alert(1)</script>\u202e<img src=x onerror=alert(1)>'
ROWS = [
    {"epoch": n, "loss": 6 - n / 10, "knn_top1": 60 + n, "probe_top1": 61 + n, "effective_rank": 30} for n in range(9)
]


def budget(labels: int, simclr: float, pixels: float) -> BudgetAccuracies:
    return BudgetAccuracies(labels, 3, *(Estimate(one, one - 2, one + 2) for one in (simclr, 40.0, pixels)))


def fill(workspace: Workspace, name: str = "cross") -> Workspace:
    """All reports, with ``name`` wherever a person gives one, and predictions for the prepared images."""
    write_prepared(workspace.root)
    scores = replace(SCORES, per_class={name: SCORES.per_class["Möwe"]})
    evaluation = replace(
        LINEAR_EVAL,
        scores={"knn": scores, "probe": scores},
        budgets={"2 per class": budget(20, 60.0, 45.0), "1.0": budget(800, 80.0, 58.0)},
    )
    drift = replace(VALIDATION.drift, advice=name)
    for report in (replace(VALIDATION, drift=drift), PRETRAIN, evaluation, FINETUNE, EXPORT, COMPARE, EMBEDDING_DRIFT):
        reports.write(workspace.root, report)
    images = EvaluationImages.of(ShardedImages(workspace.prepared / "test"))
    paths = {bytes(key).hex(): f"test/{name}/{number}.png" for number, key in enumerate(images.keys)}
    shares = np.tile([0.1, 0.7, 0.1, 0.1], (40, 1))
    classes = ("circle", name, "square", "stripes")
    predictions.save(
        workspace.reports, predictions.table("test", images, paths, {"knn": shares, "probe": shares}, classes)
    )
    content = io.StringIO()
    writer = csv.DictWriter(content, ROWS[0])
    writer.writeheader()
    writer.writerows(ROWS)
    (workspace.reports / "pretrain.csv").write_text(content.getvalue())
    return workspace


def text(workspace: Workspace) -> str:
    return page.write(workspace).read_text(encoding="utf-8")


@pytest.mark.seconds
def test_the_page_has_what_the_reports_say(workspace: Workspace) -> None:
    html = text(fill(workspace))
    for shown in (
        "12 files, 9 accepted",
        "truncated",
        "70.0 (67.5 to 72.4)",  # the probe
        "60.0 (58.0 to 62.0)",  # of a budget
        "70.0 (63.4 to 76.6)",  # fine-tuned
        "1 of 1 class is never predicted",
        "<strong>20 labels with this encoder are worth 80 labels without it",
        "from scratch",
        "labeled <bdi>circle</bdi>, taken for <bdi>cross</bdi> with 70 %",
        "test/cross/0.png",
        "beats_baselines",
        "not measured: this machine does not tell it",
    ):
        assert shown in html, shown
    assert html.count("<img ") == 24  # of 30 mistakes
    assert html.count("<svg") == 5
    assert len(html) < 1_000_000


def test_what_is_right_missed_and_wrong_of_a_class_is_counted() -> None:
    scores = ClassScores(80, 1000, 900, 60.0, 66.7, 63.2, 70.0)
    assert page.count_answers(replace(scores, right=600)) == (600, 400, 300)
    assert page.count_answers(scores) == (None, None, None), "of an earlier version"


@pytest.mark.seconds
def test_of_images_with_several_labels_it_has_mean_average_precisions(workspace: Workspace) -> None:
    fill(workspace)
    for report in (SEVERAL, TUNED):
        reports.write(workspace.root, report)
    (workspace.reports / predictions.FILE).unlink()
    html = text(workspace)
    for shown in (
        "with 1.50 labels each on average",
        "mean average precision of <strong>60.0 (55.5 to 64.5) %</strong>; by chance it is 20.0 %",
        "50.0 (44.0 to 56.0)",  # of a budget
        "50.2 (45.0 to 55.5)",  # macro F1
        "61.5 (57.0 to 66.0)",  # fine-tuned
        "45.5",  # raw pixels
        "Möwe",
        "1 of 1 class is never predicted",
    ):
        assert shown in html, shown
    assert "top-1" not in html.lower()


@pytest.mark.seconds
def test_accuracies_out_of_fold_say_so_and_mistakes_are_training_images(workspace: Workspace) -> None:
    fill(workspace)
    assert "Of 2,000 test images, the linear probe on all labels" in text(workspace)
    reports.write(workspace.root, FOLDED)
    assert "<img" not in text(workspace), "no training image has the hash of a mistake"
    images = EvaluationImages.of(ShardedImages(workspace.prepared / "train"))
    shares = dict.fromkeys(("knn", "probe"), np.tile([0.1, 0.7, 0.1, 0.1], (48, 1)))
    rows = predictions.table("out_of_fold", images, {}, shares, ("circle", "cross", "square", "stripes"))
    predictions.save(workspace.reports, rows)
    html = text(workspace)
    assert html.count("<img ") == 24
    assert "labeled images that the linear probe takes for another class" in html
    said = "40 labeled training images, estimated out of fold (5 folds); the encoder was pretrained on them too"
    assert html.count(said) == 3, "at the top, above the accuracies, and in the advice"


def test_names_stay_text(workspace: Workspace) -> None:
    html = text(fill(workspace, HOSTILE))
    assert "\u202e" not in html
    assert "<script" not in html
    assert re.findall(r"<img (?!alt=\"\" src=\"data:image/jpeg;base64,)", html) == []
    assert "&lt;script&gt;alert(1)" in html


def test_the_page_needs_nothing_else(workspace: Workspace) -> None:
    html = text(fill(workspace))
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"(src|href)=\"(?!data:|#|validation\.html)", html)


def test_a_workspace_without_a_run_has_a_page_that_says_so(workspace: Workspace) -> None:
    html = text(workspace)
    for shown in ("Not validated yet.", "Not trained yet.", "Not evaluated yet.", "Nothing is released yet."):
        assert shown in html


def test_a_broken_contract_is_at_the_top_and_the_gates_after_it_were_not_reached(workspace: Workspace) -> None:
    broken = Outcome("quarantine_rate", "contents", "critical", False, 0.91, "<= 0.05", None, [], None)
    reports.write(workspace.root, replace(VALIDATION, passed=False, expectations=(broken,)))
    html = text(workspace)
    top = html.partition("<nav>")[0]
    assert "the data contract is broken, with 9 of 12 files accepted" in top
    assert "simclr quarantine release" in top
    assert "Nothing is released yet." not in html
    assert html.count("<bdi>not reached</bdi>") == len(GATES) - 1
    assert "run the stage that writes it" not in html


def test_candidates_that_wait_are_at_the_top_with_what_a_person_does(workspace: Workspace) -> None:
    reports.write(workspace.root, EXPORT)
    asked = ("2026-11-30T03:20:00+00:00", "2126-12-14T03:20:00+00:00")
    one = waiting.Candidate(EXPORT.bundle, "b" * 64, "c" * 40, None, (HOSTILE,), {}, *asked)
    other = replace(one, bundle="f" * 64)
    waiting.keep(workspace.root / "registry", other)
    html = text(workspace)
    assert "Nothing is released yet.</strong>" in html, "another candidate waits, not that of the workspace"
    assert f"simclr release reject {other.name} --why" in html
    waiting.keep(workspace.root / "registry", one)
    top = text(workspace).partition("<nav>")[0]
    assert '<strong class="undecided">Waits</strong> for a person; <bdi>nothing</bdi> serves meanwhile.' in top
    for name in (one.name, other.name):
        assert f"candidate <bdi>{name} for a person since 2026-11-30 03:20, until 2126-12-14 03:20 UTC: " in top
        assert f"<code>simclr release approve {name} --why …</code>" in top
    assert "<script" not in top
    waiting.settle(workspace.root / "registry", waiting.find(workspace.root / "registry", one.name[:6]))
    assert "Waits</strong>" not in text(workspace)


def test_git_takes_no_page_since_it_shows_images(workspace: Workspace) -> None:
    ignored = workspace.reports / ".gitignore"
    ignored.parent.mkdir(exist_ok=True)
    ignored.write_text("/validation.html\n")
    for _ in range(2):
        page.write(workspace)
    assert ignored.read_text() == "/validation.html\n/run.html\n"
    command = ["git", "add", "--all", "--dry-run", "reports"]
    added = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=True).stdout
    assert added == "add 'reports/.gitignore'\n"


@pytest.mark.parametrize("name", ["predictions.parquet", "pretrain.csv", "linear_eval.json"])
def test_a_damaged_report_costs_its_part_only(workspace: Workspace, name: str) -> None:
    fill(workspace)
    (workspace.reports / name).write_bytes(b"\xff\x00 damaged,\n1,2,x")
    assert "12 files, 9 accepted" in text(workspace)


def test_mistakes_are_the_surest_first(workspace: Workspace) -> None:
    rows = collect(fill(workspace)).mistakes
    assert len(rows) == 30
    assert all(row.label != row.probe for row in rows)
    assert [row.probe_answer for row in rows] == sorted((row.probe_answer for row in rows), reverse=True)


def test_of_several_labels_the_surest_wrong_answer_counts() -> None:
    row = {"path": "a.png", "sha256": "0", "labels": ["cat"], "probe": ["cat", "dog"], "probe_scores": [0.9, 0.7, 0.4]}
    assert _of_several(row, ("cat", "dog", "fox")) == Mistake("a.png", "0", "cat", "cat, dog", 0.7)
    nothing = row | {"probe": [], "probe_scores": [0.2, 0.1, 0.4]}
    assert _of_several(nothing, ("cat", "dog", "fox")) == Mistake("a.png", "0", "cat", "none of the classes", 0.8)


@pytest.mark.parametrize(
    ("header", "paragraphs"),
    [
        ("# Recipe auto: photos\n# Chosen by 2 cores,\n# no GPU.\n# Source: a\n# paper", 3),
        ("# Recipe auto: photos\n", 1),
        ("", 0),
    ],
)
def test_a_wrapped_comment_of_the_recipe_is_one_paragraph(workspace: Workspace, header: str, paragraphs: int) -> None:
    text = workspace.params.read_text(encoding="utf-8")
    values = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    workspace.params.write_text(header + "\n" + values, encoding="utf-8")
    recipe = collect(workspace).recipe
    assert len(recipe) == paragraphs
    assert " ".join(recipe) == " ".join(header.replace("# ", "").split("\n")).strip()


def test_reasons_are_the_comments_that_are_not_everywhere() -> None:
    template = (
        "pretrain:  # SimCLR\n  epochs: 40  # passes\n  encoder:\n    name: resnet18  # network\n  loss: nt_xent\n"
    )
    params = template.replace("40  # passes", "90  # as the loss fell").replace(
        "resnet18  # network", "x  # small images"
    )
    assert reasons(params, template) == [
        Reason("pretrain.epochs", "90", "as the loss fell"),
        Reason("pretrain.encoder.name", "x", "small images"),
    ]
    assert reasons(template, template) == []
