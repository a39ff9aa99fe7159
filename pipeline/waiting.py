"""Candidates on which a person decides: what is known of each, who has decided what, and whether it still can be.

    registry/waiting/<bundle>.json     asked; with a decision, it is being carried out
    registry/decided/<bundle>.json     approved or rejected: by whom, when and why

``<bundle>`` are the first 12 digits. Who is asked, and what follows, is for ``pipeline.release.approval``.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from deploy.artifact import write_atomically
from pipeline.errors import ReleaseError

WAITING, DECIDED = "waiting", "decided"  # folders of the registry
SHORT = 12  # digits of a bundle that are its name


@dataclass(frozen=True)
class Decision:
    """Of a person; ``when`` in UTC."""

    verdict: Literal["approved", "rejected"]
    who: str
    why: str
    when: str

    def __str__(self) -> str:
        return f"{self.verdict} by {self.who} at {clock(self.when)}: {self.why}"


@dataclass(frozen=True)
class Candidate:
    """A candidate, pushed and verified at ``commit``, that is released if a person approves it.

    Attributes:
        bundle, pretrained: identities of models/bundle and models/pretrained.
        champion: the version that it was compared with; None if none was released.
        reasons: why a person is asked.
        gates: what each gate said of it.
        requested, expires: in UTC.
    """

    bundle: str
    pretrained: str
    commit: str
    champion: str | None
    reasons: tuple[str, ...]
    gates: Mapping[str, str]
    requested: str
    expires: str
    decision: Decision | None = None

    @property
    def name(self) -> str:
        return self.bundle[:SHORT]

    @property
    def next(self) -> str:
        """What a person does."""
        return " or ".join(f"`{command}`" for command in self.commands)

    @property
    def commands(self) -> tuple[str, ...]:
        """To approve it, and to reject it."""
        return tuple(f"simclr release {verb} {self.name} --why …" for verb in ("approve", "reject"))

    def expired(self, now: datetime | None = None) -> bool:
        """Whether no one has decided in time."""
        return self.decision is None and datetime.fromisoformat(self.expires) < (now or datetime.now(UTC))

    def obstacle(self, serving: str | None, now: datetime | None = None) -> str | None:
        """Why no one can approve it any more, in a sentence; None if a person can.

        Args:
            serving: the version that serves.
        """
        if serving != self.champion:
            compared = self.champion or "no champion"
            return (
                f"candidate {self.name} was compared with {compared}, and {serving or 'nothing'} serves now; it cannot "
                "be approved, the next run compares its candidate with what serves"
            )
        if self.expired(now):
            return (
                f"candidate {self.name} expired at {clock(self.expires)} (gates.approval_days); it cannot be approved, "
                "`simclr run` asks again where it is still the candidate of the workspace"
            )
        return None

    def __str__(self) -> str:
        """For a person, without the next step."""
        since, until = clock(self.requested), clock(self.expires)
        return f"{self.name} for a person since {since}, until {until} UTC: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class Open:
    """The candidates that a person can approve now, the longest waiting first, and how many no one can any more."""

    candidates: tuple[Candidate, ...] = ()
    missed: int = 0

    def lines(self) -> list[str]:
        """For a person: which candidates wait, and the next step."""
        return [f"waiting    {one}; {one.next}" for one in self.candidates]

    def to_dict(self) -> dict[str, object]:
        """For a program."""
        return {"candidates": [asdict(one) | {"next": one.next} for one in self.candidates], "missed": self.missed}


def clock(moment: str) -> str:
    """As people read it: ``2026-12-14 03:20``, UTC."""
    return moment[:16].replace("T", " ")


def candidate_page(root: Path, name: str) -> Path:
    """Where what a person looks at is, in the workspace at ``root``; see ``pipeline.run_report.candidate``."""
    return root / ".simclr" / "candidates" / f"{name}.html"


def waiting(registry: Path) -> list[Candidate]:
    """All that no decision was carried out on, expired or not, the longest waiting first."""
    return _read(registry / WAITING)


def decided(registry: Path) -> list[Candidate]:
    """Those that were approved or rejected, in the order in which they were asked for."""
    return _read(registry / DECIDED)


def look(registry: Path, serving: str | None) -> Open:
    """What there is to decide."""
    found, now = waiting(registry), datetime.now(UTC)
    can_be = tuple(one for one in found if one.obstacle(serving, now) is None)
    return Open(can_be, len(found) - len(can_be))


def is_outdated(registry: Path, bundle: str, serving: str | None) -> bool:
    """Whether the candidate was compared with another version than the one that serves, and has to be again."""
    return any(one.bundle == bundle and one.champion != serving for one in waiting(registry))


def find(registry: Path, name: str) -> Candidate:
    """The candidate whose bundle begins with these digits.

    Raises:
        ReleaseError: there is none, or more than one.
    """
    known = {one.bundle: one for one in (*decided(registry), *waiting(registry))}
    found = [one for bundle, one in known.items() if name and bundle.startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise ReleaseError(f"{name}: begins {len(found)} candidates: {', '.join(one.name for one in found)}; give more")
    names = ", ".join(one.name for one in waiting(registry))
    raise ReleaseError(f"{name!r}: no such candidate; {f'waiting are {names}' if names else 'none waits for a person'}")


def keep(registry: Path, candidate: Candidate) -> None:
    """Write its record, complete or not at all."""
    content = json.dumps(asdict(candidate), indent=2, ensure_ascii=False) + "\n"
    write_atomically(registry / WAITING / f"{candidate.name}.json", content)


def decide(registry: Path, candidate: Candidate, decision: Decision) -> Candidate:
    """Record the decision on a candidate that waits; the first one stands."""
    if candidate.decision is not None:
        return candidate
    decided_on = replace(candidate, decision=decision)
    keep(registry, decided_on)
    return decided_on


def settle(registry: Path, candidate: Candidate) -> None:
    """What was decided has been done: it waits no longer."""
    (registry / DECIDED).mkdir(parents=True, exist_ok=True)
    file = f"{candidate.name}.json"
    if (registry / WAITING / file).exists():
        (registry / WAITING / file).replace(registry / DECIDED / file)


def forget(registry: Path, bundle: str) -> None:
    """It was released without a person, who is asked no more."""
    (registry / WAITING / f"{bundle[:SHORT]}.json").unlink(missing_ok=True)


def _read(folder: Path) -> list[Candidate]:
    found = []
    for path in folder.glob("*.json"):
        try:
            found.append(_parse(json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:  # decided meanwhile
            continue
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ReleaseError(f"{path}: not the record of a candidate ({error}); remove it") from None
    return sorted(found, key=lambda one: (one.requested, one.bundle))


def _parse(known: dict[str, Any]) -> Candidate:
    decision = known.pop("decision")
    candidate = Candidate(**known, decision=Decision(**decision) if decision else None)
    datetime.fromisoformat(candidate.expires)
    return replace(candidate, reasons=tuple(candidate.reasons))
