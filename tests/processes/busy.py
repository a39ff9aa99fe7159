"""Limits of time on a machine that others use, too."""

import os


def stretched(seconds: float) -> float:
    """A limit for a quiet machine, times the processes that share a core of this one now."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
