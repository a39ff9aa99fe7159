"""The workers of one attempt at a stage on a Ray cluster: placed, started, listened to, asked to stop, ended."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

from deploy.cluster.connection import knock
from deploy.errors import ClusterError
from deploy.failure import one_line
from simclr_core.compute.returned import Returned
from simclr_core.compute.worker import Described, Ended, Look, Source, Worker, versions
from simclr_core.machine.settings import LAUNCHER, PROCESSES, STOP_SECONDS, seconds
from simclr_core.reporter import ERROR_FILE, EVENTS

LOOK_SECONDS = 0.5
GRACE_SECONDS = 10.0  # in which the others notice that a worker has failed, and say why
CLOSE_SECONDS = 5.0
HEAD_SECONDS = 20.0  # without an answer of the head; Ray gives up after 60
IN_CREATION = "creation task"  # in Ray's words for an actor whose class cannot be loaded
THREADS = 4  # calls of a worker at the same time
HANDED_ON = ("SIMCLR_", "OMP_", "GOMP_", "GLOO_", "NCCL_", "CUBLAS_", "PYTHONHASHSEED")
KEPT_HERE = ("SIMCLR_COMPUTE", PROCESSES, LAUNCHER, EVENTS, ERROR_FILE)


class LostError(Exception):
    """A worker, its node, or its process is gone, and the others cannot continue; the next attempt may."""


class Stop:
    """The first SIGTERM or Ctrl-C asks the workers to save and end; a second Ctrl-C ends this process, and they with
    it."""

    signal = 0

    def note(self, number: int, _: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


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

    def run(self, arguments: Sequence[str], returned: Returned, stop: Stop) -> dict[int, Ended]:
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


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[-1] if IN_CREATION in lines[0] else lines[0]).rstrip(".")
