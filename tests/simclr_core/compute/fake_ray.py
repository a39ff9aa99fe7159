"""As much of Ray as the engine uses, in this process: an actor is an object, a call that waits is a thread.

``lose`` makes a worker answer as one whose node was killed.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any


class LostError(Exception):
    pass


class TaskError(Exception):
    cause: object = None


class FakeRay:
    """A cluster of ``nodes``, each with this number of CPUs."""

    exceptions = SimpleNamespace(RayActorError=LostError, RayTaskError=TaskError, RayError=LostError)

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self.cpus = dict(nodes)
        self.actors: list[Actor] = []
        self.groups: list[Group] = []
        self.util = SimpleNamespace(
            placement_group=self._place,
            remove_placement_group=lambda group: self.groups.remove(group),
            placement_group_table=lambda group: {"bundles_to_node_id": dict(enumerate(group.nodes))},
            scheduling_strategies=SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group, number: number),
        )

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "Alive": True, "Resources": {"CPU": count}}
            for name, count in self.cpus.items()
        ]

    def cluster_resources(self) -> dict[str, int]:
        return {"CPU": sum(self.cpus.values())}

    available_resources = cluster_resources

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "driver", gcs_address="auto")

    def remote(self, kind: Callable[..., Any]) -> Any:
        def make(*arguments: Any) -> Actor:
            self.actors.append(Actor(kind(*arguments)))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def get(self, calls: Any) -> Any:
        return [call.result() for call in calls] if isinstance(calls, list) else calls.result()

    def wait(self, calls: Sequence[Any], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        done, rest = wait(calls, timeout, "FIRST_COMPLETED" if num_returns == 1 else "ALL_COMPLETED")
        return list(done), list(rest)

    def kill(self, actor: "Actor") -> None:
        actor.alive = False
        if close := getattr(actor.made, "close", None):
            close()

    def _place(self, bundles: list[dict[str, int]], strategy: str) -> "Group":
        room = [name for name, count in self.cpus.items() for _ in range(count // int(bundles[0]["CPU"]))]
        self.groups.append(Group(room[: len(bundles)], len(room) >= len(bundles)))
        return self.groups[-1]


class Group:
    def __init__(self, nodes: list[str], fits: bool) -> None:
        self.nodes, self.fits = nodes, fits

    def wait(self, _: float) -> bool:
        return self.fits


class Actor:
    def __init__(self, made: Any) -> None:
        self.made, self.alive = made, True
        self._pool = ThreadPoolExecutor(4)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Future[Any]:
            return self._pool.submit(self._answer, name, *arguments)

        return SimpleNamespace(remote=call)

    def lose(self) -> None:
        self.alive = False
        self.made.stop(signal.SIGKILL)

    def _answer(self, name: str, *arguments: Any) -> Any:
        if not self.alive:
            raise LostError("its node has died")
        answer = getattr(self.made, name)(*arguments)
        if not self.alive:
            raise LostError("its node has died")
        return answer
