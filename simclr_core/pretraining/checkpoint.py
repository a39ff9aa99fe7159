"""What an interrupted training continues from: ``.simclr/runs/<key>``, with hashes that are checked first.

A run directory holds ``step-00000123/`` with the network, the optimizer and the history. Its key is a hash of
configuration, data and initial weights, so that nothing else resumes into it; the newest two checkpoints are kept, and
a damaged newest one falls back to the one before.
"""

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deploy.artifact import publish, verify
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from deploy.lock import held
from deploy.moved import names_of
from simclr_core.errors import CheckpointError, RunLockedError
from simclr_core.model import FORMAT_VERSION
from simclr_core.model.tensor_files import check_format, read_tensors, write_json, write_tensors
from simclr_core.monitoring.diagnostics import Record

GENERATIONS = 2
OPTIONAL = ("objective", "average")  # tensors of a state that most trainings have none of, each in its file

logger = logging.getLogger(__name__)

if not TYPE_CHECKING:
    __getattr__ = names_of("simclr_core.model.model_directory", was="simclr_core.checkpoint")


@dataclass(frozen=True)
class TrainingState:
    """Everything a training needs to continue as if it had never stopped: ``step`` steps are done.

    There is no random state: every draw is a function of the seed and of the step or sample it is for.
    """

    step: int
    network: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: list[Record]  # of each look at the features
    unfinished: list[tuple[float, float]]  # loss and gradient norm of each step since the last of them
    objective: dict[str, Tensor] = field(default_factory=dict)  # a queue and its momentum encoder; most have none
    scaler: Mapping[str, float] = field(default_factory=dict)  # of float16's losses
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, where they are averaged


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the only process that writes to this run directory. The kernel frees the lock when the process dies.

    Raises:
        RunLockedError: names the process that holds it.
    """

    def locked_by(holder: str) -> RunLockedError:
        return RunLockedError(f"{run}: {holder} is training this configuration; wait for it or stop it")

    # Next to the directory, which is removed at the end: a lock on a removed file would exclude no process.
    with held(run.with_suffix(".lock"), f"process {os.getpid()} on {socket.gethostname()}", locked_by):
        yield


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is."""
    return run / f"step-{step:08d}"


def save_training(run: Path, state: TrainingState) -> None:
    """Publish a checkpoint, then remove all but the newest ``GENERATIONS``.

    Raises:
        CheckpointError: it could not be written (a full disk); the earlier ones are untouched.
    """
    try:
        with publish(path_of(run, state.step)) as directory:
            write_tensors(directory / "network.safetensors", state.network)
            failpoint("checkpoint.network")
            write_tensors(directory / "optimizer.safetensors", state.optimizer)
            for name in OPTIONAL:
                if tensors := getattr(state, name):
                    write_tensors(directory / f"{name}.safetensors", tensors)
            progress = {"step": state.step, "history": state.history, "unfinished": state.unfinished}
            progress["scaler"] = dict(state.scaler)
            write_json(directory / "training.json", {"format_version": FORMAT_VERSION, "run": run.name, **progress})
            failpoint("checkpoint.publish")
    except OSError as error:
        raise CheckpointError(
            f"{run}: step {state.step} cannot be saved ({error.strerror}); free some disk space or fix the "
            "permissions, and run the same command again: it continues from the last checkpoint"
        ) from error
    failpoint("checkpoint.prune")
    for outdated in _checkpoints(run)[GENERATIONS:]:
        shutil.rmtree(outdated)


def newest_training(run: Path) -> Path | None:
    """The newest checkpoint that verifies; None when the run has none. Damaged newer ones are set aside with a warning.

    Raises:
        CheckpointError: there are checkpoints, but none verifies. Never starts from nothing on its own.
    """
    damaged: dict[Path, ArtifactError] = {}
    for checkpoint in _checkpoints(run):
        try:
            verify(checkpoint)
        except ArtifactError as error:
            damaged[checkpoint] = error
            continue
        for path, reason in damaged.items():
            logger.warning("damaged checkpoint set aside, continuing from %s: %s", checkpoint.name, reason)
            shutil.rmtree(path.with_suffix(".corrupt"), ignore_errors=True)
            path.rename(path.with_suffix(".corrupt"))
        return checkpoint
    if damaged:
        reasons = "; ".join(map(str, damaged.values()))
        raise CheckpointError(f"{run}: no checkpoint verifies ({reasons}); remove the directory to start from scratch")
    return None


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint that verifies, 0 for none. Unlike ``newest_training``, it changes nothing."""
    for checkpoint in _checkpoints(run):
        with suppress(ArtifactError):
            verify(checkpoint)
            return int(checkpoint.name.removeprefix("step-"))
    return 0


def load_training(checkpoint: Path) -> TrainingState:
    """Read what ``newest_training`` found.

    Raises:
        CheckpointError: it is of another format, or of another run.
    """
    card = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    check_format(checkpoint, card)
    run = card.get("run", "unknown")
    if run != checkpoint.parent.name:
        raise CheckpointError(
            f"{checkpoint}: saved by run {run}, whose configuration, data or start differs from that of "
            f"run {checkpoint.parent.name}; remove it, and train from the start or from this run's own checkpoints"
        )
    files = {name: checkpoint / f"{name}.safetensors" for name in OPTIONAL}
    return TrainingState(
        step=card["step"],
        network=read_tensors(checkpoint / "network.safetensors"),
        optimizer=read_tensors(checkpoint / "optimizer.safetensors"),
        history=card["history"],
        unfinished=[(loss, gradient_norm) for loss, gradient_norm in card["unfinished"]],
        scaler=card["scaler"],
        **{name: read_tensors(path) for name, path in files.items() if path.exists()},
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors named ``<parameter position>.<name>``; hyper-parameters are the config's."""
    state = optimizer.state_dict()["state"]
    return {
        f"{position}.{name}": value
        for position, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give a fresh optimizer the state that ``optimizer_tensors`` took from an equal one.

    Raises:
        CheckpointError: the state is of an optimizer over other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        position, _, name = key.partition(".")
        if int(position) >= len(parameters) or value.shape not in (parameters[int(position)].shape, ()):
            raise CheckpointError(
                f"the optimizer's {name} of parameter {position}, of shape {list(value.shape)}, fits none of the "
                f"{len(parameters)} parameters of this network; continue with the configuration that saved it"
            )
        parameter = parameters[int(position)]
        if value.shape == parameter.shape:  # in the parameter's memory format, on which the arithmetic may depend
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(position), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _checkpoints(run: Path) -> list[Path]:
    """Published checkpoints, newest first: by step, never by a clock."""
    return sorted((path for path in run.glob("step-*") if not path.suffix), reverse=True)
