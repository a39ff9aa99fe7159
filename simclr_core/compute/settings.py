"""``.simclr/compute.yaml``: where each stage of a workspace runs. A fact of a machine, in no hash; loads no torch.

    validate: {engine: ray}
    pretrain: {engine: ray, address: "10.0.0.7:6379", workers: 8, gpus: 1, cpus: 6, data: remote}

What is not in there runs on this machine.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from simclr_core.params import Block, read_file

VARIABLE = "SIMCLR_COMPUTE"
FILE = Path(".simclr") / "compute.yaml"
Given = TypeVar("Given", bound=Block)
USED = {  # by engine the keys that mean something
    "local": {"engine"},
    "ray": {"engine", "address", "workers", "least_workers", "gpus", "cpus", "data"},
    "torchrun": {"engine", "address", "nodes"},
}
_ADDRESS = re.compile(r"[^\s/]+:[0-9]{1,5}")
Count = Annotated[int, Field(ge=1, le=100_000)]


def _without_unused(given: Given, engine: str) -> Given:
    unused = sorted(given.model_fields_set - USED[engine])
    if unused:
        raise ValueError(f"no {unused[0]}, since with engine {engine} it changes nothing")
    return given


class Probing(Block):
    """Where images are probed."""

    engine: Literal["local", "ray"] = Field(default="local", description="this machine, or a Ray cluster")
    address: str | None = Field(
        default=None, description="of Ray, host:port; null: RAY_ADDRESS, or this machine's cluster"
    )

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        return _without_unused(self, self.engine)


class Where(Block):
    """Where a stage that uses GPUs runs."""

    engine: Literal["local", "ray", "torchrun"] = Field(
        default="local", description="this machine; a Ray cluster; several machines, each of which starts the command"
    )
    address: str | None = Field(
        default=None,
        description="ray: host:port, null: RAY_ADDRESS, or this machine's cluster; torchrun: host:port of node 0",
    )
    workers: Count | None = Field(default=None, description="ray: processes in all; their number shapes the last bits")
    least_workers: Count | None = Field(
        default=None, description="ray: how many will do after nodes were lost; null: wait for all of them"
    )
    gpus: Annotated[int, Field(ge=0, le=1)] | None = Field(
        default=None, description="ray: GPUs of each worker, 0 or 1; null: 1 where the cluster has GPUs"
    )
    cpus: Count | None = Field(default=None, description="ray: CPUs of each worker; null: 1")
    data: Literal["shared", "remote"] | None = Field(
        default=None,
        description="ray: every node sees the workspace's path, or fetches data from the DVC remote; null: shared",
    )
    nodes: Count | None = Field(default=None, description="torchrun: machines that start the command")

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if self.engine == "ray" and self.workers is None:
            raise ValueError("workers, with engine ray: a number of processes")
        if self.engine == "torchrun" and (self.nodes is None or self.address is None):
            raise ValueError("nodes and address, with engine torchrun: how many machines, and host:port of the first")
        if self.engine == "torchrun" and not _ADDRESS.fullmatch(self.address or ""):
            raise ValueError(f"a host and a port as its address, such as 10.0.0.7:29500, and not {self.address!r}")
        if self.least_workers is not None and self.least_workers > (self.workers or 0):
            raise ValueError("least_workers of at most workers")
        return _without_unused(self, self.engine)


class Compute(Block):
    """The whole file."""

    probing: Probing = Field(default=Probing(), alias="validate")
    pretrain: Where = Where()
    linear_eval: Where = Where()
    finetune: Where = Where()


STAGES = ("pretrain", "linear_eval", "finetune")  # those that ``where`` knows


def file_of(workspace: Path) -> Path:
    """The file that holds for this workspace, which may not exist."""
    return Path(os.environ.get(VARIABLE) or workspace / FILE)


def read_compute(workspace: Path) -> Compute:
    """What the file says; without one, all defaults.

    Raises:
        ConfigError: with every fault of the file; or ``SIMCLR_COMPUTE`` names none.
    """
    path = file_of(workspace)
    if not os.environ.get(VARIABLE) and not path.exists():
        return Compute()
    return read_file(path, Compute, f"leave {VARIABLE} out, or give the path of such a file")


def where(workspace: Path, stage: str) -> Where:
    """Where a stage runs, one of ``STAGES``; any other runs here."""
    found = getattr(read_compute(workspace), stage) if stage in STAGES else Where()
    assert isinstance(found, Where)
    return found
