"""Reads every versioned byte again and compares its hash; what is damaged is set aside and, where possible, restored.

    simclr fsck --seconds 3600        every night: continues where it stopped, and begins again after a week

DVC trusts an object that is read-only and never reads it again. Here every object of its cache, every raw batch, model
and released bundle is read (``pipeline.maintenance.integrity``), the one that was read the longest ago first.
"""

import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from deploy.plural import counted
from pipeline.dvc import cache
from pipeline.maintenance.disk import size
from pipeline.maintenance.integrity import REMOTE, Checker, Damage, Item
from pipeline.workspace import Workspace

MEMORY = "fsck.sqlite"
PROGRESS_SECONDS = 2.0


@dataclass
class Report:
    """What was read, what is damaged, and what is left for the next time."""

    files: int = 0
    bytes: int = 0
    recent: int = 0
    left: int = 0
    postponed: int = 0
    seconds: float = 0.0
    damages: list[Damage] = field(default_factory=list)

    @property
    def lost(self) -> list[Damage]:
        return [damage for damage in self.damages if not damage.repaired]

    def __str__(self) -> str:
        parts = [f"read {counted(self.files, 'file')}, {size(self.bytes)}, in {self.seconds:.0f} s"]
        if not self.files:
            parts = ["the time was over before the first file was read" if self.left else "no file had to be read"]
        parts += [f"{self.recent:,} were read recently"] if self.recent else []
        parts += [f"the next `simclr fsck` reads the remaining {counted(self.left, 'file')}"] if self.left else []
        parts += [f"{self.postponed:,} seem damaged and wait until the workspace is free"] if self.postponed else []
        repaired = len(self.damages) - len(self.lost)
        sound = "no damage was found" if self.left else "nothing is damaged"
        parts.append(f"{len(self.damages)} damaged, {repaired} of them repaired" if self.damages else sound)
        return "\n".join([*map(str, self.damages), ", ".join(parts)])


def check(
    workspace: Workspace,
    seconds: float | None = None,
    older_than_days: float = 7.0,
    remote: bool = False,
    on_progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Report:
    """Check what has not been read for the longest time.

    Nothing is locked while it reads; what seems damaged is read again, and repaired, with the workspace held.

    Args:
        seconds: stop after this many.
        older_than_days: skip what was read since, unless its size or time has changed.
        remote: also read every object of a released version from the DVC remote.

    Raises:
        DvcError: a version cannot be read, or the remote cannot be reached.
    """
    began = shown = time.monotonic()
    with cache.opened(workspace.root) as objects, closing(Memory(workspace.scratch / MEMORY)) as memory:
        if remote:
            objects.require_remote()
        checker = Checker(workspace, objects)
        checker.check_listings()
        checker.check_presence()
        items = checker.items(remote)
        memory.forget_all_but(items, remote)
        due = memory.due(items, time.time() - older_than_days * 24 * 3600)
        total = sum(item.size for item in due)
        report = Report(recent=len(items) - len(due), left=len(due), damages=checker.damages)
        for item in due:
            now = time.monotonic()
            if seconds is not None and now - began >= seconds:
                break
            if now - shown >= PROGRESS_SECONDS:
                memory.save()
                on_progress(_progress(report.bytes, total, now - began))
                shown = now
            if checker.check(item):
                memory.remember(item)
            report.files, report.bytes, report.left = report.files + 1, report.bytes + item.size, report.left - 1
        report.postponed, report.seconds = checker.postponed, time.monotonic() - began
    return report


def _progress(done: int, total: int, seconds: float) -> str:
    rate = done / seconds
    left = f"{(total - done) / rate:.0f} s left" if rate else "just begun"
    return f"{size(done)} of {size(total)}, {size(rate)}/s, {left}"


class Memory:
    """When each thing was last found sound, and how large and how old it was then."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=60)
        self._database.execute("CREATE TABLE IF NOT EXISTS sound (key TEXT PRIMARY KEY, size, changed, at)")

    def due(self, items: Iterable[Item], before: float) -> list[Item]:
        """What was not found sound since ``before``, the longest ago first."""
        rows = self._database.execute("SELECT key, size, changed, at FROM sound")
        known = {(key, length, changed): at for key, length, changed, at in rows}
        last = {item: known.get((item.key, item.size, item.changed), -1.0) for item in items}
        # A clock that was set back must not make anything look as if it had been read.
        due = [item for item, at in last.items() if not before <= at <= time.time()]
        return sorted(due, key=lambda item: (last[item], item.key))

    def forget_all_but(self, items: Iterable[Item], remote: bool) -> None:
        """Delete records of objects that no longer exist; include remote ones if ``items`` lists them."""
        rows = self._database.execute("SELECT key FROM sound").fetchall()
        here = {item.key for item in items}
        gone = [row for row in rows if row[0] not in here and (remote or not row[0].startswith(REMOTE))]
        self._database.executemany("DELETE FROM sound WHERE key = ?", gone)

    def remember(self, item: Item) -> None:
        row = (item.key, item.size, item.changed, time.time())
        self._database.execute("INSERT OR REPLACE INTO sound VALUES (?, ?, ?, ?)", row)

    def save(self) -> None:
        self._database.commit()

    def close(self) -> None:
        self.save()
        self._database.close()
