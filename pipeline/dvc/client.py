"""Runs ``dvc``, one writer at a time in a workspace.

While a stage runs, its output goes to ``.simclr/logs/<stage>.log`` and its events (``simclr_core.reporter``) to
``.simclr/events/<stage>.jsonl``; both are passed on as they grow, without the secrets in them (``pipeline.redact``).
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

import psutil

from deploy.failure import killed_by
from deploy.lock import acquire, held, sign
from pipeline.dvc.explained import failure
from pipeline.dvc.logs import Events, Log
from pipeline.dvc.memory import resident_bytes
from pipeline.dvc.processes import supervised
from pipeline.dvc.project import track
from pipeline.dvc.purged import JOURNAL, PURPOSE
from pipeline.dvc.silence import Silence
from pipeline.errors import BusyError, DvcError, StageFailedError
from pipeline.redact import redactor
from pipeline.runs.descendants import POLL_SECONDS
from simclr_core.progress import Tick

LOCK = Path(".dvc", "tmp", "simclr.lock")
DVC = (
    sys.executable,
    "-P",
    "-m",
    "dvc",
    "--wait-for-lock",
)  # a person's `dvc push` may hold DVC's own lock for a moment
LOOK_SECONDS = 0.5  # between two looks at the memory of a stage
GRACE_SECONDS = 60.0  # torchrun takes up to 30 s to stop its workers, after they have saved a checkpoint


class Outcome(StrEnum):
    """What ``dvc repro`` did: ran the command, took the results of an equal run from the cache, or found no change."""

    EXECUTED = "executed"
    RESTORED = "restored"
    SKIPPED = "skipped"


# DVC prints one of these before anything of the stage's own.
ANNOUNCEMENTS = {
    "Running stage '{}':": Outcome.EXECUTED,
    "Stage '{}' is cached - skipping run, checking out outputs": Outcome.RESTORED,
    "Stage '{}' didn't change, skipping": Outcome.SKIPPED,
}
FAILED = "ERROR: failed to reproduce"  # DVC's verdict, after everything of the stage's own
# What no stage makes, and what does.
SOURCES = {
    "data/raw": "put images into inbox/unlabeled, then `simclr ingest`, or `simclr run` for everything",
    "weights": "`mkdir weights` makes the folder for public weights, which may be empty",
    "models/champion": "`simclr run --select champion` records which encoder is released, or that none is",
}
WORDS = {"new": "is new", "modified": "has changed", "deleted": "is missing", "not in cache": "is not in the cache"}


@dataclass(frozen=True)
class Reproduction:
    """How a stage came to its results, how long that took, DVC's hashing included, and the memory of its processes."""

    outcome: Outcome
    seconds: float
    memory_bytes: int = 0


@contextmanager
def exclusive(root: Path, purpose: str) -> Iterator[IO[str]]:
    """Hold the workspace at ``root``; the kernel frees it when the last process that has the yielded file open is gone.

    Raises:
        BusyError: another process holds it; the message names the process and how to stop it.
    """

    def busy(holder: str) -> BusyError:
        return BusyError(f"{root}: busy with {_with_state(holder)}")

    with held(root / LOCK, _holder(purpose, f"kill -INT {os.getpid()}"), busy) as file:
        if purpose != PURPOSE and (root / JOURNAL).exists():
            raise BusyError(f"{root}: a purge was interrupted; `simclr purge` completes it")
        yield file


def holder(root: Path) -> str:
    """What holds the workspace at ``root`` now, and how to stop it; empty when nothing does. Holds nothing itself."""
    try:
        with (root / LOCK).open(encoding="utf-8") as file:
            return "" if acquire(file, shared=True) else _with_state(file.read().strip() or "another process")
    except FileNotFoundError:
        return ""


def add(root: Path, path: Path) -> None:
    """Track a file or folder with ``dvc add`` unless nothing has changed; the caller holds the workspace.

    Raises:
        DvcError: with DVC's own words.
        BusyError: another ``dvc`` is at work on the same files.
    """
    track(root, path.relative_to(root).as_posix())


def changed_stages(root: Path, *stages: str) -> dict[str, list[str]]:
    """What a run would have to bring up to date, of these stages or of all: stage → what has changed.

    Raises:
        DvcError: with DVC's own words.
    """
    status: dict[str, list[str | dict[str, dict[str, str | dict[str, str]]]]] = json.loads(
        execute(root, "status", "--json", *stages)
    )
    return {stage: [reason for change in changes for reason in _reasons(change)] for stage, changes in status.items()}


def repro(
    root: Path,
    stage: str,
    on_event: Callable[[str], None] = print,
    on_output: Callable[[str], None] = print,
    on_tick: Callable[[Tick | None], None] = lambda _: None,
    grace_seconds: float = GRACE_SECONDS,
    force: bool = False,
) -> Reproduction:
    """Bring the results of one stage up to date: ``dvc repro --single-item STAGE``.

    An exception here, such as an interrupt, ends every process of the stage; see ``processes.supervised``.

    Args:
        on_event: gets the message of each event that the stage reports.
        on_output: gets each line that DVC and the stage print.
        on_tick: gets how far the stage is, None while it has not said so.
        force: run the stage's command though nothing has changed.

    Raises:
        StageFailedError: the command of the stage failed, or it hung (``pipeline.dvc.silence``).
        DvcError: DVC failed before or after the command.
        BusyError: another process holds the workspace.
    """
    started = time.monotonic()
    announcements = {line.format(stage): outcome for line, outcome in ANNOUNCEMENTS.items()}
    outcomes: list[Outcome] = []
    scratch = root / ".simclr"
    hide = redactor(root)
    silence = Silence(root, stage)
    memory, looked = 0, -math.inf

    def forward() -> None:
        for line in events.lines():
            silence.broken()
            on_event(_message(line))
        for line in log.lines():
            silence.broken()
            if line in announcements:
                outcomes.append(announcements[line])
            on_output(line)

    with (
        exclusive(root, f"stage {stage}") as lock,
        closing(Log(scratch / "logs" / f"{stage}.log", hide)) as log,
        closing(Events(scratch / "events" / f"{stage}.jsonl", hide)) as events,
        # DVC inherits the lock: should this process be killed, the workspace stays held until the stage has ended.
        supervised(
            [*DVC, "repro", *(["--force"] if force else []), "--single-item", stage],
            root,
            _environment(SIMCLR_EVENTS=str(events.path)),
            log.source,
            grace_seconds,
            [lock.fileno()],
        ) as process,
    ):
        log.source.unlink()
        sign(lock, _holder(f"stage {stage}", f"kill -INT -{process.pid}"))
        while process.poll() is None:
            if time.monotonic() >= looked + LOOK_SECONDS:
                looked, memory = time.monotonic(), max(memory, resident_bytes(process.pid))
                on_tick(events.tick())
            forward()
            silence.check()
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        forward()
    if process.returncode != 0:
        raise _failure(stage, outcomes, log.last, log.path.relative_to(root))
    if not outcomes:
        raise DvcError(f"stage {stage}: dvc succeeded without printing what it did: {' | '.join(log.last)}")
    if outcomes[0] is Outcome.EXECUTED:
        silence.keep()
    return Reproduction(outcomes[0], time.monotonic() - started, memory)


def execute(root: Path, *arguments: str) -> str:
    """Run `dvc ARGUMENTS` and return what it printed.

    Raises:
        DvcError: with DVC's own words, without secrets.
        BusyError: another ``dvc`` is at work on the same files.
    """
    done = subprocess.run([*DVC, *arguments], cwd=root, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()).removeprefix("ERROR: ") or f"exit code {done.returncode}"
        reason = killed_by(done.returncode) or reason
        raise failure(root, f"`dvc {' '.join(arguments)}` failed", reason)
    return done.stdout


def _environment(**variables: str) -> dict[str, str]:
    """``python`` in dvc.yaml is this Python, and imports what is installed rather than a module in the workspace."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    ours = {"PATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}
    return {**os.environ, **ours, **variables}


def _holder(purpose: str, stop: str) -> str:
    return f"{purpose} of process {os.getpid()}; wait until it ends, or stop it with `{stop}`"


def _with_state(holder: str) -> str:
    """The holder's description, and how to let it continue if a signal has stopped it: it takes no other one then."""
    found = re.search(r"of process (\d+)", holder)
    with suppress(psutil.NoSuchProcess):
        if found and psutil.Process(int(found[1])).status() == psutil.STATUS_STOPPED:
            return f"{holder}; it is stopped, and `kill -CONT {found[1]}` lets it continue"
    return holder


def _reasons(change: str | dict[str, dict[str, str | dict[str, str]]]) -> list[str]:
    """Of a file what became of it, of params.yaml what became of which of its blocks."""
    if isinstance(change, str):
        return [change]
    found = []
    for path, what in ((path, what) for paths in change.values() for path, what in paths.items()):
        parts = {path: what} if isinstance(what, str) else {f"{key} in {path}": one for key, one in what.items()}
        found += [f"{name} {WORDS.get(one, one)}" for name, one in parts.items()]
    return found


def _message(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line


def _failure(stage: str, outcomes: Sequence[Outcome], printed: Sequence[str], log: Path) -> DvcError | StageFailedError:
    said, _, verdict = "\n".join(printed).rpartition(FAILED)
    verdict = " ".join(verdict.split()).strip(": ").removeprefix(f"'{stage}': ")
    if Outcome.EXECUTED not in outcomes or "failed to run:" not in verdict:
        for path, advice in SOURCES.items():
            if f"{path}'" in verdict and "No such file" in verdict:
                return DvcError(f"stage {stage}: {path} is missing; {advice}")
        return DvcError(
            f"stage {stage}: dvc could not bring it up to date: {verdict} "
            f"(full output: {log}; `simclr doctor` looks for the cause)"
        )
    lines = [line for line in said.split("\n") if line]
    exited = re.search(r"exited with (-?\d+)$", verdict)
    code = int(exited[1]) if exited else 0
    killed = killed_by(code if code < 0 else 128 - code)  # a shell adds 128 to the number of the signal
    errors = [line for line in lines if line.startswith("error: ")]
    silent = not lines or lines[-1].startswith("> ")  # DVC shows the command before it runs it
    if errors:
        cause = errors[-1]
    elif killed:  # then its last line says what it did, not what ended it
        cause = f"its process {killed}"
    else:
        cause = verdict.rpartition(", ")[2] if silent else lines[-1]
    return StageFailedError(
        f"stage {stage}: {cause.removeprefix('error: ')} (full output: {log}; "
        "once the cause is fixed, `simclr run` continues with this stage)"
    )
