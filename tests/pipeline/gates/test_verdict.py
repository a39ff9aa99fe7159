"""Asking a gate: without the evidence that it needs it does not pass, and says so rather than blame the candidate."""

import json
from typing import Any

import pytest

from pipeline.gates.baselines import beats_baselines
from pipeline.gates.champion import low_label, old_index, representation
from pipeline.gates.costs import latency_budget, size_budget
from pipeline.gates.data_contract import data_contract
from pipeline.gates.stages import not_collapsed, onnx_parity
from pipeline.gates.verdict import Gate
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import COMPARE, COMPARISON, EXPORT, LINEAR_EVAL, PRETRAIN, VALIDATION

REPORTS = [
    (data_contract, "reports/validation.json", VALIDATION),
    (not_collapsed, "reports/pretrain.json", PRETRAIN),
    (beats_baselines, "reports/linear_eval.json", LINEAR_EVAL),
    (onnx_parity, "reports/export.json", EXPORT),
    (representation, COMPARISON, COMPARE),
    (size_budget, COMPARISON, COMPARE),
    (old_index, COMPARISON, COMPARE),
]


@pytest.mark.parametrize(("gate", "path", "report"), REPORTS)
def test_a_good_report_passes_and_a_missing_or_broken_one_does_not(
    case: Case, gate: Gate, path: str, report: dict[str, Any]
) -> None:
    missing = case.ask(gate)
    assert not missing.judged
    assert missing.description == f"{path} does not exist; run the stage that writes it"
    case.put(path, report)
    good = case.ask(gate)
    assert (good.passed, good.judged, good.severity) == (True, True, "error")
    partial = json.dumps({"images": None, "simclr": 3, "reason": None, "champion": "v1"})
    for text in (json.dumps(report)[:-5], "", "[]", "{}", "null", '"text"', partial):
        case.put(path, text)
        broken = case.ask(gate)
        assert not broken.judged, text
        assert broken.description.startswith(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_value_that_is_not_a_number_does_not_pass(case: Case, constant: str) -> None:
    """No comparison with it is true, nor is the opposite one."""
    case.put("reports/pretrain.json", json.dumps(PRETRAIN).replace("4.2", constant))
    verdict = case.ask(not_collapsed)
    assert not verdict.judged
    assert f"{constant} is not a number" in verdict.description


@pytest.mark.parametrize("gate", [representation, low_label, latency_budget, size_budget, old_index])
def test_a_fault_in_the_parameters_is_named(case: Case, gate: Gate) -> None:
    case.set_limits(max_los=1.0)
    verdict = case.compare(gate)
    assert not verdict.judged
    assert "gates.max_los: unknown key; did you mean max_loss?" in verdict.description
