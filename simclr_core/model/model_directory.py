"""Model directories: what later stages and people read of a trained encoder, with hashes that are checked first.

``models/pretrained`` and ``models/finetuned/<fraction>`` hold ``encoder.safetensors`` with torchvision's parameter
names, ``head.safetensors``, ``model.json`` and ``MANIFEST.sha256``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deploy.artifact import verify
from deploy.images.preprocess import Preprocessing
from simclr_core.errors import CheckpointError
from simclr_core.model import FORMAT_VERSION
from simclr_core.model.encoder import Encoder, build_encoder
from simclr_core.model.first_layer import RGB, spread_kernels
from simclr_core.model.projection_head import build_projection_head, first_layers
from simclr_core.model.tensor_files import check_format, read_tensors, write_json, write_tensors


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
    write_tensors(directory / "encoder.safetensors", encoder.backbone.state_dict())
    if card.get("head_layers"):
        write_tensors(directory / "head_layers.safetensors", encoder.head.state_dict())
    write_tensors(directory / "head.safetensors", head_state)
    write_json(directory / "model.json", {"format_version": FORMAT_VERSION, **card})


def load_model(directory: Path) -> Model:
    """Read a model directory.

    Raises:
        ArtifactError: the directory is missing or a file differs from its manifest; nothing was parsed.
        CheckpointError: the card is of another format, or the weights do not fit the encoder it names.
    """
    verify(directory)
    card = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    check_format(directory, card)
    encoder = fresh_encoder(card)
    fill(encoder.backbone, read_tensors(directory / "encoder.safetensors"), directory, str(card["encoder"]))
    if card.get("head_layers"):
        fill(encoder.head, read_tensors(directory / "head_layers.safetensors"), directory, "the kept head layers")
    return Model(encoder.eval(), read_tensors(directory / "head.safetensors"), card)


def fresh_encoder(card: Mapping[str, Any]) -> Encoder:
    """The architecture that a model card describes, with fresh weights from torch's global generator."""
    preprocessing = Preprocessing.from_json(card["preprocessing"])
    encoder = build_encoder(**card["encoder"], image_size=preprocessing.size, channels=preprocessing.bands)
    if not card.get("head_layers"):
        return encoder
    head = build_projection_head(encoder.feature_dim, **card["projection_head"])
    kept, width = first_layers(head, card["head_layers"])
    return Encoder(encoder.backbone, width, kept)


def load_weights(directory: Path, encoder: Encoder, head: nn.Module | None) -> None:
    """Put the weights and statistics of a pretrained model directory into a network of the same architecture, which has
    no projection head if ``head`` is None.

    Kernels for RGB are spread over the channels of the images where the network takes others (``first_layer``).

    Raises:
        ArtifactError, CheckpointError: as ``load_model``, or the weights do not fit this network.
    """
    model = load_model(directory)
    fill(encoder, _for_channels(model.encoder.state_dict(), encoder), directory, "the encoder of params.yaml")
    if head is not None and model.card["kind"] != "weights":  # which come without a head
        fill(head, model.head, directory, "the projection head of params.yaml")


def with_channels(encoder: Encoder, like: Encoder) -> Encoder:
    """``encoder`` with its kernels for RGB spread over the channels that ``like`` takes, in ``like`` itself."""
    like.load_state_dict(_for_channels(encoder.state_dict(), like))
    return like


def _for_channels(tensors: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    wanted = encoder.state_dict()
    return {name: _fitted(tensor, wanted.get(name)) for name, tensor in tensors.items()}


def _fitted(tensor: Tensor, target: Tensor | None) -> Tensor:
    if target is None or tensor.ndim != 4 or tensor.shape[1] != RGB or target.ndim != 4 or target.shape[1] == RGB:
        return tensor
    return spread_kernels(tensor, target.shape[1])


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
