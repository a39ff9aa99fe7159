"""The energy that this machine has used so far, where it tells: Intel's and AMD's RAPL, and NVIDIA's NVML.

It is that of the whole machine, whatever else runs on it. Most systems let only root read RAPL.
"""

import ctypes
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
MOST_WATTS = 500  # of one processor: how soon its counter may have started again
NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Meter:
    """Counters at one moment: ``joules`` of each, ``ranges`` at which it starts again; ``at`` in monotonic seconds."""

    joules: tuple[float, ...]
    ranges: tuple[float, ...]
    at: float


def read() -> Meter:
    """All counters that can be read; of a machine that tells nothing there are none."""
    counters = [*_processors(), *((joules, float("inf")) for joules in _graphics())]
    return Meter(tuple(one for one, _ in counters), tuple(end for _, end in counters), time.monotonic())


def subtract(before: Meter, after: Meter) -> float | None:
    """Joules from one moment to the other; None where it is not known.

    A counter that started again once is understood; after so long that it may have done so twice nothing is known.
    """
    if not before.joules or before.ranges != after.ranges:
        return None
    if (after.at - before.at) * MOST_WATTS > min(before.ranges):
        return None
    pairs = zip(before.joules, after.joules, before.ranges, strict=True)
    return sum(end - start if end >= start else end - start + most for start, end, most in pairs)


def _processors() -> list[tuple[float, float]]:
    """Joules and range of each processor package; their parts, such as cores and memory, are inside it."""
    found = []
    with suppress(OSError, ValueError):
        for package in sorted(POWERCAP.glob("intel-rapl:[0-9]*")):
            if package.name.count(":") == 1:
                values = [float((package / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")]
                found.append((values[0] / 1e6, values[1] / 1e6))
    return found


def _graphics() -> list[float]:
    """Joules of each GPU since its driver was loaded."""
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return []
    count, found = ctypes.c_uint(), []
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    for number in range(count.value):
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)):
            continue
        if not library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            found.append(millijoules.value / 1000)
    library.nvmlShutdown()
    return found
