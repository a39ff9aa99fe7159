"""How long a first run may take: ``10m``, ``2h``, ``overnight``."""

import re

from pipeline.errors import ParamsError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
OVERNIGHT_HOURS = 10
WITHOUT_GPU, WITH_GPU = "20m", "2h"
LEAST_SECONDS = 60


def parse(text: str) -> float:
    """Seconds.

    Raises:
        ParamsError: not a time, or less than a minute.
    """
    if text.strip().lower() == "overnight":
        return OVERNIGHT_HOURS * UNITS["h"]
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text.lower())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds < LEAST_SECONDS:
        raise ParamsError(f"--budget {text!r}: must be a time of at least a minute, such as 10m, 2h or overnight")
    return seconds
