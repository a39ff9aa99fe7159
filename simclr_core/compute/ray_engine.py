"""A stage on a Ray cluster: one worker for each GPU, or for some CPUs, on any of its nodes; needs the extra ``ray``.

    pretrain: {engine: ray, address: "10.0.0.7:6379", workers: 8, gpus: 1}        in .simclr/compute.yaml

Ray places the workers and says when one is lost. They train as the processes of one machine do, so that the result is
the same bytes; what they make comes back through Ray, and the driver alone writes it into the workspace. When a node or
worker is lost, all begin again from the last checkpoint that the driver has. They end with the driver.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from deploy.cluster.connection import connected, knock
from deploy.errors import ClusterError
from deploy.failure import fail, one_line
from deploy.plural import counted
from simclr_core.compute.inputs import PARAMS, shared
from simclr_core.compute.record import Ran
from simclr_core.compute.remote import fetched
from simclr_core.compute.returned import RUNS, Returned
from simclr_core.compute.settings import Where
from simclr_core.compute.worker import Described, Ended, Look, Source, Worker, versions
from simclr_core.machine.settings import LAUNCHER, PROCESSES, STOP_SECONDS, seconds
from simclr_core.pretraining.unfinished import run_folders
from simclr_core.reporter import ERROR_FILE, EVENTS, emit

LOOK_SECONDS = 0.5
GRACE_SECONDS = 10.0  # in which the others notice that a worker has failed, and say why
CLOSE_SECONDS = 5.0
HEAD_SECONDS = 20.0  # without an answer of the head; Ray gives up after 60
SAY_SECONDS = 60.0  # between two lines on what is waited for
ATTEMPTS = 3  # in a row without a new checkpoint
ASKED = (signal.SIGTERM, signal.SIGINT)
FOLLOWS = "and this process with it"  # of an error that follows from that of another process
IN_CREATION = "creation task"  # in Ray's words for an actor whose class cannot be loaded
THREADS = 4  # calls of a worker at the same time
HANDED_ON = ("SIMCLR_", "OMP_", "GOMP_", "GLOO_", "NCCL_", "CUBLAS_", "PYTHONHASHSEED")
KEPT_HERE = ("SIMCLR_COMPUTE", PROCESSES, LAUNCHER, EVENTS, ERROR_FILE)

logger = logging.getLogger(__name__)


class LostError(Exception):
    """A worker, its node, or its process is gone, and the others cannot continue; the next attempt may."""


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
    cluster: "Cluster", workspace: Path, arguments: Sequence[str], sources: Sequence[Source], stop: "Stop", ran: Ran
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
    def workers(self, stop: "Stop") -> Iterator["Workers"]:
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

    def _reserved(self, stop: "Stop") -> Any:
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


class Workers:
    """The workers of one attempt, in the order of their ranks."""

    def __init__(self, ray: ModuleType, stage: str) -> None:
        self._ray, self._stage = ray, stage
        self._actors: list[Any] = []
        self.described: list[Described] = []

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def first(self) -> Any:
        return self._actors[0]

    def start(self, group: Any, cpus: int, gpus: int) -> None:
        """One for each bundle of the placement group; those on the driver's node come first.

        Raises:
            ClusterError: a node has other versions.
        """
        strategies = self._ray.util.scheduling_strategies
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in self._ray.nodes()}
        nodes: Mapping[int, str] = self._ray.util.placement_group_table(group)["bundles_to_node_id"]
        here = self._ray.get_runtime_context().get_node_id()
        actor, wish = self._ray.remote(Worker), {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": THREADS}
        for number, node in sorted(nodes.items(), key=lambda one: (one[1] != here, one[1], one[0])):
            bundle = strategies.PlacementGroupSchedulingStrategy(group, number)
            made = actor.options(scheduling_strategy=bundle, **wish).remote(node, addresses[node])
            self._actors.append(made)
        self.described = self.ask([one.describe.remote() for one in self._actors])
        self._head = self._ray.get_runtime_context().gcs_address
        self._require_same_versions()

    def prepare(self, params: bytes, sources: Sequence[Source]) -> None:
        """Raises ClusterError where a node does not have the inputs."""
        faults: list[str] = self.ask([one.prepare.remote(params, sources) for one in self._actors])
        for described, fault in zip(self.described, faults, strict=True):
            if fault:
                raise ClusterError(f"{described.host}: {fault}")

    def run(self, arguments: Sequence[str], returned: Returned, stop: "Stop") -> dict[int, Ended]:
        """The command on every worker; returns how it ended, by rank, where it did before its time was over."""
        address, port = self.described[0].address, self.ask(self.first.free_port.remote())
        places = self._places(address, port)
        calls = [one.run.remote(arguments, place) for one, place in zip(self._actors, places, strict=True)]
        ended: dict[Any, Ended] = {}
        asked, deadline, answered = 0, float("inf"), time.monotonic()
        while len(ended) < len(calls):
            done, _ = self._ray.wait([call for call in calls if call not in ended], timeout=LOOK_SECONDS)
            ended |= {call: self.ask(call) for call in done}
            answered = self._heard_of_head(answered)
            self._pass_on(returned)
            if stop.signal and not asked:
                asked = stop.signal
                deadline = time.monotonic() + seconds(STOP_SECONDS)
                for one in self._actors:
                    one.stop.remote()
            if any(one.code for one in ended.values()):
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > deadline:
                break
        succeeded = len(ended) == len(calls) and not any(one.code for one in ended.values())
        self._pass_on(returned, last=succeeded)
        return {rank: ended[call] for rank, call in enumerate(calls) if call in ended}

    def ask(self, call: Any) -> Any:
        """What a call answers. Raises LostError if the worker is gone."""
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayActorError as error:
            if IN_CREATION in str(error):
                raise ClusterError(
                    f"a node of the Ray cluster cannot run this package ({_reason(error)}); install it there"
                ) from None
            raise LostError(f"a worker of stage {self._stage} was lost ({_reason(error)})") from None
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise ClusterError(f"a worker of stage {self._stage} cannot start: {cause}") from None

    def end(self) -> None:
        """Nothing of them is left; what does not answer is killed by Ray, and its child by the kernel."""
        if closing := [one.close.remote() for one in self._actors]:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for one in self._actors:
            self._ray.kill(one)

    def _heard_of_head(self, before: float) -> float:
        """When the head answered last. Ray itself waits for it in silence, and then ends this process.

        Raises:
            ClusterError: it has not answered for a while.
        """
        try:
            knock(self._head)
        except OSError as error:
            if time.monotonic() - before < HEAD_SECONDS:
                return before
            raise ClusterError(
                f"the head of the Ray cluster, {self._head}, does not answer any more ({type(error).__name__}); start "
                "it again, and run the same command, which continues from the last checkpoint"
            ) from None
        return time.monotonic()

    def _pass_on(self, returned: Returned, last: bool = False) -> None:
        look: Look = self.ask(self.first.look.remote())
        for content, stream in ((look.output, sys.stdout), (look.errors, sys.stderr)):
            stream.write(content.decode(errors="replace"))
            stream.flush()
        if (events := os.environ.get(EVENTS)) and look.events:
            with open(events, "ab", buffering=0) as file:
                file.write(look.events)
        returned.take(look.files, last)

    def _places(self, address: str, port: int) -> list[dict[str, str]]:
        """The variables of torch's launcher for each rank, and those that hold for all."""
        common = {
            name: value for name, value in os.environ.items() if name.startswith(HANDED_ON) and name not in KEPT_HERE
        }
        nodes = [one.node for one in self.described]
        return [
            common
            | {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(nodes)),
                "LOCAL_RANK": str(nodes[:rank].count(node)),
                "LOCAL_WORLD_SIZE": str(nodes.count(node)),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
            }
            for rank, node in enumerate(nodes)
        ]

    def _require_same_versions(self) -> None:
        ours = versions()
        for one in self.described:
            for name, here in ours.items():
                if one.versions.get(name) != here:
                    raise ClusterError(
                        f"{one.host} has {name} {one.versions.get(name)}, and this machine has {here}; install the "
                        "same versions on every node of the cluster"
                    )


class Stop:
    """The first SIGTERM or Ctrl-C asks the workers to save and end; a second Ctrl-C ends this process, and they with
    it."""

    signal = 0

    def note(self, number: int, _: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


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


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[-1] if IN_CREATION in lines[0] else lines[0]).rstrip(".")


def _say(stage: str, message: str) -> None:
    logger.warning(message)
    emit("progress", stage=stage, message=message)
