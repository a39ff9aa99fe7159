"""How a stage reports to the process that started it: events while it runs, timings or an error when it is done.

Neither belongs to the stage's results. Events go to the file named by ``SIMCLR_EVENTS``, one JSON object a line, and
nowhere when the variable is unset. Timings go to ``.simclr/timings/``, outside every DVC output, because they differ
from run to run. Only the first process of a distributed run reports.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deploy import failure
from deploy.artifact import write_atomically

EVENTS = "SIMCLR_EVENTS"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set by torch's launcher for each of its processes, read when one has failed


def emit(event: str, **fields: object) -> None:
    """Append one event (``start``, ``progress`` or ``end``) to the event file.

    Every event carries ``stage`` and ``message`` (one sentence for a person); the rest are numbers and short texts.
    One event an epoch, not one a step. A line is written by one call, so that a reader never sees half of one.
    """
    path = os.environ.get(EVENTS)
    if not path:
        return
    line = json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n"
    with open(path, "ab", buffering=0) as file:
        file.write(line.encode())


def emitter(stage: str, rank: int) -> Callable[..., None]:
    """``emit`` for a stage, by the first process of its group; the others write no event."""
    return partial(emit, stage=stage) if rank == 0 else _keep_silent


def _keep_silent(_event: str, **_: object) -> None: ...


def record_timing(stage: str, *, workspace: Path = Path(), **numbers: float) -> None:
    """Write the durations (seconds) and rates of a stage to ``.simclr/timings/<stage>.json`` of the workspace."""
    rounded = {name: round(number, 3) for name, number in numbers.items()}
    write_atomically(_timing(stage, workspace), json.dumps(rounded, indent=2) + "\n")


def finish(stage: str, workspace: Path, began: float, message: str) -> None:
    """Tell that a stage has ended, and the seconds since ``began``, a time of ``time.perf_counter``."""
    seconds = time.perf_counter() - began
    record_timing(stage, workspace=workspace, seconds=seconds)
    emit("end", stage=stage, message=message, seconds=round(seconds, 1))


def read_timing(stage: str, workspace: Path) -> dict[str, float]:
    """What ``record_timing`` wrote of a stage; nothing where it has not run on this machine, or cannot be read."""
    try:
        numbers: dict[str, float] = json.loads(_timing(stage, workspace).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return numbers


def _timing(stage: str, workspace: Path) -> Path:
    return workspace / ".simclr" / "timings" / f"{stage}.json"


def fail(error: object, code: int = 2) -> int:
    """``failure.fail``; but in a process of a group, the launcher says it once for all of them."""
    path = os.environ.get(ERROR_FILE)
    if path:
        Path(path).write_text(json.dumps({"message": str(error), "timestamp": int(time.time())}), encoding="utf-8")
    else:
        failure.fail(error)
    return code
