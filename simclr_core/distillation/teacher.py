"""Who teaches: the network fine-tuned on few labels, or a file in the folder ``weights``.

A file is an ONNX graph, weights that torch or safetensors wrote, or a model directory. Whether it has classes or
vectors to teach is seen from what it gives: a number for each class of the prepared images is taken for those classes,
in their order. The other kind of teacher is an encoder.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deploy.artifact import identity, sha256
from simclr_core.config import DistillConfig, EncoderConfig
from simclr_core.data.shards import DatasetCard
from simclr_core.distillation.onnx_teacher import OnnxTeacher
from simclr_core.errors import DistillationError, WeightsError
from simclr_core.model.encoder import Encoder, build_encoder
from simclr_core.model.model_directory import Model, load_model
from simclr_core.weights import DIGITS
from simclr_core.weights.weight_names import match
from simclr_core.weights.weights_file import is_onnx
from simclr_core.weights.weights_source import locate, read_public_weights

SHARE = re.compile(r"[01]\.\d+")  # a teacher that finetune has made, by its share of the labels
KEY = "distill.teacher"


@dataclass(frozen=True)
class Teacher:
    """``network`` makes of the student's normalized views [n, bands, side, side] logits of the classes [n, ``dim``], or
    vectors if not ``has_classes``. ``learned_from`` are share and seed of the labels that it was fine-tuned on, None:
    they are not known."""

    network: nn.Module
    has_classes: bool
    dim: int
    name: str
    identity: str
    learned_from: tuple[str, int] | None = None

    @property
    def parameters(self) -> int | None:
        """How many it has; None where that is not known."""
        return sum(one.numel() for one in self.network.parameters()) or None


@dataclass(frozen=True)
class Seen:
    """How the views are that a teacher is shown: of the images of ``card``, ``side`` pixels, normalized by its mean and
    standard deviation."""

    card: DatasetCard
    side: int


class AsExpected(nn.Module):
    """``network`` on views as it expects them: of another ``side``, or normalized by another ``mean`` and ``std``."""

    def __init__(
        self, network: nn.Module, seen: Seen, side: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.network = network
        self._side = None if side == seen.side else side
        here, there = (torch.tensor(one, dtype=torch.float64) for one in (seen.card.std, std))
        shift = (torch.tensor(seen.card.mean, dtype=torch.float64) - torch.tensor(mean, dtype=torch.float64)) / there
        self._is_same = (tuple(mean), tuple(std)) == (tuple(seen.card.mean), tuple(seen.card.std))
        self.scale = nn.Buffer((here / there).float().view(-1, 1, 1))
        self.shift = nn.Buffer(shift.float().view(-1, 1, 1))

    def forward(self, views: Tensor) -> Tensor:
        if self._side is not None:
            views = interpolate(views, (self._side, self._side), mode="bilinear", antialias=True)
        if not self._is_same:
            views = views * self.scale + self.shift
        answers: Tensor = self.network(views)
        return answers


def choose_teacher(workspace: Path, config: DistillConfig, encoder: EncoderConfig, seen: Seen) -> Teacher:
    """The teacher that ``config`` names, on the processors; ``encoder`` is that of pretraining.

    Raises:
        DistillationError: it is not there, or teaches other classes or images.
        WeightsError, ArtifactError, CheckpointError: its file is not there, damaged, or of another network.
    """
    source = config.teacher
    assert source is not None, "the caller has seen that there is one"
    if SHARE.fullmatch(source):
        found = _fine_tuned(workspace / "models" / "finetuned" / source, seen)
    else:
        path = locate(workspace, source, KEY)
        if path.is_dir():
            found = _of_model(load_model(path), path, seen)
        elif is_onnx(path):
            found = _of_graph(path, config, seen)
        else:
            found = _of_weights(workspace, path, config, encoder, seen)
    found.network.requires_grad_(False).eval()
    return found


def _fine_tuned(directory: Path, seen: Seen) -> Teacher:
    reason = directory / "reason.json"
    if not directory.exists():
        raise DistillationError(
            f"{directory}: does not exist, and {KEY} names it; run `simclr run --select finetune`, or name a share "
            "that dvc.yaml has"
        )
    if reason.exists():
        why = json.loads(reason.read_text(encoding="utf-8"))["reason"]
        raise DistillationError(f"{directory}: no network was fine-tuned, because of this: {why}")
    return _of_model(load_model(directory), directory, seen)


def _of_model(model: Model, directory: Path, seen: Seen) -> Teacher:
    """A model directory: with a classifier it has classes, else it is an encoder."""
    card, classes, size = model.card, model.card.get("classes"), model.preprocessing.size
    if model.preprocessing.bands != seen.card.bands:
        raise DistillationError(
            f"{directory}: takes images of {model.preprocessing.bands} channels, and the prepared ones have "
            f"{seen.card.bands}; name another {KEY}"
        )
    name, own = f"{directory.parent.name}/{directory.name}", identity(directory)
    if not classes or "weight" not in model.head:
        expected = AsExpected(model.encoder, seen, size, tuple(card["mean"]), tuple(card["std"]))
        return Teacher(expected, False, model.encoder.feature_dim, name, own)
    if card.get("multi_label") or tuple(classes) != seen.card.classes:
        raise DistillationError(
            f"{directory}: knows the classes {', '.join(classes)}, and the prepared images have "
            f"{', '.join(seen.card.classes) or 'none'}; fine-tune again, or name another {KEY}"
        )
    head = nn.Linear(model.encoder.feature_dim, len(classes))
    head.load_state_dict(model.head)
    settings = card["config"]
    learned_from = (settings["fraction"], settings["seed"]) if "fraction" in settings else None
    network = nn.Sequential(model.encoder, head)
    expected = AsExpected(network, seen, size, tuple(card["mean"]), tuple(card["std"]))
    return Teacher(expected, True, len(classes), name, own, learned_from)


def _of_graph(path: Path, config: DistillConfig, seen: Seen) -> Teacher:
    if config.mean is None or config.std is None:
        raise DistillationError(
            f"{path}: nothing says how its pixels were normalized; give distill.mean and distill.std, for example "
            "[0, 0, 0] and [1, 1, 1] for pixels from 0 to 1"
        )
    graph = OnnxTeacher(path, seen.card.bands, seen.side)
    expected = AsExpected(graph, seen, graph.side, config.mean, config.std)
    digest = sha256(path)
    return Teacher(expected, graph.dim == len(seen.card.classes), graph.dim, f"{path.name} ({digest[:DIGITS]})", digest)


def _of_weights(workspace: Path, path: Path, config: DistillConfig, encoder: EncoderConfig, seen: Seen) -> Teacher:
    """Weights alone: the network is ``distill.teacher_encoder``, and a last layer for the classes may be among them."""
    shape, source = config.teacher_encoder or encoder, str(config.teacher)
    public = read_public_weights(workspace, source, shape.name, path)
    given = None if config.mean is None or config.std is None else (config.mean, config.std)
    stated = None if public.card is None else (public.card.mean, public.card.std)
    if (normalized := given or stated) is None:
        raise DistillationError(
            f"{path}: nothing says how the pixels of {shape.name} were normalized; give distill.mean and distill.std"
        )
    built = build_encoder(**shape.model_dump(), image_size=seen.side, channels=seen.card.bands)
    found = match(built.backbone, public.tensors, str(path), shape.name, "distill.teacher_encoder")
    if found.missing:
        raise WeightsError(f"{path}: lacks weights of {shape.name}, which would stay random: {found}")
    built.backbone.load_state_dict(found.tensors, strict=False)
    head = _find_classifier(built, public.tensors, found.unused, len(seen.card.classes))
    network = built if head is None else nn.Sequential(built, head)
    expected = AsExpected(network, seen, seen.side, *normalized)
    dim = built.feature_dim if head is None else head.out_features
    return Teacher(expected, head is not None, dim, f"{path.name} ({public.sha256[:DIGITS]})", public.sha256)


def _find_classifier(
    encoder: Encoder, tensors: dict[str, Tensor], unused: tuple[str, ...], classes: int
) -> nn.Linear | None:
    """The linear layer among the unused weights that makes of h the classes; None if no layer does.

    Raises:
        DistillationError: several could be it.
    """
    shape = (classes, encoder.feature_dim)
    named = [name for name in unused if name.endswith("weight") and tuple(tensors[name].shape) == shape]
    layers = [(name, bias) for name in named if (bias := f"{name.removesuffix('weight')}bias") in tensors]
    if len(layers) > 1:
        raise DistillationError(
            f"several layers of {KEY} could be its classifier ({', '.join(name for name, _ in layers)}); save its "
            "state dict with one of them"
        )
    if not layers:
        return None
    weight, bias = layers[0]
    head = nn.Linear(encoder.feature_dim, classes)
    head.load_state_dict({"weight": tensors[weight], "bias": tensors[bias]})
    return head
