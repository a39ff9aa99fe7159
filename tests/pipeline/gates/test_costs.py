"""The gates on size and latency: what is measured is of these very bundles, on this machine, and again before a no."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.artifact import identity, publish
from pipeline.gates import costs
from pipeline.gates.champion import old_index, representation
from pipeline.gates.costs import latency_budget, size_budget
from simclr_core.evaluation import compare
from tests.conftest import write_prepared
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import ALONE, COMPARE, COMPARISON, LATENCY, UNLABELED
from tests.simclr_core import pixel_encoders as encoders


@pytest.mark.parametrize(
    ("report", "gates", "passed", "says"),
    [
        (COMPARE, {}, True, "4.2 MB (ONNX file); the champion's 4 MB, 150 % of that allowed"),
        (COMPARE, {"max_size_ratio": 1.05}, True, "105 % of that allowed"),
        (COMPARE, {"max_size_ratio": 1.04}, False, "104 % of that allowed"),
        (COMPARE, {"max_megabytes": 4.1}, False, "at most 4.1 MB allowed"),
        (COMPARE, {"max_megabytes": 4.2}, True, "at most 4.2 MB allowed; the champion's"),
        (ALONE, {}, True, "no champion and no limit to compare it with"),
        (ALONE, {"max_megabytes": 4.1}, False, "at most 4.1 MB allowed"),
        (UNLABELED, {"max_size_ratio": 1.0}, False, "100 % of that allowed"),  # labels do not matter here
    ],
)
def test_size(case: Case, report: dict[str, Any], gates: dict[str, Any], passed: bool, says: str) -> None:
    case.set_limits(**gates)
    verdict = case.compare(size_budget, **report)
    assert (verdict.passed, verdict.judged) == (passed, True)
    assert says in verdict.description
    assert verdict.numbers["MB"] == 4.2


def test_a_champion_without_a_size_does_not_pass(case: Case) -> None:
    verdict = case.compare(size_budget, megabytes={"candidate": 4.2, "champion": None})
    assert not verdict.judged
    assert verdict.description.startswith(f"{COMPARISON} lacks")


@pytest.fixture
def bundles(case: Case) -> tuple[str, str]:
    """A candidate's and a champion's bundle, of which nothing but their identity matters here."""
    models = case.folder / "models"
    return put_bundle(models / "bundle", "one"), put_bundle(models / "champion" / "bundle", "two")


def put_bundle(directory: Path, content: str) -> str:
    with publish(directory, replace=True) as work:
        (work / "bundle.json").write_text(content)
    return identity(directory)


def timing(bundles: tuple[str, str | None], p50: float, champion: float | None) -> str:
    report = {"bundle": bundles[0], "champion": bundles[1], "p50_ms": p50, "champion_p50_ms": champion, "rounds": 100}
    return json.dumps(report)


Measure = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def measure(case: Case, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """``measure(*texts)``: what the sub-process writes, each time it is started; returns how it was."""

    def prepare(*texts: str, code: int = 0, stderr: str = "") -> list[dict[str, Any]]:
        left, calls = list(texts), []

        def started(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            calls.append({"command": command, **options})
            if left:
                case.put(LATENCY, left.pop(0))
            return subprocess.CompletedProcess(command, code, "", stderr)

        monkeypatch.setattr(costs.subprocess, "run", started)
        return calls

    return prepare


@pytest.mark.parametrize(
    ("p50", "champion", "gates", "passed"),
    [
        (3.0, 2.0, {}, True),
        (3.1, 2.0, {}, False),
        (3.1, 2.0, {"max_latency_ratio": 2.0}, True),
        (3.0, 2.0, {"max_latency_milliseconds": 2.9}, False),
        (3.0, 2.0, {"max_latency_milliseconds": 3.0}, True),
    ],
)
def test_latency(
    case: Case,
    bundles: tuple[str, str],
    measure: Measure,
    p50: float,
    champion: float,
    gates: dict[str, Any],
    passed: bool,
) -> None:
    case.set_limits(**gates)
    text = timing(bundles, p50, champion)
    calls = measure(text)
    verdict = case.ask(latency_budget, {LATENCY: text})
    assert (verdict.passed, verdict.judged) == (passed, True)
    assert f"{p50:.4g} ms (one image on one thread, median of 100)" in verdict.description
    assert len(calls) == (not passed), "a known result that passes is not measured again"


def test_a_slow_first_measurement_is_repeated_before_a_rejection(
    case: Case, bundles: tuple[str, str], measure: Measure
) -> None:
    calls = measure(timing(bundles, 2.1, 2.0))
    verdict = case.ask(latency_budget, {LATENCY: timing(bundles, 9.0, 2.0)})
    assert verdict.passed
    assert verdict.numbers["ms"] == 2.1
    assert len(calls) == 1


@pytest.mark.parametrize("before", [None, "of another candidate", "of another champion", "{", "[]", "NaN"])
def test_missing_measurements_of_these_bundles_are_made(
    case: Case, bundles: tuple[str, str], measure: Measure, before: str | None
) -> None:
    known = {
        "of another candidate": timing(("0" * 64, bundles[1]), 0.1, 2.0),
        "of another champion": timing((bundles[0], None), 0.1, None),
        "NaN": timing(bundles, float("nan"), 2.0),
    }
    files = {} if before is None else {LATENCY: known.get(before, before)}
    calls = measure(timing(bundles, 2.5, 2.0))
    verdict = case.ask(latency_budget, files)
    assert verdict.passed
    assert verdict.numbers["ms"] == 2.5
    assert len(calls) == 1


def test_the_measurement_runs_in_the_workspace_with_the_installed_package(
    case: Case, bundles: tuple[str, str], measure: Measure
) -> None:
    calls = measure(timing(bundles, 2.5, 2.0))
    case.ask(latency_budget)
    assert calls[0]["command"][1:] == ["-P", "-m", "simclr_core", "latency"]
    assert calls[0]["cwd"] == case.folder


def test_without_a_champion_only_the_limit_counts(case: Case, measure: Measure) -> None:
    bundle = put_bundle(case.folder / "models" / "bundle", "one")
    text = timing((bundle, None), 3.0, None)
    measure(text, text)
    assert case.ask(latency_budget).passed
    case.set_limits(max_latency_milliseconds=2.0)
    assert not case.ask(latency_budget).passed


@pytest.mark.parametrize(
    ("texts", "code", "stderr", "says"),
    [
        ([], 2, "warning: x\nerror: models/bundle: gone\n", "latency: could not be measured: models/bundle: gone"),
        (
            [],
            -9,
            "warning: x\n",
            "latency: could not be measured: its process was killed by SIGKILL, most often by the",
        ),
        ([], 0, "", f"{LATENCY} does not exist"),
        (["{}"], 0, "", f"{LATENCY} lacks"),
        (['{"p50_ms": NaN}'], 0, "", f"{LATENCY} cannot be read: NaN is not a number"),
    ],
)
def test_a_failed_measurement_fails_the_gate_without_a_rejection(
    case: Case,
    bundles: tuple[str, str],
    measure: Measure,
    texts: list[str],
    code: int,
    stderr: str,
    says: str,
) -> None:
    measure(*texts, code=code, stderr=stderr)
    verdict = case.ask(latency_budget)
    assert not verdict.judged
    assert says in verdict.description


def test_a_champion_that_was_not_timed_does_not_pass(case: Case, bundles: tuple[str, str], measure: Measure) -> None:
    measure()
    verdict = case.ask(latency_budget, {LATENCY: timing(bundles, 2.5, None)})
    assert not verdict.judged
    assert verdict.description.startswith(f"{LATENCY} lacks")


def test_a_hanging_measurement_fails_the_gate_without_a_rejection(
    case: Case, bundles: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(costs.subprocess, "run", hang)
    verdict = case.ask(latency_budget)
    assert not verdict.judged
    assert "not measured within 600 s" in verdict.description


@pytest.mark.seconds
def test_the_gates_read_the_fields_that_the_stages_write(case: Case) -> None:
    """Real bundles, the real comparison, the real measurement. 40 test images are too few to rule anything out."""
    workspace = write_prepared(case.folder, train=80, test=40, labeled=0.75)
    encoders.put_bundle(workspace / "models" / "bundle", encoders.mixing(1), encoders.CANDIDATE)
    encoders.put_champion(workspace, encoders.mixing(2), encoders.CHAMPION)
    compare.run(workspace)
    case.set_limits(max_latency_ratio=50.0)
    verdicts = {gate: case.ask(gate) for gate in (representation, size_budget, old_index, latency_budget)}
    assert [gate for gate, verdict in verdicts.items() if not verdict.passed] == [representation]
    assert "not ruled out by 40 test images; about" in verdicts[representation].description
    assert json.loads((workspace / LATENCY).read_text())["bundle"] == identity(workspace / "models" / "bundle")
    encoders.put_champion(workspace, None)
    compare.run(workspace)
    assert all(case.ask(gate).passed for gate in verdicts)
    assert json.loads((workspace / LATENCY).read_text())["champion"] is None, "measured again, for another champion"


@pytest.mark.seconds
def test_a_bundle_that_was_tampered_with_is_not_measured(case: Case) -> None:
    write_prepared(case.folder, train=8, test=6)
    encoders.put_bundle(case.folder / "models" / "bundle", encoders.mixing(1), encoders.CANDIDATE)
    encoders.damage_candidate(case.folder)
    verdict = case.ask(latency_budget)
    assert not verdict.judged
    assert "latency: could not be measured: models/bundle/encoder.fp32.onnx: its SHA-256 differs" in verdict.description
