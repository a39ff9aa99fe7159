"""How far a stage has come, for a person who watches: a bar on a terminal; under DVC, which the stage does not share a
terminal with, a small file next to the stage's events, from which ``simclr run`` draws the bar.

Not an event: an event is kept, and there is one an epoch. This is overwritten once a second.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple, Self

from tqdm import tqdm

from simclr_core.reporter import EVENTS

SECONDS = 1.0


class Tick(NamedTuple):
    """``done`` of ``total`` ``unit``, such as images."""

    done: int
    total: int
    unit: str


def tick_file(events: Path) -> Path:
    """Where a stage with this file of events says how far it is."""
    return events.with_suffix(".tick")


def read_tick(events: Path) -> Tick | None:
    """What the stage said last; None if it has not said anything yet."""
    try:
        return Tick(**json.loads(tick_file(events).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Bar:
    """``update`` it with what was done since; ``quiet`` in all processes of a group but the first."""

    def __init__(self, total: int, unit: str, done: int = 0, quiet: bool = False, name: str | None = None) -> None:
        events = os.environ.get(EVENTS)
        self._tick, self._file = Tick(done, total, unit), None if quiet or not events else tick_file(Path(events))
        hidden = quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", unit_scale=True, disable=hidden)
        self._due = time.monotonic() + SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        self._bar.update(count)
        self._tick = self._tick._replace(done=self._tick.done + count)
        if self._file is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + SECONDS
            work = self._file.with_suffix(".new")
            work.write_text(json.dumps(self._tick._asdict()), encoding="utf-8")
            work.replace(self._file)  # so that no one reads half of it
