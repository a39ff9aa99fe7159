"""What ``simclr run`` shows: a line for each stage, gate and epoch; on a terminal also a bar, while a stage works.

When the reader of the output is gone or does not read, as in ``simclr run | head``, the run continues and what is not
taken is dropped.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from deploy.failure import Outlet
from pipeline.runs import output
from simclr_core.progress import Tick


class Terminal:
    """``descriptor`` is where the output goes; a bar is drawn if that is a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._outlet = Outlet(descriptor, output.PATIENCE)
        self._descriptor, self._watched = descriptor, os.isatty(descriptor)
        self._bar: tqdm[Any] | None = None

    def line(self, text: str) -> None:
        """Above the bar."""
        if self._bar is not None:
            self._bar.clear()
        self.write(f"{text}\n")
        if self._bar is not None:
            self._bar.refresh()

    def tick(self, stage: str, tick: Tick | None) -> None:
        """How far a stage is; None when it has ended."""
        if tick is None or not self._watched:
            self._end()
            return
        bar = self._bar
        if bar is None or (bar.desc, bar.total) != (f"{stage}: ", tick.total):
            self._end()
            bar = tqdm(
                total=tick.total,
                initial=tick.done,
                desc=stage,
                unit=f" {tick.unit}",
                unit_scale=True,
                file=self,
                leave=False,
                dynamic_ncols=True,
            )
        self._bar = bar
        bar.update(tick.done - bar.n)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # What tqdm asks of a file.

    def write(self, text: str) -> None:
        self._outlet.write(text.encode(errors="replace"))

    def flush(self) -> None: ...

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._watched


_watching: list[Terminal] = []


def show(stage: str, tick: Tick | None) -> None:
    """For the terminal of this process, if it has a run on one."""
    for terminal in _watching:
        terminal.tick(stage, tick)


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Standard output as it is now; until the block ends, file descriptors 1 and 2 lead nowhere.

    A run copies what arrives at these two into its logs, and echoes it to where they led before: everything that DVC
    and the stages print.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    shown = Terminal(saved[0])
    _watching.append(shown)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield shown
    finally:
        _watching.remove(shown)
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(nowhere)
