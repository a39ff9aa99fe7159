"""The records of candidates that wait, and who has to be asked."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import waiting
from pipeline.errors import ReleaseError
from pipeline.git import Git
from pipeline.params import override, read
from pipeline.release.approval import reasons_to_ask
from pipeline.release.registry import open_registry
from pipeline.release.releases import Releases
from pipeline.release.versions import History
from pipeline.waiting import Candidate, Decision, Open
from pipeline.workspace import Workspace
from simclr_core import reports
from tests.reports import COMPARE, EMBEDDING_DRIFT

NOW = datetime(2026, 12, 14, 3, 20, tzinfo=UTC)
DECISION = Decision("rejected", "Ada", "a broken lens", "2026-12-02T08:00:00+00:00")


def candidate(bundle: str = "a" * 64, **changes: Any) -> Candidate:
    asked = ("2026-11-30T03:20:00+00:00", "2026-12-14T03:20:00+00:00")
    return replace(Candidate(bundle, "b" * 64, "c" * 40, "v0.0.2", ("drift in 0007",), {}, *asked), **changes)


@pytest.mark.parametrize(
    ("serving", "minutes", "decision", "said"),
    [
        ("v0.0.2", 0, None, None),
        ("v0.0.2", 1, None, "expired at 2026-12-14 03:20"),
        ("v0.0.2", 1, DECISION, None),  # decided in time, and carried out later
        ("v0.0.3", 0, None, "was compared with v0.0.2, and v0.0.3 serves now"),
        ("v0.0.3", 0, DECISION, "was compared with v0.0.2, and v0.0.3 serves now"),
        (None, 0, None, "was compared with v0.0.2, and nothing serves now"),
    ],
)
def test_what_stands_in_the_way_of_an_approval(
    serving: str | None, minutes: int, decision: Decision | None, said: str | None
) -> None:
    found = candidate(decision=decision).obstacle(serving, NOW.replace(minute=20 + minutes))
    assert (found is None) == (said is None)
    assert (said or "") in (found or "")


def test_records_are_found_by_their_first_digits_and_the_first_decision_stands(tmp_path: Path) -> None:
    early, late = candidate("ab" * 32), candidate("ac" * 32, requested="2026-12-01T03:20:00+00:00")
    for one in (late, early):
        waiting.keep(tmp_path, one)
    assert waiting.waiting(tmp_path) == [early, late]
    assert waiting.find(tmp_path, "AB") == early
    with pytest.raises(ReleaseError, match=r"begins 2 candidates: ab.*, ac.*; give more"):
        waiting.find(tmp_path, "a")
    with pytest.raises(ReleaseError, match="no such candidate; waiting are abababababab, acacacacacac"):
        waiting.find(tmp_path, "")
    rejected = waiting.decide(tmp_path, early, DECISION)
    assert waiting.decide(tmp_path, rejected, replace(DECISION, who="Bob")) == rejected
    waiting.settle(tmp_path, rejected)
    waiting.settle(tmp_path, rejected)
    assert (waiting.waiting(tmp_path), waiting.decided(tmp_path)) == ([late], [rejected])
    assert waiting.find(tmp_path, "ab").decision == DECISION
    waiting.forget(tmp_path, late.bundle)
    assert waiting.look(tmp_path, "v0.0.2") == Open()


def test_a_record_that_is_not_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "abc.json").write_text('{"bundle": "a"}')
    with pytest.raises(ReleaseError, match=r"abc\.json: not the record of a candidate .*; remove it"):
        waiting.waiting(tmp_path)


SURE = {"representation": "passed: no loss", "latency_budget": "not judged: not measured yet"}


@pytest.mark.parametrize(
    ("rule", "gates", "drifted", "unjudged", "expected"),
    [
        ("none", {"low_label": "undecided: few"}, True, True, ()),
        ("required", SURE, False, False, ("gates.approval is required",)),
        ("borderline", SURE, False, False, ()),
        ("borderline", SURE | {"low_label": "undecided: few"}, False, False, ("low_label could not decide",)),
        ("required", SURE | {"low_label": "undecided: few"}, False, False, ("low_label could not decide",)),
        ("borderline", SURE, True, False, ("drift in 0002",)),
        ("borderline", {}, True, True, ("nothing could judge it (UNJUDGED)", "drift in 0002")),
    ],
)
def test_who_is_asked_why(
    workspace: Workspace, rule: str, gates: dict[str, str], drifted: bool, unjudged: bool, expected: tuple[str, ...]
) -> None:
    override(workspace, {"gates.approval": rule})
    drift = EMBEDDING_DRIFT
    reports.write(workspace.root, drift if drifted else replace(drift, verdict="none"))
    compare = COMPARE
    nothing = replace(compare.knn, candidate=None)
    reports.write(workspace.root, replace(compare, reason="no labels", knn=nothing) if unjudged else compare)
    params = read(workspace)
    history = History("simclr-encoder", (), (), 0, (), NOW)
    git = Git(workspace.root, "bot", "bot@localhost")
    assert reasons_to_ask(Releases(workspace, params, git, open_registry(workspace), history), gates) == expected
