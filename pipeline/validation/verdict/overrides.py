"""overrides.csv: what people have decided about single images, whatever the rules say.

    sha256,action,who,why,added,expires
    3f0c…,allow,ada,"dark on purpose: night shots",2026-11-22,
    9a41…,deny,grace,"the owner has withdrawn consent",2026-11-22,2027-01-31

A content is known by the hash of its bytes, so a decision holds wherever and however often the file is in the inbox.
The file is in Git and an input of the validate stage. What has expired is struck out at the beginning of a run
(``settle``), and not by the calendar in the middle of a stage: the stage stays a function of its inputs.
"""

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from deploy.artifact import write_atomically
from deploy.lock import in_turn
from pipeline.errors import OverridesError
from pipeline.validation.reasons import RELEASABLE

if TYPE_CHECKING:
    import polars as pl

OVERRIDES = "overrides.csv"
Action = Literal["allow", "deny"]


@dataclass(frozen=True)
class Override:
    """One decision; it holds until the day ``expires`` has passed, or for good."""

    sha256: str
    action: Action
    who: str
    why: str
    added: date
    expires: date | None = None


COLUMNS = tuple(field.name for field in fields(Override))


def read(path: Path) -> tuple[Override, ...]:
    """Every decision, in the order of the file; a file that does not exist holds none.

    Raises:
        OverridesError: the file is not what this module writes; all faults are listed with their lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError:
        raise OverridesError(f"{path.name}: is not UTF-8 text; restore it with `git checkout {path.name}`") from None
    rows = csv.DictReader(io.StringIO(text), strict=True)
    faults: list[str] = []
    found: dict[str, Override] = {}
    try:
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise OverridesError(f"{path.name}: its first line must be {','.join(COLUMNS)}")
        for row in rows:
            override, problems = _parse(row)
            if override and override.sha256 in found:
                problems.append(f"{override.sha256[:12]} is decided twice; keep one line")
            faults += [f"line {rows.line_num}: {problem}" for problem in problems]
            if override:
                found[override.sha256] = override
    except csv.Error as error:
        faults.append(f"line {rows.line_num}: {error}")
    if faults:
        raise OverridesError(f"{path.name}: {'; '.join(faults)}")
    return tuple(found.values())


def write(path: Path, overrides: Iterable[Override]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in overrides:
        rows.writerow([one.sha256, one.action, one.who, one.why, one.added, one.expires or ""])
    write_atomically(path, text.getvalue())


def decide(path: Path, decisions: Sequence[Override]) -> None:
    """Add decisions; one about the same content replaces the earlier one. Of two that decide at once, both hold."""
    with in_turn(path.parent):
        latest = {one.sha256: one for one in (*read(path), *decisions)}
        write(path, latest.values())


def take_back(path: Path, decisions: Sequence[Override], before: Iterable[Override]) -> None:
    """Put what was decided ``before`` in the place of decisions.

    Raises:
        OverridesError: one of them is not there any more; nothing is written then.
    """
    with in_turn(path.parent):
        known = {one.sha256: one for one in read(path)}
        for one in decisions:
            if known.get(one.sha256) != one:
                raise OverridesError(f"{one.sha256[:12]}: was decided otherwise since; change {path.name} by hand")
            del known[one.sha256]
        write(path, [*known.values(), *before])


def settle(path: Path, today: date) -> list[Override]:
    """Make sure that the file exists, and strike out what has expired; returns that."""
    known = read(path)
    expired = [one for one in known if one.expires is not None and one.expires < today]
    if expired or not path.exists():
        write(path, [one for one in known if one not in expired])
    return expired


def find_allowed(overrides: Iterable[Override]) -> frozenset[str]:
    """The contents that are accepted in spite of a reason."""
    return frozenset(one.sha256 for one in overrides if one.action == "allow")


def find_denied(overrides: Iterable[Override]) -> dict[str, str]:
    """The contents that are refused, and the message that says so."""
    return {one.sha256: f"refused by {one.who}: {one.why}" for one in overrides if one.action == "deny"}


def without_effect(
    overrides: Iterable[Override], manifest: "pl.DataFrame", overruled: Collection[str] = RELEASABLE
) -> dict[str, str]:
    """SHA-256 → why a decision changes nothing, by a manifest with the columns sha256 and reasons.

    Args:
        overruled: the reasons that a decision has overruled, or will at the next validation.
    """
    decisions = list(overrides)
    rows = manifest.filter(manifest["sha256"].is_in([one.sha256 for one in decisions])).select("sha256", "reasons")
    files: dict[str, list[list[str]]] = {}
    for sha256, reasons in rows.iter_rows():
        files.setdefault(sha256, []).append(reasons)
    found: dict[str, str] = {}
    for one in decisions:
        seen = files.get(one.sha256, [])
        firm = dict.fromkeys(reason for reasons in seen for reason in reasons if reason not in overruled)
        if not seen:
            found[one.sha256] = "no raw batch holds it"
        elif one.action == "allow" and all(seen) and firm:
            found[one.sha256] = f"it stays quarantined as {', '.join(firm)}"
    return found


def _parse(row: dict[str | None, str | list[str] | None]) -> tuple[Override | None, list[str]]:
    values = {name: str(row.get(name) or "").strip() for name in COLUMNS}
    problems = ["has another number of columns"] if None in row or None in row.values() else []
    if not re.fullmatch("[0-9a-f]{64}", values["sha256"]):
        problems.append(f"sha256 is {values['sha256']!r}; must be 64 of 0-9 and a-f")
    if values["action"] not in get_args(Action):
        problems.append(f"action is {values['action']!r}; allowed: {', '.join(get_args(Action))}")
    problems += [f"{name} is empty; say {name}" for name in ("who", "why") if not values[name]]
    days: dict[str, date | None] = {}
    for name, optional in (("added", False), ("expires", True)):
        try:
            days[name] = date.fromisoformat(values[name]) if values[name] or not optional else None
        except ValueError:
            problems.append(f"{name} is {values[name]!r}; must be a day such as 2026-11-22")
    if problems:
        return None, problems
    action: Action = "allow" if values["action"] == "allow" else "deny"
    added = days["added"]
    assert added is not None
    return Override(values["sha256"], action, values["who"], values["why"], added, days["expires"]), []
