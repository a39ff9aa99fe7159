"""The record of what was purged: who had which bytes removed, when and why, and what was removed; never the bytes.

    data/purged.jsonl        one line for each purge; every state of a run and every release commits it

What ``simclr purge`` has begun and not completed is in ``.simclr/purge.json``, and nothing else changes the workspace
until it is complete.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.artifact import write_atomically

RECORD = Path("data") / "purged.jsonl"
JOURNAL = Path(".simclr") / "purge.json"
PURPOSE = "purge"  # of the process that may change the workspace meanwhile


@dataclass(frozen=True)
class Purge:
    """One purge.

    Attributes:
        hashes: SHA-256 of the contents.
        batches: the raw batches that held them, or said where they were seen.
        objects: removed objects of DVC's cache (``cache``) and of each remote, by its name; None before they are known.
        models: for each version whose data held them, what it had of them.
        unreached: for each remote that could not be cleaned, why.
        golden: objects that still show a small copy, for each release that has it in its bundle; see
            ``simclr release withdraw``.
    """

    hashes: tuple[str, ...]
    who: str
    when: str
    why: str
    batches: tuple[str, ...] = ()
    objects: dict[str, list[str]] | None = None
    models: dict[str, str] | None = None
    unreached: dict[str, str] | None = None
    golden: dict[str, list[str]] | None = None


def purges(root: Path) -> list[Purge]:
    """Every purge of this workspace, the oldest first."""
    try:
        lines = (root / RECORD).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [_parse(line) for line in lines if line]


def record(root: Path, purge: Purge) -> None:
    """Add a purge, once."""
    others = [one for one in purges(root) if (one.when, one.hashes) != (purge.when, purge.hashes)]
    write_atomically(root / RECORD, "".join(json.dumps(asdict(one)) + "\n" for one in (*others, purge)))


def find_interrupted_purge(root: Path) -> Purge | None:
    """The purge that was begun and not completed."""
    try:
        return _parse((root / JOURNAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_journal(root: Path, purge: Purge) -> None:
    write_atomically(root / JOURNAL, json.dumps(asdict(purge)))


def contents(root: Path) -> frozenset[str]:
    """SHA-256 of everything that was purged, and must not come in again."""
    return frozenset(sha256 for purge in purges(root) for sha256 in purge.hashes)


def objects(root: Path) -> frozenset[str]:
    """The objects that versions need and that are gone on purpose."""
    return frozenset(md5 for purge in purges(root) for md5s in (purge.objects or {}).values() for md5 in md5s)


def unreached(root: Path) -> list[tuple[Purge, str, str]]:
    """Purge, remote and reason, where the last attempt could not clean a remote."""
    latest = {purge.hashes: purge for purge in purges(root)}.values()
    return [(purge, name, reason) for purge in latest for name, reason in (purge.unreached or {}).items()]


def shown(root: Path) -> list[tuple[Purge, str]]:
    """Purge and release, where the last attempt left a small copy in the bundle of a release."""
    latest = {purge.hashes: purge for purge in purges(root)}.values()
    return [(purge, name) for purge in latest for name in purge.golden or {}]


def _parse(line: str) -> Purge:
    fields = json.loads(line)
    return Purge(**fields | {name: tuple(fields[name]) for name in ("hashes", "batches")})
