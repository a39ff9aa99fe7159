"""Report the progress of long work: items done, rate, and time left."""

import time
from collections.abc import Callable
from typing import TextIO

REDRAW_SECONDS, LINE_SECONDS = 0.1, 30.0
"""How often a terminal is redrawn, and how often a file or a pipe gets a line."""


class Progress:
    """Call it with the number of items done; the first call gives the number that were done before this work began."""

    def __init__(self, total: int, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._stream, self._clock = total, stream, clock
        self._terminal = stream.isatty()
        self._first: int | None = None
        self._began = self._due = clock()

    def __call__(self, done: int) -> None:
        now = self._clock()
        if self._first is None:
            self._first, self._began = done, now
            self._due = now if self._terminal else now + LINE_SECONDS
            return
        if self._terminal and (now >= self._due or done == self._total):
            end = "\n" if done == self._total else ""
            print(f"\r{self._text(done, now)} ", end=end, file=self._stream, flush=True)
            self._due = now + REDRAW_SECONDS
        elif not self._terminal and now >= self._due:
            print(self._text(done, now), file=self._stream, flush=True)
            self._due = now + LINE_SECONDS

    def _text(self, done: int, now: float) -> str:
        assert self._first is not None
        rate = max(done - self._first, 1) / max(now - self._began, 1e-9)
        minutes, seconds = divmod(round((self._total - done) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        return f"{done:,}/{self._total:,} images  {speed}/s  {hours}:{minutes:02d}:{seconds:02d} left"
