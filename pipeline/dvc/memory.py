"""How much memory a process takes together with all that it has started."""

from contextlib import suppress
from pathlib import Path

PROCESSES = Path("/proc")


def resident_bytes(pid: int) -> int:
    """The sum of what each of them had at most so far; what they share counts twice, and one that is gone as 0."""
    return sum(_peak(one) for one in _tree(pid))


def _tree(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        found.append(one := waiting.pop())
        with suppress(OSError, ValueError):  # it is gone, or the kernel does not list children
            for thread in (PROCESSES / str(one) / "task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _peak(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (PROCESSES / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
