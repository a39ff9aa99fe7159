"""What every gate says of the present reports, in the same words wherever people see it."""

from pathlib import Path

from pipeline.cli.status import describe_gates
from pipeline.gates.all_gates import GATES, verdicts
from pipeline.workspace import Workspace
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import ALONE, CHAMPION, COMPARISON, EXPORT, PRETRAIN


def test_without_reports_nothing_is_judged_and_nothing_measured(case: Case) -> None:
    found = verdicts(Workspace(case.folder))
    assert list(found) == [gate.__name__ for gate in GATES]
    assert {one.outcome for one in found.values()} == {"not judged"}
    assert describe_gates(Workspace(case.folder)) == []


def test_status_tells_what_passed_what_was_refused_and_what_is_not_applicable(case: Case) -> None:
    case.put("reports/pretrain.json", PRETRAIN | {"collapsed": True})
    case.put("reports/export.json", EXPORT)
    case.put(COMPARISON, ALONE)
    case.put(CHAMPION, {"version": None, "reports": {}})
    first, *refused = describe_gates(Workspace(Path(case.folder)))
    assert first == (
        "gates      passed: onnx_parity; refused: not_collapsed; not applicable: representation, size_budget, old_index"
    )
    (line,) = refused
    assert line.startswith("not_collapsed: all images have nearly the same features")
