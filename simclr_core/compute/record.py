"""Where a stage ran last: ``.simclr/ran/<stage>.json``, outside of every DVC output: it differs between machines."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.artifact import write_atomically
from deploy.plural import counted, listed

SHOWN = 4  # names of nodes in a sentence


@dataclass
class Ran:
    """``seconds`` are those of all workers together; ``attempts`` counts how
    often they were begun on a cluster."""

    engine: str
    nodes: list[str]
    workers: int
    gpus: int = 0
    seconds: float = 0.0
    attempts: int = 0

    @property
    def gpu_hours(self) -> float:
        return round(self.seconds / 3600, 4) if self.gpus else 0.0

    @property
    def numbers(self) -> Mapping[str, str | int | float]:
        """For the page of an asset."""
        return {
            "engine": self.engine,
            "nodes": ", ".join(self.nodes),
            "workers": self.workers,
            "gpus": self.gpus,
            "gpu_hours": self.gpu_hours,
            "attempts": self.attempts,
        }

    def __str__(self) -> str:
        with_gpus = f" with a GPU each, {self.gpu_hours:g} GPU-hours" if self.gpus else ""
        again = f"; begun {self.attempts} times" if self.attempts > 1 else ""
        where = f"{self.engine}: {counted(self.workers, 'process')}{with_gpus}"
        return f"{where}, on {listed(self.nodes, SHOWN)}{again}"


def write_ran(workspace: Path, stage: str, ran: Ran) -> None:
    """Replace the record of a stage."""
    write_atomically(_file(workspace, stage), json.dumps(asdict(ran), indent=2) + "\n")


def read_ran(workspace: Path, stage: str) -> Ran | None:
    """None where the stage has not run in this workspace, or what is there cannot be read."""
    try:
        found: dict[str, Any] = json.loads(_file(workspace, stage).read_text(encoding="utf-8"))
        return Ran(**found)
    except (OSError, ValueError, TypeError):
        return None


def all_ran(workspace: Path) -> dict[str, Ran]:
    """The records of all stages, by the names of their files."""
    names = sorted(path.stem for path in _file(workspace, "any").parent.glob("*.json"))
    return {name: ran for name in names if (ran := read_ran(workspace, name)) is not None}


def _file(workspace: Path, stage: str) -> Path:
    """``stage`` as dvc.yaml has it, ``finetune@0.01``."""
    return workspace / ".simclr" / "ran" / f"{stage.replace('@', '-')}.json"
