"""Wrong passwords, counted by address and in total: after the first few each doubles the wait for the next.

There is no user name: which role a wrong password was meant for is unknown, so it counts for all of them. A right one
takes back none of it, whatever its role. Otherwise a viewer, or anyone who shares an address with people who log in,
could guess the operator's password without a wait, with a right password between every few guesses.

The total holds up only addresses without a login as operator: a guesser with many addresses cannot lock out those who
run things here, and a viewer with many is held up as a stranger is.
"""

import ipaddress
import time
from dataclasses import dataclass

from pipeline.ui.access import Role

FREE, FREE_IN_TOTAL = 5, 50  # wrong passwords without a wait
LONGEST_WAIT, LONGEST_WAIT_FOR_ALL = 900.0, 30.0  # seconds
FORGET_SECONDS = 3600.0


@dataclass
class Count:
    failures: int = 0
    last: float = 0.0

    def wait(self, free: int, longest: float, now: float) -> float:
        if self.failures < free:
            return 0.0
        return max(0.0, self.last + min(2.0 ** min(self.failures - free, 30), longest) - now)


class Attempts:
    """Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._total = Count()
        self._by_address: dict[str, Count] = {}
        self._operators: set[str] = set()

    def wait(self, address: str) -> float:
        """Seconds until this address may try a password again; 0: now."""
        now = time.monotonic()
        self._forget(now)
        network = _network(address)
        wait = self._by_address.get(network, Count()).wait(FREE, LONGEST_WAIT, now)
        if network not in self._operators:
            wait = max(wait, self._total.wait(FREE_IN_TOTAL, LONGEST_WAIT_FOR_ALL, now))
        return wait

    def failed(self, address: str) -> None:
        for count in (self._total, self._by_address.setdefault(_network(address), Count())):
            count.failures, count.last = count.failures + 1, time.monotonic()

    def succeeded(self, address: str, role: Role) -> None:
        if role == "operator":
            self._operators.add(_network(address))

    def _forget(self, now: float) -> None:
        recent = {who: count for who, count in self._by_address.items() if count.last > now - FORGET_SECONDS}
        self._by_address = recent
        if self._total.last <= now - FORGET_SECONDS:
            self._total = Count()


def _network(address: str) -> str:
    """An IPv6 subscriber has a whole /64 to guess from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a unix socket
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
