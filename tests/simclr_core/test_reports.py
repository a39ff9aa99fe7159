"""Reports: the very text of each file, what is read back, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from simclr_core import reports
from simclr_core.champion import Champion
from simclr_core.errors import ReportError
from simclr_core.evaluation_reports import FinetuneReport
from simclr_core.reports import ClassResults, NoResults, PretrainReport, Report
from tests.reports import (
    COMPARE,
    EMBEDDING_DRIFT,
    EXPORT,
    FINETUNE,
    GAINS,
    LATENCY,
    LINEAR_EVAL,
    PRETRAIN,
    SEVERAL,
    TUNED,
    VALIDATION,
)

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = (PRETRAIN, LINEAR_EVAL, FINETUNE, EXPORT, COMPARE, LATENCY, VALIDATION, EMBEDDING_DRIFT)
OF_SEVERAL = (SEVERAL, TUNED, replace(COMPARE, precision={"knn": 60.0}, gains={"knn": GAINS["pixels"]}))
names = pytest.mark.parametrize("report", ALL, ids=lambda one: type(one).__name__)


@names
def test_the_text_of_a_report_is_unchanged_for_dvc(tmp_path: Path, report: Report) -> None:
    reports.write(tmp_path, report)
    written = tmp_path / report.file
    assert written.read_text(encoding="utf-8") == (GOLDEN / written.name).read_text(encoding="utf-8")


@names
def test_a_report_is_read_back_as_written(tmp_path: Path, report: Report) -> None:
    reports.write(tmp_path, report)
    assert reports.read(tmp_path, type(report), report.file) == report
    assert reports.read_each(tmp_path, type(report)) == [report]
    assert reports.known(tmp_path, type(report), report.file) == report


@pytest.mark.parametrize("report", OF_SEVERAL, ids=lambda one: type(one).__name__)
def test_what_is_said_of_several_labels_is_read_back(tmp_path: Path, report: Report) -> None:
    reports.write(tmp_path, report)
    assert reports.read(tmp_path, type(report), report.file) == report


@pytest.mark.parametrize("report", [LINEAR_EVAL, FINETUNE, COMPARE], ids=lambda one: type(one).__name__)
def test_reports_from_before_several_labels_are_read(tmp_path: Path, report: Report) -> None:
    reports.write(tmp_path, report)
    path = tmp_path / report.file
    younger = ("multi_label", "precision", "gains")
    path.write_text(json.dumps({key: one for key, one in json.loads(path.read_text()).items() if key not in younger}))
    assert reports.read(tmp_path, type(report), report.file) == report


@names
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "{}", '{"passed": NaN}'])
def test_a_broken_report_is_one_line_that_names_it(tmp_path: Path, report: Report, text: str) -> None:
    path = tmp_path / report.file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ReportError) as caught:
        reports.read(tmp_path, type(report), report.file)
    assert str(caught.value).startswith(f"{report.file} ")
    assert "\n" not in str(caught.value)
    assert reports.known(tmp_path, type(report), report.file) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"finite": 1},
            r"^reports/pretrain\.json lacks what is needed: finite: .*boolean; run the stage that writes",
        ),
        ({"loss_last": "4.2"}, "loss_last: .*number"),
        ({"loss_last": None}, "loss_last: .*number"),
        ({"epochs": 2.5}, "epochs: .*integer"),
        ({"loss_last": float("nan")}, r"reports/pretrain\.json cannot be read: NaN is not a number; run the stage"),
        ({"loss_last": float("-inf")}, "-Infinity is not a number"),
    ],
)
def test_invalid_numbers_are_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / PRETRAIN.file).write_text(json.dumps(asdict(PRETRAIN) | change))
    with pytest.raises(ReportError, match=says):
        reports.read(tmp_path, PretrainReport)


def test_a_report_that_is_missing_says_which_stage_to_run(tmp_path: Path) -> None:
    for read in (reports.read, reports.read_each):
        with pytest.raises(ReportError, match=r"^reports/finetune-\*\.json does not exist; run the stage that writes"):
            read(tmp_path, FinetuneReport)
    assert reports.known_each(tmp_path, FinetuneReport) == []


def test_a_report_of_the_first_release_can_be_read_and_so_can_one_of_a_later_version() -> None:
    younger = (
        "init",
        "learning_rate_scale",
        "probe_top1",
        "effective_rank_z",
        "feature_std_z",
        "precision",
        "precision_fallback",
        "compiled",
        "compile_fallback",
        "skipped_steps",
        "kept_epoch",
        "processes",
    )
    content = {name: value for name, value in asdict(PRETRAIN).items() if name not in younger}
    found = reports.parse(content | {"unheard_of": 3}, PretrainReport, "it")
    assert found.loss_last == PRETRAIN.loss_last
    assert (found.init, found.skipped_steps, found.effective_rank_z) == ("scratch", 0, None)


def test_each_share_of_the_labels_has_its_own_report(tmp_path: Path) -> None:
    shares = [replace(FINETUNE, fraction=fraction) for fraction in ("0.1", "0.01", "0.05")]
    for report in shares:
        reports.write(tmp_path, report)
    assert [report.fraction for report in reports.read_each(tmp_path, FinetuneReport)] == ["0.01", "0.05", "0.1"]


def test_a_report_of_an_old_commit_is_read_if_it_fits() -> None:
    content = asdict(PRETRAIN)
    assert reports.find_in({"pretrain": content, "compare": {}}, PretrainReport) == PRETRAIN
    assert reports.find_in({}, PretrainReport) is None
    for other in (None, [], {}, content | {"loss_last": float("nan")}, content | {"finite": None}):
        assert reports.find_in({"pretrain": other}, PretrainReport) is None


def test_each_share_of_an_old_commit_is_read_if_it_fits() -> None:
    about = {f"finetune-{share}": asdict(replace(FINETUNE, fraction=share)) for share in ("0.1", "0.01")}
    found = reports.find_each_in({**about, "finetune-0.05": {}, "finetune": about["finetune-0.1"]}, FinetuneReport)
    assert [one.fraction for one in found] == ["0.01", "0.1"]


def test_a_champion_that_an_earlier_version_has_pinned_is_read(tmp_path: Path) -> None:
    """As it wrote it; a report in it that does not fit is a matter of the gate that asks for it."""
    text = """{
  "bundle": "b1", "commit": "c1", "version": "v0.0.1",
  "reports": {
    "finetune-0.1": {
      "fraction": "0.1", "labels": 80, "seeds": [0], "top1": 71.5, "ci95": null, "scratch_top1": 60.0,
      "scratch_ci95": null, "top1_per_seed": [71.5], "scratch_top1_per_seed": [60.0], "reason": null
    },
    "pretrain": {"finite": true},
    "validation": {"images": {"ingested": 3, "accepted": 2, "converted": 0, "quarantined": {"corrupt": 1}}}
  }
}"""
    (tmp_path / Champion.path).parent.mkdir(parents=True)
    (tmp_path / Champion.path).write_text(text)
    champion = reports.read(tmp_path, Champion)
    assert asdict(champion) == json.loads(text), "and would be written as it was"
    assert [one.top1 for one in reports.find_each_in(champion.reports, FinetuneReport)] == [71.5]
    assert reports.find_in(champion.reports, PretrainReport) is None


def test_without_results_the_object_is_empty(tmp_path: Path) -> None:
    reports.write(tmp_path, replace(EXPORT, results=NoResults()))
    assert json.loads((tmp_path / EXPORT.file).read_text())["results"] == {}
    assert reports.read(tmp_path, type(EXPORT)).results == NoResults()


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        reports.write(tmp_path, replace(PRETRAIN, loss_last=float("nan")))
    assert not (tmp_path / PRETRAIN.file).exists()


def test_nested_fields_are_validated_too() -> None:
    with pytest.raises(ReportError, match=r"^the card lacks what is needed: recall is missing"):
        reports.parse({"images": 3, "precision": None}, ClassResults, "the card")
