"""How OpenMP's threads wait for each other: they spin for some microseconds, then sleep.

A thread that waits at a barrier spins first, which spares the kernel waking it. GNU's OpenMP, which torch brings along
for Linux, lets it spin for milliseconds. On a core that other work wants, it then keeps the very thread that it waits
for from running, and a step takes several times as long. On a busy machine a short spin costs the same as none
(benchmarks/README.md). It is the policy everywhere, since what is quiet when a process starts may be busy later. No
policy changes a result.
"""

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""OpenMP reads them once, when it is loaded. A user who sets one of them has decided."""
SPINS = "1000"  # by default 300,000


def apply() -> str:
    """Set the policy for this process and those that it starts, unless the user has; returns a line for the log.

    torch must not have been imported yet.
    """
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    if given:
        return f"OpenMP threads wait as the environment says: {', '.join(given)}"
    os.environ["GOMP_SPINCOUNT"] = SPINS
    return f"OpenMP threads spin briefly, then sleep and leave their cores to other work: GOMP_SPINCOUNT={SPINS}"
