"""A person approves: candidates that wait for a decision, and what follows from it.

    simclr release approve CANDIDATE --why TEXT        simclr release reject CANDIDATE --why TEXT

Where ``gates.approval`` asks for it, a candidate is pushed, committed and verified as for a release, and then waits
(``pipeline.waiting``). It can be approved while the champion that it was compared with serves, until it expires. An
approval records the decision and does the other steps of a release; killed between any two and repeated, it continues.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deploy.failpoint import failpoint
from pipeline import alerts, waiting
from pipeline.errors import ReleaseError
from pipeline.release.candidate import Made, fetch_history, verify_clone
from pipeline.release.releases import Releases, locked_releases
from pipeline.release.serving import Released, complete
from pipeline.release.versions import History
from pipeline.reports import EmbeddingDriftReport
from pipeline.waiting import Candidate, Decision
from pipeline.workspace import Workspace
from simclr_core.champion import Champion
from simclr_core.evaluation_reports import CompareReport
from simclr_core.reports import known

GATE = "approval"  # as records of rejected candidates name it


@dataclass(frozen=True)
class Held:
    """The candidate of the workspace is not released, as a person has to decide, or has rejected it: ``said``."""

    bundle: str
    said: str
    candidate: Candidate | None = None  # that waits

    def __str__(self) -> str:
        return self.said


def reasons_to_ask(releases: Releases, gates: Mapping[str, str]) -> tuple[str, ...]:
    """Why a person has to approve this candidate, by ``gates.approval``; nothing if none has to."""
    rule, root = releases.params.gates.approval, releases.root
    if rule == "none":
        return ()
    compare, drift = known(root, CompareReport), known(root, EmbeddingDriftReport)
    undecided = [name for name, said in gates.items() if said.startswith("undecided")]
    found = [f"{', '.join(undecided)} could not decide"] if undecided else []
    found += ["nothing could judge it (UNJUDGED)"] if compare and compare.unjudged else []
    found += [f"drift in {drift.batch}"] if drift and drift.verdict == "drift" else []
    return tuple(found or (["gates.approval is required"] if rule == "required" else []))


def find_held(releases: Releases, made: Made) -> Held | None:
    """What a person has decided on this candidate, or will; None if it can be released, or is to be asked for."""
    root, serving = releases.registry.root, _serving(releases.history)
    known_ones = (*waiting.decided(root), *waiting.waiting(root))
    for one in known_ones:
        if one.pretrained == made.pretrained and one.decision and one.decision.verdict == "rejected":
            return Held(made.bundle, f"candidate {made.bundle[:12]} was {one.decision}; it is not released")
    asked = next((one for one in known_ones if one.bundle == made.bundle and not one.obstacle(serving)), None)
    if asked is None:
        return None
    if asked.decision:
        return Held(made.bundle, f"candidate {asked.name} was {asked.decision}; that was interrupted, repeat it", asked)
    return Held(made.bundle, _describe(asked, serving), asked) if reasons_to_ask(releases, asked.gates) else None


def ask(releases: Releases, made: Made, commit: str, reasons: tuple[str, ...]) -> Held:
    """Let the candidate at this commit wait for a person, and tell people so, once."""
    pinned, serving = known(releases.root, Champion), _serving(releases.history)
    now = datetime.now(UTC).replace(microsecond=0)
    expires = now + timedelta(days=releases.params.gates.approval_days)
    candidate = Candidate(
        made.bundle,
        made.pretrained,
        commit,
        pinned.version if pinned else None,
        reasons,
        made.gates,
        now.isoformat(),
        expires.isoformat(),
    )
    waiting.candidate_page(releases.root, candidate.name).unlink(missing_ok=True)  # of an earlier comparison
    waiting.keep(releases.registry.root, candidate)
    failpoint("approval.asked")
    if obstacle := candidate.obstacle(serving):
        return Held(made.bundle, obstacle)
    held = Held(made.bundle, _describe(candidate, serving), candidate)
    address = os.environ.get(alerts.UI_URL, "").rstrip("/")
    see = f"\n{address}/candidates/{candidate.name}" if address else ""
    name = releases.root.name
    alerts.send(releases.workspace, "approval_needed", f"{name}: a candidate waits for a person", f"{held}{see}")
    return held


def approve(workspace: Workspace, name: str, who: str, why: str) -> Released:
    """Release a candidate that waits.

    Args:
        name: the first digits of its bundle.

    Raises:
        ReleaseError: there is no such candidate, it was rejected, it has expired, another version serves than it was
            compared with, or Git fails.
        DvcError: the remote does not have its data any more.
        BusyError: another process releases or switches. A training may be running.
    """
    with locked_releases(workspace, "approval") as releases:
        root = releases.registry.root
        candidate = waiting.find(root, name)
        if candidate.decision and candidate.decision.verdict == "rejected":
            raise ReleaseError(f"candidate {candidate.name} was {candidate.decision}; a rejection is final")
        history = fetch_history(releases)
        version = history.of_bundle(candidate.bundle)
        if version is None or version.name not in history.served:
            if obstacle := candidate.obstacle(_serving(history)):
                raise ReleaseError(obstacle)
        elif version != history.current:
            settle(releases, candidate.bundle)
            raise ReleaseError(
                f"candidate {candidate.name} is {version.name}, which served before; {_serving(history)} serves now, "
                f"and `simclr release promote {version.name}` lets it serve again"
            )
        if version is None:
            decision = _decision("approved", who, why)
            verify_clone(releases, candidate.commit, candidate.bundle, candidate.pretrained)
            candidate = waiting.decide(root, candidate, decision)
            failpoint("approval.decided")
            said = str(candidate.decision).removeprefix("approved ")
            history = history.register(releases.git, candidate.commit, candidate.bundle, said)
            version = history.of_bundle(candidate.bundle)
        failpoint("release.registered")
        assert version is not None
        note = f"candidate {candidate.name} was {candidate.decision or 'released without a person'}"
        done = complete(releases, history, version, (note,))
        settle(releases, candidate.bundle)
        return done


def reject(workspace: Workspace, name: str, who: str, why: str) -> Held:
    """Refuse a candidate that waits, for good.

    Raises:
        ReleaseError: there is no such candidate, or it was approved.
        BusyError: another process releases or switches.
    """
    with locked_releases(workspace, "rejection") as releases:
        registry = releases.registry
        candidate = waiting.find(registry.root, name)
        version = releases.history.of_bundle(candidate.bundle)
        if version or (candidate.decision and candidate.decision.verdict == "approved"):
            known_as = f"it is {version.name}" if version else "`simclr release approve` completes it"
            raise ReleaseError(
                f"candidate {candidate.name} was {candidate.decision or 'released'}; {known_as}, and "
                "`simclr release rollback` leads back from what serves"
            )
        candidate = waiting.decide(registry.root, candidate, _decision("rejected", who, why))
        failpoint("approval.decided")
        decision = candidate.decision
        assert decision is not None
        rejected = registry.rejection(candidate.pretrained[:12])
        if rejected is None or rejected.gate != GATE:
            registry.reject(candidate.pretrained[:12], GATE, f"{decision.who}: {decision.why}", "", {})
        failpoint("approval.rejected")
        waiting.settle(registry.root, candidate)
        failpoint("approval.settled")
    serves = _serving(releases.history)
    said = f"{serves} serves as before" if serves else "nothing serves"
    return Held(candidate.bundle, f"candidate {candidate.name} was {decision}; {said}")


def settle(releases: Releases, bundle: str) -> None:
    """The version of this bundle has been registered: no candidate of it waits any longer."""
    root = releases.registry.root
    for candidate in waiting.waiting(root):
        if candidate.bundle == bundle:
            if candidate.decision:
                waiting.settle(root, candidate)
            else:
                waiting.forget(root, bundle)
    failpoint("approval.settled")


def _decision(verdict: str, who: str, why: str) -> Decision:
    """Each in one line: a tag says it.

    Raises:
        ReleaseError: one of them is empty.
    """
    who, why = " ".join(who.split()), " ".join(why.split())
    if not who or not why:
        raise ReleaseError(f"{'--why' if who else '--who'} is empty; a decision is recorded with name and reason")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Decision("approved" if verdict == "approved" else "rejected", who, why, now)


def _serving(history: History) -> str | None:
    return history.current.name if history.current else None


def _describe(candidate: Candidate, serving: str | None) -> str:
    until, why = waiting.clock(candidate.expires), "; ".join(candidate.reasons)
    return (
        f"candidate {candidate.name} waits for a person until {until} UTC: {why}; {candidate.next} decides, and "
        f"{serving or 'nothing'} serves meanwhile"
    )
