"""DVC's own locks, and what a killed ``dvc`` leaves of them.

``.dvc/tmp/rwlock`` is a JSON file of who reads and writes which path. DVC writes it in place, so that a kill at the
wrong moment leaves half of it, and then refuses everything. It takes an entry for alive when its process number is,
though numbers are used again.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from deploy.artifact import write_atomically
from deploy.lock import acquire
from pipeline.dvc.client import exclusive
from pipeline.errors import BusyError, DvcError

RWLOCK = "rwlock"
DVC_COMMAND = re.compile(r"(^|[/\\])dvc(\.exe)?$")


def rwlock_fault(root: Path) -> str:
    """What is wrong with it, empty when nothing is.

    Raises:
        BusyError: a ``dvc`` is just changing it.
    """
    path = _folder(root) / RWLOCK
    with _guarded(root):
        entries = _read(path)
        if entries is None:
            return "it is corrupt: a dvc process was killed while writing it, and every later dvc command fails"
        dead = sorted({str(entry["pid"]) for _, _, entry in _walk(entries) if not _alive(entry, path)})
    return f"it names processes that no longer exist ({', '.join(dead)})" if dead else ""


def rebuild_rwlock(root: Path) -> None:
    """Keep of it what belongs to a living ``dvc``; of a torn one nothing.

    Raises:
        BusyError: it is torn, and a ``dvc`` that may have an entry in it is at work in this workspace.
    """
    path = _folder(root) / RWLOCK
    with exclusive(root, "doctor"), _guarded(root):
        entries = _read(path)
        if entries is None:
            if running := running_dvc(root):
                raise BusyError(f"{path}: needed by dvc process {running[0]}; wait until it ends")
            entries = {}
        kept: dict[str, dict[str, Any]] = {"read": {}, "write": {}}
        for mode, place, entry in _walk(entries):
            if _alive(entry, path):
                if mode == "read":
                    kept[mode].setdefault(place, []).append(entry)
                else:
                    kept[mode][place] = entry
        write_atomically(path, json.dumps(kept))


def lock_holder(root: Path) -> str:
    """Which process holds DVC's lock of the whole workspace; empty when it is free.

    Raises:
        DvcError: a lock made of hard links is there, and nothing tells whether its owner is alive.
    """
    path = _folder(root) / "lock"
    if not path.exists():
        return ""
    if _uses_hard_links(root):
        raise DvcError(f"{path}: held, or left by a dvc process that was killed on some machine")
    with path.open("r", encoding="utf-8", errors="replace") as file:
        if not acquire(file, shared=True):
            return f"process {file.read().strip() or 'unknown'}"
    return ""  # the file alone holds nothing


def running_dvc(root: Path) -> list[int]:
    """Numbers of the ``dvc`` processes that work in this workspace."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if _is_dvc(process) and Path(process.cwd()).is_relative_to(root):
                found.append(process.pid)
    return found


def _folder(root: Path) -> Path:
    return root / ".dvc" / "tmp"


def _uses_hard_links(root: Path) -> bool:
    from dvc.config import Config

    return bool(Config(str(root / ".dvc"), validate=False)["core"].get("hardlink_lock", False))


@contextmanager
def _guarded(root: Path) -> Iterator[None]:
    """Keep every ``dvc`` from changing it meanwhile."""
    from dvc.lock import LockError, make_lock

    folder = _folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    guard = make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder), hardlink_lock=_uses_hard_links(root))
    try:
        guard.lock()
    except LockError:
        raise BusyError(f"{folder / RWLOCK}: another dvc process is changing it; try again") from None
    try:
        yield
    finally:
        guard.unlock()


def _read(path: Path) -> dict[str, Any] | None:
    """Its contents; nothing when it was never written, None when it is torn."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        list(_walk(entries))
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(entries)


def _walk(entries: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for mode in ("read", "write"):
        for place, found in entries.get(mode, {}).items():
            for entry in found if mode == "read" else [found]:
                yield mode, place, {"pid": int(entry["pid"]), "cmd": str(entry["cmd"])}


def _alive(entry: dict[str, Any], path: Path) -> bool:
    """Whether its process is there, was there when the file was last written, and is a ``dvc``."""
    try:
        process = psutil.Process(entry["pid"])
        return process.create_time() <= path.stat().st_mtime + 1 and _is_dvc(process)
    except psutil.Error:
        return False


def _is_dvc(process: psutil.Process) -> bool:
    return any(DVC_COMMAND.search(part) for part in process.cmdline()[:5])
