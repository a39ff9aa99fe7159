"""Self-explaining checkpoints: weights in safetensors, everything else in JSON, nothing pickled, hashes checked first.

A *model directory* (``models/pretrained``, ``models/finetuned/<fraction>``) is what later stages and people read:
``encoder.safetensors`` with torchvision's parameter names, ``head.safetensors``, ``model.json``, ``MANIFEST.sha256``.

A *run directory* (``.simclr/runs/<key>``) is what an interrupted training goes on from: ``step-00000123/`` with the
network, the optimizer and the history. Its key is a hash of configuration, data and initial weights, so that nothing
else resumes into it; the newest two checkpoints are kept, and a damaged newest one falls back to the one before.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deploy.artifact import publish, verify
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from deploy.images.preprocess import Preprocessing
from simclr_core.errors import CheckpointError, RunLockedError
from simclr_core.lock import held
from simclr_core.model.encoder import Encoder, build_encoder
from simclr_core.model.projection_head import build_projection_head, first_layers

FORMAT_VERSION = 1
GENERATIONS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A trained encoder (on the CPU, in evaluation mode), the tensors of its head, and ``model.json`` as read."""

    encoder: Encoder
    head: dict[str, Tensor]
    card: dict[str, Any]

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_json(self.card["preprocessing"])


def save_model(directory: Path, encoder: Encoder, head_state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write a model into ``directory`` (from ``deploy.artifact.publish``, which adds the manifest).

    ``card`` must have ``kind``, ``encoder`` (name, width, stem), ``preprocessing``, ``mean`` and ``std``; with layers
    of the projection head kept in the encoder, also ``head_layers`` and ``projection_head`` (layers, width, dim).
    """
    _write_tensors(directory / "encoder.safetensors", encoder.backbone.state_dict())
    if card.get("head_layers"):
        _write_tensors(directory / "head_layers.safetensors", encoder.head.state_dict())
    _write_tensors(directory / "head.safetensors", head_state)
    _write_json(directory / "model.json", {"format_version": FORMAT_VERSION, **card})


def load_model(directory: Path) -> Model:
    """Read a model directory.

    Raises:
        ArtifactError: the directory is missing or a file differs from its manifest; nothing was parsed.
        CheckpointError: the card is of another format, or the weights do not fit the encoder it names.
    """
    verify(directory)
    card = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    _check_format(directory, card)
    encoder = fresh_encoder(card)
    fill(encoder.backbone, _read_tensors(directory / "encoder.safetensors"), directory, str(card["encoder"]))
    if card.get("head_layers"):
        fill(encoder.head, _read_tensors(directory / "head_layers.safetensors"), directory, "the kept head layers")
    return Model(encoder.eval(), _read_tensors(directory / "head.safetensors"), card)


def fresh_encoder(card: Mapping[str, Any]) -> Encoder:
    """The architecture that a model card describes, with fresh weights from torch's global generator."""
    encoder = build_encoder(**card["encoder"], image_size=card["preprocessing"]["size"])
    if not card.get("head_layers"):
        return encoder
    head = build_projection_head(encoder.feature_dim, **card["projection_head"])
    kept, width = first_layers(head, card["head_layers"])
    return Encoder(encoder.backbone, width, kept)


def load_weights(directory: Path, encoder: Encoder, head: nn.Module) -> None:
    """Put the weights and statistics of a pretrained model directory into a network of the same architecture.

    Raises:
        ArtifactError, CheckpointError: as ``load_model``, or the weights do not fit this network.
    """
    model = load_model(directory)
    fill(encoder, model.encoder.state_dict(), directory, "the encoder of params.yaml")
    fill(head, model.head, directory, "the projection head of params.yaml")


@dataclass(frozen=True)
class TrainingState:
    """Everything a training needs to go on as if it had never stopped: ``step`` steps are done.

    There is no random state: every draw is a function of the seed and of the step or sample it is for.
    """

    step: int
    network: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: list[Mapping[str, Any]]  # a record for each epoch that is done
    unfinished: list[tuple[float, float]]  # loss and gradient norm of each step of the epoch that is not
    objective: dict[str, Tensor] = field(default_factory=dict)  # a queue and its momentum encoder; most have none
    scaler: Mapping[str, float] = field(default_factory=dict)  # of float16's losses


def run_key(config: Mapping[str, Any], data_digest: str, initial: str) -> str:
    """Name of the run directory: 16 hexadecimal digits that change with any parameter (the seed is one), any image, and
    ``initial``, the identity of the weights that the training begins with."""
    content = json.dumps([FORMAT_VERSION, config, data_digest, initial], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the only process that writes to this run directory. The kernel frees the lock when the process dies.

    Raises:
        RunLockedError: names the process that holds it.
    """

    def locked_by(holder: str) -> RunLockedError:
        return RunLockedError(f"{run}: {holder} is training this configuration; wait for it or stop it")

    # Beside the directory, which is removed at the end: a lock on a removed file would exclude nobody.
    with held(run.with_suffix(".lock"), f"process {os.getpid()} on {socket.gethostname()}", locked_by):
        yield


def save_training(run: Path, state: TrainingState) -> None:
    """Publish a checkpoint, then remove all but the newest ``GENERATIONS``.

    Raises:
        CheckpointError: it could not be written (a full disk); the earlier ones are untouched.
    """
    try:
        with publish(run / f"step-{state.step:08d}") as directory:
            _write_tensors(directory / "network.safetensors", state.network)
            failpoint("checkpoint.network")
            _write_tensors(directory / "optimizer.safetensors", state.optimizer)
            if state.objective:
                _write_tensors(directory / "objective.safetensors", state.objective)
            progress = {"step": state.step, "history": state.history, "unfinished": state.unfinished}
            progress["scaler"] = dict(state.scaler)
            _write_json(directory / "training.json", {"format_version": FORMAT_VERSION, "run": run.name, **progress})
            failpoint("checkpoint.publish")
    except OSError as error:
        raise CheckpointError(
            f"{run}: step {state.step} cannot be saved ({error.strerror}); free the disk or its permissions and run "
            "the same command again: it goes on from the last checkpoint"
        ) from error
    failpoint("checkpoint.prune")
    for outdated in _checkpoints(run)[GENERATIONS:]:
        shutil.rmtree(outdated)


def remove_training(run: Path) -> None:
    """Remove the checkpoints of a run whose model is published. A kill on the way leaves all of them or none."""
    finished = run.with_suffix(".finished")
    shutil.rmtree(finished, ignore_errors=True)
    run.rename(finished)
    failpoint("checkpoint.remove")
    shutil.rmtree(finished)


def newest_training(run: Path) -> Path | None:
    """The newest checkpoint that verifies; None when the run has none. Damaged newer ones are set aside with a warning.

    Raises:
        CheckpointError: there are checkpoints, but none verifies. Never starts from nothing by itself.
    """
    damaged: dict[Path, ArtifactError] = {}
    for checkpoint in _checkpoints(run):
        try:
            verify(checkpoint)
        except ArtifactError as error:
            damaged[checkpoint] = error
            continue
        for path, reason in damaged.items():
            logger.warning("damaged checkpoint set aside, going on from %s: %s", checkpoint.name, reason)
            shutil.rmtree(path.with_suffix(".corrupt"), ignore_errors=True)
            path.rename(path.with_suffix(".corrupt"))
        return checkpoint
    if damaged:
        reasons = "; ".join(map(str, damaged.values()))
        raise CheckpointError(f"{run}: no checkpoint verifies ({reasons}); remove the directory to start from nothing")
    return None


def load_training(checkpoint: Path) -> TrainingState:
    """Read what ``newest_training`` found.

    Raises:
        CheckpointError: it is of another format, or of another run.
    """
    card = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    _check_format(checkpoint, card)
    run = card.get("run", "unknown")
    if run != checkpoint.parent.name:
        raise CheckpointError(
            f"{checkpoint}: saved by run {run}, whose configuration, data or start is another than that of "
            f"run {checkpoint.parent.name}; remove it, and train from the start or from this run's own checkpoints"
        )
    objective = checkpoint / "objective.safetensors"
    return TrainingState(
        step=card["step"],
        network=_read_tensors(checkpoint / "network.safetensors"),
        optimizer=_read_tensors(checkpoint / "optimizer.safetensors"),
        history=card["history"],
        unfinished=[(loss, gradient_norm) for loss, gradient_norm in card["unfinished"]],
        objective=_read_tensors(objective) if objective.exists() else {},
        scaler=card["scaler"],
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
                f"{len(parameters)} parameters of this network; go on with the configuration that saved it"
            )
        parameter = parameters[int(position)]
        if value.shape == parameter.shape:  # in the parameter's memory format, on which the arithmetic may depend
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(position), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def fill(module: nn.Module, tensors: Mapping[str, Tensor], directory: Path, what: str) -> None:
    """Put the weights and statistics that were read from ``directory`` into a module, which the message calls ``what``.

    Raises:
        CheckpointError: they are of another architecture.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"{directory}: the weights do not fit {what}: {reason}") from None


def _checkpoints(run: Path) -> list[Path]:
    """Published checkpoints, newest first: by step, never by a clock."""
    return sorted((path for path in run.glob("step-*") if not path.suffix), reverse=True)


def _check_format(directory: Path, card: Mapping[str, Any]) -> None:
    found = card.get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{directory}: format version {found}, this release reads {FORMAT_VERSION}; train again")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:  # to a file and not to bytes: that would hold the interpreter lock, against the training thread
        safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
