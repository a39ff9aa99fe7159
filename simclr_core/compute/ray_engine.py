"""A stage on a Ray cluster: one worker for each GPU, or for some CPUs, on any of its nodes; needs the extra ``ray``.

    pretrain: {engine: ray, address: "10.0.0.7:6379", workers: 8, gpus: 1}        in .simclr/compute.yaml

Ray places the workers and says when one is lost. They train as the processes of one machine do, so that the result is
the same bytes; what they make comes back through Ray, and the driver alone writes it into the workspace. When a node or
worker is lost, all begin again from the last checkpoint that the driver has. They end with the driver.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.cluster.connection import connected
from deploy.errors import ClusterError
from deploy.failure import fail
from deploy.plural import counted
from simclr_core.compute.inputs import PARAMS, shared
from simclr_core.compute.record import Ran
from simclr_core.compute.remote import fetched
from simclr_core.compute.returned import RUNS, Returned
from simclr_core.compute.settings import Where
from simclr_core.compute.worker import Described, Ended, Look, Source
from simclr_core.compute.workers import GRACE_SECONDS, LOOK_SECONDS, LostError, Stop, Workers
from simclr_core.pretraining.unfinished import run_folders
from simclr_core.reporter import emit

SAY_SECONDS = 60.0  # between two lines on what is waited for
ATTEMPTS = 3  # in a row without a new checkpoint
ASKED = (signal.SIGTERM, signal.SIGINT)
FOLLOWS = "and this process with it"  # of an error that follows from that of another process

logger = logging.getLogger(__name__)


def run(
    workspace: Path,
    stage: str,
    arguments: Sequence[str],
    where: Where,
    ran: Ran,
    shares: Callable[[int], bool] = bool,
) -> int:
    """``python -m simclr_core ARGUMENTS``, a stage, on the cluster; returns the exit code for this process.

    Args:
        ran: gets what was used.
        shares: whether this number of workers can do it together.

    Raises:
        ClusterError: there is no cluster, it lacks what is asked for, or its nodes cannot do the work.
        SimclrError: the inputs are not there.
    """
    asks = f"{stage}.engine is ray in .simclr/compute.yaml"
    with connected(asks, f"set {stage}.engine to local", where.address) as ray, _requests() as stop:
        cluster = Cluster(ray, stage, where, shares)
        sources = fetched(workspace, stage) if where.data == "remote" else shared(workspace, stage)
        without_progress = 0
        while True:
            before = _furthest(workspace)
            ran.attempts += 1
            try:
                return _attempt(cluster, workspace, arguments, sources, stop, ran)
            except LostError as lost:
                without_progress = 0 if _furthest(workspace) > before else without_progress + 1
                if stop.signal:
                    return 128 + stop.signal
                if without_progress == ATTEMPTS:
                    raise ClusterError(
                        f"{lost}, {ATTEMPTS} times without a new checkpoint in between; see the logs of that node, and "
                        "run the same command again"
                    ) from None
                step = _furthest(workspace)
                _say(stage, f"{lost}; beginning again {f'from step {step}' if step else 'from the start'}")


def _attempt(
    cluster: "Cluster", workspace: Path, arguments: Sequence[str], sources: Sequence[Source], stop: Stop, ran: Ran
) -> int:
    """Start workers, and take what they make until they end. Raises LostError."""
    with cluster.workers(stop) as workers:
        if not workers:
            return 128 + stop.signal
        ran.nodes, ran.workers = sorted({f"{one.host} ({one.address})" for one in workers.described}), len(workers)
        ran.gpus = len(workers) * cluster.gpus
        began = time.monotonic()
        try:
            workers.prepare((workspace / PARAMS).read_bytes(), sources)
            first = workers.first
            for path in sorted((workspace / RUNS).rglob("*")):
                if path.is_file():
                    workers.ask(first.write.remote(path.relative_to(workspace).as_posix(), path.read_bytes()))
            look: Look = workers.ask(first.look.remote())
            returned = Returned(workspace, lambda *part: workers.ask(first.read.remote(*part)), look.files)
            ended = workers.run(arguments, returned, stop)
        finally:
            ran.seconds += (time.monotonic() - began) * len(workers)
    return 128 + stop.signal if stop.signal else _exit_code(ended, workers.described)


class Cluster:
    """What a stage asks of a Ray cluster, and what it has."""

    def __init__(self, ray: ModuleType, stage: str, where: Where, shares: Callable[[int], bool]) -> None:
        self.ray, self.stage, self.where, self.shares = ray, stage, where, shares
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        self.gpus = where.gpus if where.gpus is not None else int(has_gpus)
        self.cpus = where.cpus or 1

    @contextmanager
    def workers(self, stop: Stop) -> Iterator[Workers]:
        """Placed on the nodes, and gone at the end; none if a signal came while waiting for room."""
        group = self._reserved(stop)
        workers = Workers(self.ray, self.stage)
        try:
            if group is not None:
                workers.start(group, self.cpus, self.gpus)
            yield workers
        finally:
            workers.end()
            if group is not None:
                self.ray.util.remove_placement_group(group)

    def _reserved(self, stop: Stop) -> Any:
        """Room for all workers, or after a while for the fewest that will do; None if a signal came first."""
        wanted, least = self.where.workers or 1, self.where.least_workers
        group, said = self._ask_room(wanted), -SAY_SECONDS
        began = time.monotonic()
        while not group.wait(LOOK_SECONDS):
            if stop.signal:
                self.ray.util.remove_placement_group(group)
                return None
            waited = time.monotonic() - began
            if waited > GRACE_SECONDS and least is not None and least <= (room := self._room()) < wanted:
                self.ray.util.remove_placement_group(group)
                _say(self.stage, f"continuing with {counted(room, 'worker')} of {wanted}, as least_workers allows")
                wanted, group, began = room, self._ask_room(room), time.monotonic()
            if waited > GRACE_SECONDS and time.monotonic() > said + SAY_SECONDS:
                said = time.monotonic()
                _say(self.stage, f"waiting for room for {counted(wanted, 'worker')} ({self._wish()}): {self._free()}")
        return group

    def _ask_room(self, count: int) -> Any:
        return self.ray.util.placement_group([dict(self._needs()) for _ in range(count)], strategy="PACK")

    def _room(self) -> int:
        """How many workers the nodes could hold at once, were they free; of these, what can share the work."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        fits = [min(one.get(name, 0) // need for name, need in self._needs().items()) for one in alive]
        return next((count for count in range(int(sum(fits)), 0, -1) if self.shares(count)), 0)

    def _needs(self) -> Mapping[str, int]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def _wish(self) -> str:
        return ", ".join(counted(need, name) for name, need in self._needs().items()) + " each"

    def _free(self) -> str:
        total, free = self.ray.cluster_resources(), self.ray.available_resources()
        shown = [f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s are free" for name in self._needs()]
        return f"{', '.join(shown)} on {counted(sum(node['Alive'] for node in self.ray.nodes()), 'node')}"


@contextmanager
def _requests() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(ended: Mapping[int, Ended], described: Sequence[Described]) -> int:
    """For this process; says why the command failed. Raises LostError where it may not fail the next time."""
    failed = {rank: one for rank, one in ended.items() if one.code}
    if not failed and len(ended) == len(described):
        return 0
    killed = [rank for rank, one in failed.items() if one.code < 0 or one.code - 128 in ASKED]
    said = sorted((FOLLOWS in one.said, one.said) for one in failed.values() if one.code == 2 and one.said)
    if said and not killed:
        return fail(said[0][1])
    rank = killed[0] if killed else min(failed, default=0)
    if rank and not killed:
        sys.stderr.write(failed[rank].tail)
    raise LostError(f"process {rank} on {described[rank].host} {'was ended' if killed else 'has failed'}")


def _furthest(workspace: Path) -> int:
    """The last step of which the driver has a checkpoint."""
    steps = (path.name.removeprefix("step-") for path in run_folders(workspace).rglob("step-*"))
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _say(stage: str, message: str) -> None:
    logger.warning(message)
    emit("progress", stage=stage, message=message)
