"""Reading: many objects of a bucket at once, each of them once.

What is new is kept in a file without a name, which the system removes with the process, until the batch is written.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import BinaryIO, Self, TypeVar, cast

Value = TypeVar("Value")
Result = TypeVar("Result")
READERS = 32  # requests to a bucket at once; a request waits most of its time


class Spool:
    """Bytes by key, in a file in this folder, as long as the context is open.

    One thread keeps, while any number of them read: a file of two sources is in it when the second one is read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def keep(self, key: tuple[str, str], data: bytes) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115 closed by __exit__
        self._file.write(data)
        self._file.flush()
        self._places[key] = (self._end, len(data))
        self._end += len(data)

    def read(self, key: tuple[str, str]) -> bytes | None:
        """The bytes, if they were kept."""
        if self._file is None or key not in self._places:
            return None
        start, size = self._places[key]
        return os.pread(self._file.fileno(), size, start)


def read_ahead(
    pool: Executor, call: Callable[[Value], Result], values: Iterable[Value], count: int
) -> Iterator[Result]:
    """What ``call`` returns of each value, in order, with at most ``count`` results waiting for their turn."""
    running: deque[Future[Result]] = deque()
    for value in values:
        if len(running) == count:
            yield running.popleft().result()
        running.append(pool.submit(call, value))
    while running:
        yield running.popleft().result()
