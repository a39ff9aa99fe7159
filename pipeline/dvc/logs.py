"""What a stage prints and reports while it runs, followed line by line and kept without secrets."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

from deploy.artifact import write_atomically
from simclr_core.progress import Tick, read_tick, tick_file


class _Tail:
    """A new, empty file, and the lines that were appended to it since the last look, without secrets."""

    def __init__(self, path: Path, hide: Callable[[str], str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an earlier process may still have the old file open
        path.touch()
        self._file = path.open("rb")
        self._hide = hide

    def lines(self, unfinished: bool = False) -> list[str]:
        start = self._file.tell()
        text, newline, rest = self._file.read().rpartition(b"\n")
        if unfinished:
            text += newline + rest
        else:
            self._file.seek(start + len(text) + len(newline))
        # A progress bar overwrites its line with a carriage return.
        lines = text.decode(errors="replace").replace("\r", "\n").split("\n")
        return [self._hide(line) for line in lines if line.strip()]

    def close(self) -> None:
        self._file.close()


class Log:
    """What a stage prints, kept without secrets in the file ``path``.

    The stage writes to ``source``. Its name is to be removed as soon as the stage has it open: what is in it then goes
    with the last process that can read it, however that ends.
    """

    def __init__(self, path: Path, hide: Callable[[str], str]) -> None:
        self.path = path
        self.source = path.with_name(f".{path.name}")
        self.last: deque[str] = deque(maxlen=50)
        self._tail = _Tail(self.source, hide)
        path.unlink(missing_ok=True)
        self._copy = path.open("w", encoding="utf-8", buffering=1)

    def lines(self, unfinished: bool = False) -> list[str]:
        lines = self._tail.lines(unfinished)
        self.last.extend(lines)
        self._copy.writelines(f"{line}\n" for line in lines)
        return lines

    def close(self) -> None:
        self.lines(unfinished=True)  # also what it said when it was interrupted
        self._tail.close()
        self._copy.close()
        self.source.unlink(missing_ok=True)


class Events:
    """What a stage reports in the file ``path``, which holds no secret when it is closed."""

    def __init__(self, path: Path, hide: Callable[[str], str]) -> None:
        self.path = path
        self._tail = _Tail(path, hide)
        self._hide = hide
        tick_file(path).unlink(missing_ok=True)  # of a stage that was killed

    def lines(self) -> list[str]:
        return self._tail.lines()

    def tick(self) -> Tick | None:
        """How far the stage is, if it has said so."""
        return read_tick(self.path)

    def close(self) -> None:
        self._tail.close()
        tick_file(self.path).unlink(missing_ok=True)
        text = self.path.read_text(encoding="utf-8", errors="replace")
        if (clean := self._hide(text)) != text:
            write_atomically(self.path, clean)
