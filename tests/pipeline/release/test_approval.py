"""A person approves: who is asked, what an approval does, and which of the two states a killed one leaves."""

import json
import os
import shutil
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.failpoint import VARIABLE
from pipeline import alerts, waiting
from pipeline.errors import DvcError, ReleaseError
from pipeline.params import override
from pipeline.release import champion
from pipeline.release.approval import Held, approve, reject
from pipeline.release.registry import open_registry
from pipeline.release.release import describe, list_versions, offer, promote, release, rollback
from pipeline.release.serving import Released
from pipeline.workspace import Workspace
from tests.pipeline.release.conftest import compute, dvc, git, origin, store, tags
from tests.pipeline.release.test_kills import check, check_complete
from tests.processes import program
from tests.repetitions import repeated, some

pytestmark = pytest.mark.slow  # each of them clones, pushes and pulls

UNDECIDED = {"representation": "undecided: 40 test images rule out no loss", "size_budget": "passed: 1 MB"}
PROGRAM = """
import pathlib, sys
from pipeline.release import approval, release
from pipeline.workspace import Workspace
workspace, action, name = Workspace(pathlib.Path(sys.argv[1])), sys.argv[2], sys.argv[3]
if action == "offer":
    release.offer(workspace)
else:
    {"approve": approval.approve, "reject": approval.reject}[action](workspace, name, "Ada", "looked at")
"""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(alerts, "send", lambda _, event, title, text: found.append((event, text)) or ())
    return found


def asked(workspace: Workspace, rule: str = "required") -> waiting.Candidate:
    """The candidate of the workspace waits for a person."""
    override(workspace, {"gates.approval": rule})
    held = offer(workspace, (), UNDECIDED)
    assert isinstance(held, Held)
    assert held.candidate is not None
    return held.candidate


def killed(workspace: Workspace, step: str, action: str, name: str = "") -> None:
    command = program.command(PROGRAM, workspace.root, action, name)
    environment = os.environ | {VARIABLE: step if ":" in step else f"{step}:kill"}
    done = subprocess.run(command, cwd=program.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, (step, done.stdout, done.stderr)


def records(workspace: Workspace, folder: str) -> list[str]:
    return sorted(path.stem for path in (workspace.root / "registry" / folder).glob("*.json"))


def test_a_candidate_waits_and_an_approval_lets_it_serve(third: Workspace, sent: list[tuple[str, str]]) -> None:
    before = tags(third)
    candidate = asked(third)
    assert (tags(third), open_registry(third).current()) == (before, "v0.0.2")
    assert git(origin(third), "rev-parse", f"runs/{candidate.name}") == candidate.commit  # all but the tag
    assert (candidate.champion, candidate.reasons) == ("v0.0.2", ("representation could not decide",))
    assert candidate.gates == UNDECIDED
    assert [event for event, _ in sent] == ["approval_needed"]
    assert f"simclr release approve {candidate.name} --why" in sent[0][1]

    listing = list_versions(third)
    (line,) = [line for line in str(listing).splitlines() if line.startswith("waiting    ")]
    assert line.startswith(f"waiting    {candidate.name} for a person since ")
    assert line.endswith(f"`simclr release reject {candidate.name} --why …`")
    (shown,) = json.loads(listing.to_json())["waiting"]["candidates"]
    assert (shown["bundle"], shown["champion"], shown["next"]) == (candidate.bundle, "v0.0.2", candidate.next)

    again = offer(third, (), UNDECIDED)  # what the next run does, with nothing new
    assert isinstance(again, Held)
    assert again.candidate == candidate
    assert "v0.0.2 serves meanwhile" in str(again)
    assert len(sent) == 1
    with pytest.raises(ReleaseError, match="waits for a person until"):
        release(third)

    done = approve(third, candidate.name[:6], "Ada  Lovelace", "looks\ngood")
    assert (done.version, done.before, done.changed, done.commit) == ("v0.0.3", "v0.0.2", True, candidate.commit)
    check_complete(third, "v0.0.3", candidate.bundle)
    assert (records(third, "waiting"), records(third, "decided")) == ([], [candidate.name])
    (kept,) = waiting.decided(third.root / "registry")
    assert kept.decision is not None
    assert (kept.decision.verdict, kept.decision.who, kept.decision.why) == ("approved", "Ada Lovelace", "looks good")
    said = describe(third, "v0.0.3").approved
    assert said is not None
    assert said.startswith("by Ada Lovelace at ")
    assert said.endswith(": looks good")
    assert f"| approved | {said} |" in (third.root / "registry" / "releases" / "v0.0.3.md").read_text()
    assert json.loads((third.root / "registry" / "releases" / "v0.0.3.json").read_text())["approved"] == said
    assert said in git(third.root, "tag", "--list", "--format=%(contents)", "simclr-encoder@v0.0.3")

    twice = approve(third, candidate.name, "Bob", "me too")
    assert (twice.version, twice.changed) == ("v0.0.3", False)
    assert "as before; nothing has changed; candidate" in str(twice)
    assert "approved by Ada Lovelace" in str(twice)
    with pytest.raises(ReleaseError, match=r"it is v0.0.3, and `simclr release rollback` leads back"):
        reject(third, candidate.name, "Bob", "no")
    rollback(third)
    with pytest.raises(ReleaseError, match=r"is v0.0.3, which served before; v0.0.2 serves now"):
        approve(third, candidate.name, "Bob", "again")
    held = offer(third)
    assert isinstance(held, Released)
    assert held.version == "v0.0.2"


def test_a_rejection_is_final_and_ends_no_run_with_an_error(third: Workspace, sent: list[tuple[str, str]]) -> None:
    candidate = asked(third)
    with pytest.raises(ReleaseError, match="--why is empty"):
        reject(third, candidate.name, "Ada", "  ")
    said = str(reject(third, candidate.name, "Ada", "a broken lens"))
    assert said.endswith(": a broken lens; v0.0.2 serves as before")
    assert str(reject(third, candidate.name, "Bob", "so do I")).endswith("by Ada" + said.partition("by Ada")[2])
    with pytest.raises(ReleaseError, match="a rejection is final"):
        approve(third, candidate.name, "Bob", "but")
    held = offer(third, (), UNDECIDED)
    assert isinstance(held, Held)
    assert "a broken lens; it is not released" in str(held)
    override(third, {"gates.approval": "none"})  # no way around it
    assert isinstance(offer(third, ("approval",), UNDECIDED), Held)
    (rejection,) = list_versions(third).rejected
    assert (rejection.candidate, rejection.gate) == (candidate.pretrained[:12], "approval")
    assert rejection.reason == "Ada: a broken lens"
    assert (records(third, "waiting"), records(third, "decided")) == ([], [candidate.name])
    assert [event for event, _ in sent] == ["approval_needed"]


def test_a_person_is_asked_where_little_is_sure(third: Workspace) -> None:
    override(third, {"gates.approval": "borderline"})
    done = offer(third, (), {"representation": "passed: no loss", "size_budget": "not applicable: no limit"})
    assert isinstance(done, Released)
    assert done.version == "v0.0.3"


def test_an_expired_candidate_is_asked_for_again(third: Workspace, sent: list[tuple[str, str]]) -> None:
    candidate = asked(third)
    root, late = third.root / "registry", (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    waiting.keep(root, waiting.Candidate(**{**vars(candidate), "expires": late}))
    assert waiting.look(root, "v0.0.2") == waiting.Open((), 1)
    assert str(list_versions(third)).splitlines()[-1].startswith("1 candidate expired, or compared with")
    with pytest.raises(ReleaseError, match=r"expired at .*gates.approval_days"):
        approve(third, candidate.name, "Ada", "late")
    assert open_registry(third).current() == "v0.0.2"
    assert tags(third)[-1].endswith("#prod#2")
    offer(third, (), UNDECIDED)
    assert [event for event, _ in sent] == ["approval_needed"] * 2
    assert approve(third, candidate.name, "Ada", "in time").version == "v0.0.3"


def test_of_two_that_wait_one_approval_makes_the_other_outdated(third: Workspace) -> None:
    first = asked(third)
    compute(third, 4)
    second = asked(third)
    root = third.root / "registry"
    assert [one.name for one in waiting.look(root, "v0.0.2").candidates] == [first.name, second.name]
    with pytest.raises(ReleaseError, match="no such candidate; waiting are"):
        approve(third, "nothing", "Ada", "good")
    shutil.rmtree(third.root / "models" / "bundle")  # an approval needs nothing of the workspace's present state
    assert approve(third, first.name, "Ada", "good").version == "v0.0.3"
    dvc(third.root, "checkout")
    with pytest.raises(ReleaseError, match=r"was compared with v0.0.2, and v0.0.3 serves now"):
        approve(third, second.name, "Ada", "good")
    assert waiting.look(root, "v0.0.3") == waiting.Open((), 1)
    assert open_registry(third).current() == "v0.0.3"

    # The next run compares it with what serves, and a person is asked about that.
    assert champion.pin(third).version == "v0.0.3"
    dvc(third.root, "repro")
    renewed = asked(third)
    assert (renewed.bundle, renewed.champion) == (second.bundle, "v0.0.3")
    assert approve(third, second.name, "Ada", "good").version == "v0.0.4"


def test_what_served_meanwhile_is_no_longer_what_it_was_compared_with(third: Workspace) -> None:
    candidate = asked(third)
    promote(third, "v0.0.1")
    with pytest.raises(ReleaseError, match=r"was compared with v0.0.2, and v0.0.1 serves now"):
        approve(third, candidate.name, "Ada", "good")
    promote(third, "v0.0.2")
    assert approve(third, candidate.name, "Ada", "good").version == "v0.0.3"


def test_data_that_are_lost_before_the_approval_are_noticed_before_anything_is_decided(third: Workspace) -> None:
    candidate = asked(third)
    before = tags(third)
    shutil.rmtree(store(third))
    with pytest.raises(DvcError):
        approve(third, candidate.name, "Ada", "good")
    assert (tags(third), open_registry(third).current()) == (before, "v0.0.2")
    assert waiting.find(third.root / "registry", candidate.name).decision is None


def test_a_candidate_is_released_once_no_person_has_to_approve_it(third: Workspace) -> None:
    asked(third)
    override(third, {"gates.approval": "none"})
    assert release(third).version == "v0.0.3"
    assert (records(third, "waiting"), records(third, "decided")) == ([], [])


STEPS = (
    "approval.decided",
    "release.registered",
    "release.assigned",
    "release.pushed_tags",
    "artifact.rename",
    "artifact.renamed",
    "release.signed",
    "release.published",
    "artifact.replace:kill@1",  # CURRENT: the other files are there by now
    "release.switched",
    "approval.settled",
)


@repeated
@pytest.mark.timeout(900)
def test_an_approval_survives_kills(third: Workspace) -> None:
    """Killed once at every step, the registry serves the old or the new one; run once more, it is complete."""
    candidate = asked(third)
    for step in ("artifact.replace", *STEPS):
        killed(third, step, "approve", candidate.name)
        check(third)
        assert open_registry(third).current() in ("v0.0.2", "v0.0.3")
        if step not in ("release.switched", "approval.settled"):
            assert open_registry(third).current() == "v0.0.2"
    done = approve(third, candidate.name, "Ada", "looked at")
    assert done.version == "v0.0.3"
    check_complete(third, "v0.0.3", candidate.bundle)
    assert tags(third).count("simclr-encoder@v0.0.3") == 1
    assert (records(third, "waiting"), records(third, "decided")) == ([], [candidate.name])


@repeated
@pytest.mark.timeout(900)
def test_a_killed_approval_is_completed_by_the_next_one(third: Workspace, tmp_path: Path) -> None:
    candidate = asked(third)
    for number, step in enumerate(some([step for step in STEPS if ":" not in step], 2)):
        shutil.copytree(third.root.parent, tmp_path / str(number), symlinks=True)
        workspace = Workspace((tmp_path / str(number) / "workspace").resolve())
        killed(workspace, step, "approve", candidate.name)
        check(workspace)
        approve(workspace, candidate.name, "Bob", "the second")
        check_complete(workspace, "v0.0.3", candidate.bundle)
        (kept,) = waiting.decided(workspace.root / "registry")
        assert kept.decision is not None
        assert kept.decision.who == "Ada"  # the first decision stands


@pytest.mark.timeout(900)
def test_a_request_and_a_rejection_survive_kills(third: Workspace) -> None:
    override(third, {"gates.approval": "required"})
    for step in ("release.committed", "release.verified", "artifact.replace", "approval.asked"):
        killed(third, step, "offer")
        check(third)
    candidate = asked(third)
    for step in ("artifact.replace", "approval.decided", "artifact.replace:kill@1", "approval.rejected"):
        killed(third, step, "reject", candidate.name)
        check(third)
        assert open_registry(third).current() == "v0.0.2"
    held = offer(third, (), UNDECIDED)  # the decision stands, though its record was not moved yet
    assert isinstance(held, Held)
    assert "rejected by Ada" in str(held)
    with pytest.raises(ReleaseError, match="a rejection is final"):
        approve(third, candidate.name, "Bob", "but")
    reject(third, candidate.name, "Ada", "looked at")
    assert (records(third, "waiting"), records(third, "decided")) == ([], [candidate.name])
    assert [one.gate for one in open_registry(third).rejections()] == ["approval"]


def test_an_interrupted_approval_holds_the_run_until_it_is_repeated(third: Workspace) -> None:
    candidate = asked(third)
    killed(third, "approval.decided", "approve", candidate.name)
    held = offer(third, (), UNDECIDED)
    assert isinstance(held, Held)
    assert "that was interrupted, repeat it" in str(held)
    with pytest.raises(ReleaseError, match="`simclr release approve` completes it"):
        reject(third, candidate.name, "Bob", "no")
    killed(third, "release.registered", "approve", candidate.name)
    done = offer(third, (), UNDECIDED)  # from here on the run does what is left
    assert isinstance(done, Released)
    check_complete(third, "v0.0.3", candidate.bundle)
    assert (records(third, "waiting"), records(third, "decided")) == ([], [candidate.name])
