"""Weights from elsewhere, put into the encoder of params.yaml: what ``pretrain.init: weights`` begins with."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deploy.artifact import publish
from deploy.images.preprocess import Preprocessing
from simclr_core.config import PretrainConfig
from simclr_core.encoder_names import TIMM
from simclr_core.errors import InitialError
from simclr_core.model.encoder import Encoder, build_encoder
from simclr_core.model.model_directory import save_model
from simclr_core.weights import DIGITS
from simclr_core.weights.weight_names import Match, match
from simclr_core.weights.weights_source import Card, PublicWeights, read_public_weights

GIVEN = "pretrain.weights.mean and std"  # the origin of a normalization that params.yaml sets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adopted:
    """Weights from elsewhere in the encoder of params.yaml: the encoder, what its file gave it, how pixels come in."""

    source: str
    public: PublicWeights
    encoder: Encoder
    matched: Match
    card: Card

    @property
    def name(self) -> str:
        return f"{self.source} ({self.public.sha256[:DIGITS]})"

    @property
    def normalization(self) -> str:
        """How pixels are normalized, who says so, and what overrides it if that is not sure."""
        mean, std = (", ".join(f"{one:g}" for one in values) for values in (self.card.mean, self.card.std))
        sure = not self.public.assumed or self.card.origin == GIVEN
        override = "" if sure else "; if these expect others, set pretrain.weights.mean and pretrain.weights.std"
        return f"mean {mean}; std {std}, by {self.card.origin}{override}"

    def resolution(self, config: PretrainConfig) -> str | None:
        """What is known of the side that they expect, in pixels; None if it is that of params.yaml, or unknown."""
        expected, wanted = self.card.side, config.image_size
        if expected is None or expected == wanted:
            return None
        if self.public.assumed:
            owner = "timm" if config.encoder.name.startswith(TIMM) else "torchvision"
            return (
                f"{owner}'s weights of {config.encoder.name} expect {expected} pixels; if these do too, they adapt to "
                f"{wanted}, from a lower start"
            )
        return f"these weights expect {expected} pixels; they adapt to {wanted}, from a lower start"

    @property
    def facts(self) -> dict[str, Any]:
        """Of ``initial.json``."""
        found = self.matched
        return {
            "init": "weights",
            "weights": self.name,
            "sha256": self.public.sha256,
            "normalization": asdict(self.card),
            "matched": len(found.tensors),
            "missing": found.missing,
            "changed": found.changed,
            "unused": list(found.unused),
        }

    def model_card(self, config: PretrainConfig) -> dict[str, Any]:
        return {
            "kind": "weights",
            "encoder": config.encoder.model_dump(),
            "feature_dim": self.encoder.feature_dim,
            "preprocessing": Preprocessing(config.image_size, config.resize or config.image_size).to_json(),
            "mean": self.card.mean,
            "std": self.card.std,
            "normalized_by": "weights",
            "classes": None,
            "init": f"weights {self.name}",
            "config": config.model_dump(include={"encoder", "image_size"}),
            "data_digest": self.public.sha256,
        }


def save_adopted(directory: Path, config: PretrainConfig, adopted: Adopted) -> dict[str, Any]:
    """Publish the unadapted encoder as a model directory, and log what it is; returns its entries in
    ``initial.json``."""
    logger.info("%s: %s", adopted.source, adopted.matched)
    logger.info("%s: pixels are normalized with %s", adopted.source, adopted.normalization)
    if resolution := adopted.resolution(config):
        logger.warning("%s: %s", adopted.source, resolution)
    with publish(directory) as work:
        save_model(work, adopted.encoder, {}, adopted.model_card(config))
    return adopted.facts


def adopt(workspace: Path, config: PretrainConfig, path: Path | None = None) -> Adopted:
    """Put the weights that params.yaml names into its encoder. What the file lacks is drawn by the seed.

    Args:
        path: where the weights are as yet, to try them before they are copied into the workspace.

    Raises:
        WeightsError: it is not there, cannot be read or trusted, or is of another encoder.
        InitialError: nothing says how their pixels were normalized.
        UnknownEncoderError: the encoder is one of timm's, and timm is missing or does not have it.
    """
    source = config.weights.source
    assert source is not None, "the configuration asks for it"
    torch.manual_seed(config.seed)
    encoder = build_encoder(**config.encoder.model_dump(), image_size=config.image_size)
    public = read_public_weights(workspace, source, config.encoder.name, path)
    matched = match(encoder.backbone, public.tensors, str(path or source), _described(config))
    encoder.backbone.load_state_dict(matched.tensors, strict=False)
    card, given = public.card, config.weights
    if given.mean is not None and given.std is not None:
        card = Card(given.mean, given.std, card.side if card else None, GIVEN)
    if card is None:
        raise InitialError(
            f"{path or source}: nothing says how the pixels of {config.encoder.name} were normalized; give "
            "pretrain.weights.mean and pretrain.weights.std, for example [0, 0, 0] and [1, 1, 1] for pixels from 0 to 1"
        )
    return Adopted(source, public, encoder.eval(), matched, card)


def _described(config: PretrainConfig) -> str:
    encoder = config.encoder
    shape = "" if (encoder.width, encoder.stem) == (1.0, "imagenet") else f" of width {encoder.width:g}, {encoder.stem}"
    return f"{encoder.name}{shape} for {config.image_size} pixels"
