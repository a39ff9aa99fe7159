"""The gate on latency: measured for these very bundles, on this machine, and again before anybody is rejected."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.artifact import identity, publish
from pipeline.gates import costs
from simclr_core.evaluation import compare
from tests.conftest import write_prepared
from tests.pipeline.gates.reports import LATENCY, Rejections, judge, put_params, record_rejections
from tests.simclr_core import pixel_encoders as encoders


@pytest.fixture
def rejections(monkeypatch: pytest.MonkeyPatch) -> Rejections:
    return record_rejections(monkeypatch)


@pytest.fixture(autouse=True)
def params(tmp_path: Path) -> None:
    put_params(tmp_path)


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[str, str]:
    """A candidate's and a champion's bundle, of which nothing but their identity matters here."""
    models = tmp_path / "models"
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
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """``measure(*texts)``: what the sub-process writes, each time it is started; returns how it was."""

    def prepare(*texts: str, code: int = 0, stderr: str = "") -> list[dict[str, Any]]:
        left, calls = list(texts), []

        def started(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            calls.append({"command": command, **options})
            if left:
                (tmp_path / LATENCY).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / LATENCY).write_text(left.pop(0))
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
    tmp_path: Path,
    bundles: tuple[str, str],
    measure: Measure,
    p50: float,
    champion: float,
    gates: dict[str, Any],
    passed: bool,
    rejections: Rejections,
) -> None:
    put_params(tmp_path, **gates)
    text = timing(bundles, p50, champion)
    calls = measure(text)
    result = judge(tmp_path, "latency_budget", {LATENCY: text})
    assert result.passed is passed
    assert f"{p50:.4g} ms (one image on one thread, median of 100)" in result.description
    assert len(calls) == (not passed), "a known result that passes is not measured again"
    assert len(rejections) == (not passed)


def test_a_busy_moment_rejects_nobody(
    tmp_path: Path, bundles: tuple[str, str], measure: Measure, rejections: Rejections
) -> None:
    calls = measure(timing(bundles, 2.1, 2.0))
    result = judge(tmp_path, "latency_budget", {LATENCY: timing(bundles, 9.0, 2.0)})
    assert result.passed
    assert result.metadata["ms"].value == 2.1
    assert len(calls) == 1
    assert rejections == []


@pytest.mark.parametrize("before", [None, "of another candidate", "of another champion", "{", "[]", "NaN"])
def test_what_is_not_known_of_these_bundles_is_measured(
    tmp_path: Path, bundles: tuple[str, str], measure: Measure, before: str | None
) -> None:
    known = {
        "of another candidate": timing(("0" * 64, bundles[1]), 0.1, 2.0),
        "of another champion": timing((bundles[0], None), 0.1, None),
        "NaN": timing(bundles, float("nan"), 2.0),
    }
    files = {} if before is None else {LATENCY: known.get(before, before)}
    calls = measure(timing(bundles, 2.5, 2.0))
    result = judge(tmp_path, "latency_budget", files)
    assert result.passed
    assert result.metadata["ms"].value == 2.5
    assert len(calls) == 1


def test_measuring_is_a_command_in_the_workspace_with_what_is_installed(
    tmp_path: Path, bundles: tuple[str, str], measure: Measure
) -> None:
    calls = measure(timing(bundles, 2.5, 2.0))
    judge(tmp_path, "latency_budget", {})
    assert calls[0]["command"][1:] == ["-m", "simclr_core", "latency"]
    assert calls[0]["cwd"] == tmp_path
    assert calls[0]["env"]["PYTHONSAFEPATH"] == "1"


def test_without_a_champion_only_the_limit_counts(tmp_path: Path, measure: Measure, rejections: Rejections) -> None:
    bundle = put_bundle(tmp_path / "models" / "bundle", "one")
    text = timing((bundle, None), 3.0, None)
    measure(text, text)
    assert judge(tmp_path, "latency_budget", {}).passed
    put_params(tmp_path, max_latency_milliseconds=2.0)
    assert not judge(tmp_path, "latency_budget", {}).passed


@pytest.mark.parametrize(
    ("texts", "code", "stderr", "says"),
    [
        ([], 2, "warning: x\nerror: models/bundle: gone\n", "latency: could not be measured: models/bundle: gone"),
        ([], -9, "", "latency: could not be measured: exit code -9"),
        ([], 0, "", f"{LATENCY} does not exist"),
        (["{}"], 0, "", f"{LATENCY} lacks"),
        (['{"p50_ms": NaN}'], 0, "", f"{LATENCY} cannot be read: NaN is not a number"),
    ],
)
def test_a_measurement_that_fails_does_not_pass_and_rejects_nobody(
    tmp_path: Path,
    bundles: tuple[str, str],
    measure: Measure,
    texts: list[str],
    code: int,
    stderr: str,
    says: str,
    rejections: Rejections,
) -> None:
    measure(*texts, code=code, stderr=stderr)
    result = judge(tmp_path, "latency_budget", {})
    assert not result.passed
    assert says in result.description
    assert rejections == []


def test_a_champion_that_was_not_timed_does_not_pass(
    tmp_path: Path, bundles: tuple[str, str], measure: Measure, rejections: Rejections
) -> None:
    measure()
    result = judge(tmp_path, "latency_budget", {LATENCY: timing(bundles, 2.5, None)})
    assert not result.passed
    assert result.description.startswith(f"{LATENCY} lacks")


def test_a_machine_that_hangs(
    tmp_path: Path, bundles: tuple[str, str], monkeypatch: pytest.MonkeyPatch, rejections: Rejections
) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(costs.subprocess, "run", hang)
    result = judge(tmp_path, "latency_budget", {})
    assert not result.passed
    assert "not measured within 600 s" in result.description
    assert rejections == []


def test_what_the_stages_write_is_what_the_gates_read(tmp_path: Path, rejections: Rejections) -> None:
    """Real bundles, the real comparison, the real measurement. 40 test images are too few to rule anything out."""
    write_prepared(tmp_path, train=80, test=40, labelled=0.75)
    encoders.put_bundle(tmp_path / "models" / "bundle", encoders.mixing(1), encoders.CANDIDATE)
    encoders.put_champion(tmp_path, encoders.mixing(2), encoders.CHAMPION)
    compare.run(tmp_path)
    put_params(tmp_path, max_latency_ratio=50.0)
    passed = {
        gate: judge(tmp_path, gate, {}) for gate in ("representation", "size_budget", "old_index", "latency_budget")
    }
    assert [gate for gate, result in passed.items() if not result.passed] == ["representation"]
    assert "not ruled out by 40 test images; about" in passed["representation"].description
    assert json.loads((tmp_path / LATENCY).read_text())["bundle"] == identity(tmp_path / "models" / "bundle")
    encoders.put_champion(tmp_path, None)
    compare.run(tmp_path)
    assert all(judge(tmp_path, gate, {}).passed for gate in passed)
    assert json.loads((tmp_path / LATENCY).read_text())["champion"] is None, "measured anew, for another champion"


def test_a_bundle_that_was_tampered_with_is_not_measured(tmp_path: Path, rejections: Rejections) -> None:
    write_prepared(tmp_path, train=8, test=6)
    encoders.put_bundle(tmp_path / "models" / "bundle", encoders.mixing(1), encoders.CANDIDATE)
    encoders.damage_candidate(tmp_path)
    result = judge(tmp_path, "latency_budget", {})
    assert not result.passed
    assert "latency: could not be measured: models/bundle/encoder.fp32.onnx: its SHA-256 differs" in result.description
