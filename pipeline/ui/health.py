"""Whether a service still does its work: a process that hangs is there, and would not be started again."""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from pipeline.runs.clock import FUTURE_SECONDS
from pipeline.runs.database import unreachable


@dataclass(frozen=True)
class Health:
    """When a service counts as hanging.

    Attributes:
        interval: seconds between two looks.
        answer: seconds that the web or the code server may take for an answer, ``misses`` times in a row.
        heartbeat: seconds after which the daemon must have given a sign of life.
    """

    interval: float = 30.0
    answer: float = 30.0
    misses: int = 3
    heartbeat: float = 300.0


@dataclass
class Watch:
    """Looks after one service from a separate thread, since a probe may hang as well.

    Attributes:
        look: True when it is well, False when not, None when that cannot be said; for a process of this age in seconds.
        misses: how many times in a row it must not be well.
    """

    look: Callable[[float], bool | None]
    interval: float
    misses: int = 1
    _missed: int = 0
    _started: float = 0.0
    _thread: threading.Thread | None = None
    _due: float = field(default_factory=time.monotonic)

    def hangs(self, started: float) -> bool:
        """Whether the process that was started then has to be killed; returns at once."""
        if started != self._started:
            self._started, self._missed, self._due = started, 0, time.monotonic() + self.interval
        if (self._thread is None or not self._thread.is_alive()) and time.monotonic() >= self._due:
            self._due = time.monotonic() + self.interval
            self._thread = threading.Thread(target=self._look, args=(started,), daemon=True)
            self._thread.start()
        return self._missed >= self.misses

    def _look(self, started: float) -> None:
        well = self.look(time.monotonic() - started)
        if started == self._started and well is not None:
            self._missed = 0 if well else self._missed + 1


def watches(instance: dg.DagsterInstance, url: str, code: Path, health: Health) -> Mapping[str, Watch]:
    """What is watched of each service; ``code`` is the socket of the code server."""

    def daemon(age: float) -> bool | None:
        try:
            beats = [beat.timestamp for beat in instance.get_daemon_heartbeats().values()]
        except Exception as error:
            if not unreachable(error):
                raise
            return None  # the database is away: the daemon may be healthy
        now = time.time()
        past = [beat for beat in beats if beat < now + FUTURE_SECONDS]  # the others are from before the clock went back
        return min(age, now - max(past, default=0.0)) < health.heartbeat

    return {
        "code": Watch(lambda _: serves_code(code, health.answer), health.interval, health.misses),
        "daemon": Watch(daemon, min(health.interval, health.heartbeat)),
        "web": Watch(lambda _: answers(url, health.answer), health.interval, health.misses),
    }


def serves_code(address: Path, seconds: float) -> bool:
    """Whether the code server at this socket answers a call; one that is stopped still accepts connections."""
    with grpc.insecure_channel(f"unix:{address}") as channel:
        try:
            HealthStub(channel).Check(HealthCheckRequest(service="DagsterApi"), timeout=seconds)
        except grpc.RpcError:
            return False
    return True


def answers(url: str, seconds: float) -> bool:
    """Whether the web server there says anything in HTTP."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/server_info", timeout=seconds):
            return True
    except urllib.error.HTTPError as refused:
        refused.close()
        return True  # it wants a login
    except (OSError, http.client.HTTPException):
        return False
