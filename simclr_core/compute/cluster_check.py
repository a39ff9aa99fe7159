"""Whether a Ray cluster can run the stages of a workspace: it answers, and every node has the same versions and sees
the data. Runs nothing of a stage."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deploy.cluster.connection import connected
from deploy.plural import counted
from simclr_core.compute.inputs import Shared, shared
from simclr_core.compute.settings import STAGES, read_compute, where
from simclr_core.compute.worker import versions
from simclr_core.errors import LaunchError

PATIENCE = 60.0  # seconds for a node to answer
ASKS = "a stage of .simclr/compute.yaml runs on ray"


def addresses(workspace: Path) -> dict[str | None, list[str]]:
    """The clusters that the workspace asks for, None for the one that Ray finds, each with its stages.

    Raises:
        ConfigError: the file has faults.
    """
    probing = read_compute(workspace).probing
    wanted = {"validate": probing.address} if probing.engine == "ray" else {}
    for stage in STAGES:
        if (place := where(workspace, stage)).engine == "ray":
            wanted[stage] = place.address
    return {address: [name for name, own in wanted.items() if own == address] for address in wanted.values()}


def check(workspace: Path, stages: Sequence[str], address: str | None) -> tuple[str, list[str]]:
    """One line on the cluster, and what is wrong with its nodes, in sentences.

    Raises:
        ClusterError: it does not answer.
    """
    sources = list({one.path: one for stage in stages for one in _shared(workspace, stage)}.values())
    with connected(ASKS, "set its engine to local", address) as ray:
        alive = [node for node in ray.nodes() if node["Alive"]]
        on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = [
            ray.remote(faults)
            .options(num_cpus=0, scheduling_strategy=on_node(node["NodeID"], soft=False))
            .remote(versions(), sources)
            for node in alive
        ]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=PATIENCE)
        found = []
        for node, call in zip(alive, asked, strict=True):
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            if call not in done:
                found.append(f"{name} does not answer")
                continue
            try:
                found += [f"{name}: {fault}" for fault in ray.get(call)]
            except (ray.exceptions.RayError, ImportError) as error:
                found.append(f"{name} cannot run this package ({type(error).__name__}); install it there")
        total = ray.cluster_resources()
    shown = ", ".join(f"{total[name]:g} {name}s" for name in ("CPU", "GPU") if total.get(name))
    return f"{counted(len(alive), 'node')} with {shown}, for {', '.join(stages)}", found


def faults(expected: Mapping[str, str], sources: Iterable[Shared]) -> list[str]:
    """What keeps this node from running a stage."""
    own = versions()
    found = [f"has {name} {own[name]}, and the driver {want}" for name, want in expected.items() if own[name] != want]
    for source in sources:
        try:
            source.require()
        except LaunchError as error:
            found.append(str(error))
    return found


def _shared(workspace: Path, stage: str) -> Sequence[Shared]:
    if stage not in STAGES or where(workspace, stage).data == "remote":
        return []
    return shared(workspace, stage)
