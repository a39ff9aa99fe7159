"""Public weights: where the file is that ``pretrain.weights.source`` names, and what its card says of the images.

A file is in the folder ``weights`` of the workspace, which DVC watches. ``torchvision:NAME`` is looked for there too,
by the name that torchvision gives the file, then in torch's cache, and is downloaded into it where there is a network.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor

from deploy.artifact import identity, sha256
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from simclr_core.encoder_names import TIMM
from simclr_core.errors import WeightsError
from simclr_core.model.encoder import import_timm
from simclr_core.model.model_directory import load_model
from simclr_core.values import TORCHVISION
from simclr_core.weights import FOLDER
from simclr_core.weights.weights_file import read_weights_file

HASH = re.compile(r"-([0-9a-f]{8,})\.[a-z]+$")  # of the file, in its name, as torch.hub checks it


@dataclass(frozen=True)
class Card:
    """The images that weights were trained on: ``mean`` and ``std`` of each channel, the side in pixels, and who says
    so."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    side: int | None
    origin: str


@dataclass(frozen=True)
class PublicWeights:
    """What was found: the tensors by the names of the file, its SHA-256, and its card if there is one.

    ``assumed``: the file itself gives no information, and the card is that of the usual weights of its network.
    """

    tensors: dict[str, Tensor]
    sha256: str
    card: Card | None
    assumed: bool = False


def read_public_weights(workspace: Path, source: str, encoder: str, path: Path | None = None) -> PublicWeights:
    """Read the weights that ``source`` names; ``encoder`` is the one they are for, ``path`` where they are as yet.

    Raises:
        WeightsError: they are not there, cannot be downloaded, read or trusted, or torchvision has none of this name.
    """
    path = path or locate(workspace, source)
    if path.is_dir():
        return _read_model_directory(path)
    digest = sha256(path)
    stated = HASH.search(path.name) if source.startswith(TORCHVISION) else None
    if stated and not digest.startswith(stated[1]):
        raise WeightsError(
            f"{path}: has SHA-256 {digest[:12]}, and torchvision's file begins with {stated[1]}; remove it and get it "
            "again"
        )
    card, assumed = find_card(source, encoder), not source.startswith(TORCHVISION)
    return PublicWeights(read_weights_file(path), digest, card, assumed)


def locate(workspace: Path, source: str, key: str = "pretrain.weights.source") -> Path:
    """The file or folder that ``key`` of params.yaml names; weights of torchvision are downloaded if they are not on
    this machine.

    Raises:
        WeightsError: it does not exist, and what to do about it.
    """
    if source.startswith(TORCHVISION):
        return _locate_torchvision(workspace, source)
    path = workspace / FOLDER / source
    if not path.exists():
        there = sorted(file.name for file in path.parent.glob("[!.]*")) if path.parent.is_dir() else []
        has = f"the folder has {', '.join(there[:8])}" if there else "the folder is empty"
        raise WeightsError(f"{path}: does not exist ({has}); copy the file there, or correct {key}")
    if not path.resolve().is_relative_to(path.parents[len(Path(source).parts) - 1].resolve()):
        raise WeightsError(f"{path}: is a link to a file elsewhere, which DVC does not watch; copy the file itself")
    return path


def find_card(source: str, encoder: str) -> Card | None:
    """What torchvision or timm says of the images that their weights of this network were trained on."""
    if source.startswith(TORCHVISION):
        return _card_of_torchvision(_find_enum(source), source)
    if encoder.startswith(TIMM):
        return _card_of_timm(encoder)
    try:
        default = torchvision.models.get_model_weights(encoder)["DEFAULT"]
    except (ValueError, KeyError):
        return None
    return _card_of_torchvision(default, f"torchvision's own weights of {encoder}")


def _read_model_directory(path: Path) -> PublicWeights:
    """A ``models/pretrained`` of a workspace: its manifest is checked, and it has a card."""
    try:
        model = load_model(path)
    except (ArtifactError, OSError, json.JSONDecodeError) as error:
        raise WeightsError(
            f"{path}: is not a whole models/pretrained of a workspace ({error}); copy the folder again, or name a file"
        ) from None
    card = Card(
        _three(model.card["mean"]), _three(model.card["std"]), model.preprocessing.size, f"{path.name}/model.json"
    )
    return PublicWeights(dict(model.encoder.backbone.state_dict()), identity(path), card)


def _locate_torchvision(workspace: Path, source: str) -> Path:
    weights = _find_enum(source)
    url: str = weights.url
    name = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    for place in (workspace / FOLDER / name, cached):
        if place.exists():
            return place
    cached.parent.mkdir(parents=True, exist_ok=True)
    stated = HASH.search(name)
    partial = cached.with_name(f"{name}.{os.getpid()}")
    try:
        failpoint("weights.download")
        torch.hub.download_url_to_file(url, str(partial), stated[1] if stated else None, progress=False)
        partial.rename(cached)
    except (OSError, RuntimeError) as error:  # no network; a file with another hash
        raise WeightsError(
            f"{source}: cannot be downloaded here ({error}); where there is a network, run `curl -LO {url}`, and put "
            f"{name} into the folder {FOLDER} of this workspace"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return cached


def _find_enum(source: str) -> Any:
    name = source.removeprefix(TORCHVISION)
    try:
        return torchvision.models.get_weight(name)
    except (ValueError, KeyError, AttributeError):
        raise WeightsError(
            f"pretrain.weights.source: torchvision has no weights {name!r}; give one such as "
            f"{TORCHVISION}ResNet50_Weights.IMAGENET1K_V2, as the page of its models lists them"
        ) from None


def _card_of_torchvision(weights: Any, origin: str) -> Card:
    transforms = weights.transforms()
    return Card(_three(transforms.mean), _three(transforms.std), int(transforms.crop_size[0]), origin)


def _card_of_timm(encoder: str) -> Card | None:
    found = import_timm().get_pretrained_cfg(encoder.removeprefix(TIMM), allow_unregistered=True)
    if found is None or len(found.mean) != 3:
        return None
    return Card(_three(found.mean), _three(found.std), int(found.input_size[-1]), f"timm's card of {encoder}")


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
