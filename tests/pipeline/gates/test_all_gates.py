"""What every gate says of the present reports, in the same words wherever people see it."""

from pathlib import Path
from runpy import run_path

import pytest

from pipeline.cli.status import describe_gates
from pipeline.gates.all_gates import GATES, verdicts
from pipeline.workspace import Workspace
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import ALONE, CHAMPION, COMPARE, COMPARISON, EXPORT, FINETUNE, PINNED, PRETRAIN, pair


def test_without_reports_nothing_is_judged_and_nothing_measured(case: Case) -> None:
    found = verdicts(Workspace(case.folder))
    assert list(found) == [gate.__name__ for gate in GATES]
    assert {one.outcome for one in found.values()} == {"not judged"}
    assert describe_gates(found) == []


def test_status_tells_what_passed_what_was_refused_and_what_is_not_applicable(case: Case) -> None:
    case.put("reports/pretrain.json", PRETRAIN | {"collapsed": True})
    case.put("reports/export.json", EXPORT)
    case.put(COMPARISON, ALONE)
    case.put(CHAMPION, {"version": None, "reports": {}})
    first, *refused = describe_gates(verdicts(Workspace(case.folder)))
    assert first == (
        "gates      passed: onnx_parity; refused: not_collapsed; not applicable: representation, size_budget, old_index"
    )
    (line,) = refused
    assert line.startswith("not_collapsed: all images have nearly the same features")


@pytest.mark.parametrize(
    ("abstain", "said"),
    [
        ("refuse", "undecided, which stops the release: representation; undecided, only a warning: low_label"),
        ("warn", "undecided, only a warning: representation, low_label"),
    ],
)
def test_status_tells_which_undecided_gate_stops_the_release(case: Case, abstain: str, said: str) -> None:
    case.set_limits(abstain=abstain)
    few = {"test_images": 200, "knn": pair(10, 12, 200), "probe": pair(9, 9, 200)}
    case.put(COMPARISON, COMPARE | few)
    case.put(CHAMPION, PINNED)
    case.put("reports/finetune-0.01.json", FINETUNE | {"paired": None})
    first, *reasons = describe_gates(verdicts(Workspace(case.folder)))
    assert said in first
    assert [line.partition(":")[0] for line in reasons] == ["representation", "low_label"]


def test_the_picture_of_the_readme_shows_a_gate_after_each_stage_that_has_one() -> None:
    drawn = run_path(str(Path(__file__).parents[3] / "docs" / "overview.py"), run_name="overview")
    gated = {name for name, made in drawn["read_stages"]().items() if made & set(GATES.values())}
    assert drawn["GATES"].keys() == gated
