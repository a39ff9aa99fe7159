"""How given weights are adapted: which layers move, how fast, and when training makes them worse.

Layers are the stem (all before the first block) and the blocks, each with what follows it. The rate falls by a factor
from each block to the one before it (Howard & Ruder 2018, arXiv 1801.06146, section 3.2; Bao et al. 2022, arXiv
2106.08254): what is near the pixels is of use for other images too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from simclr_core.errors import AdaptationError
from simclr_core.launch import Member
from simclr_core.model.encoder import Encoder
from simclr_core.model.gradient_checkpointing import blocks
from simclr_core.monitoring.diagnostics import Record
from simclr_core.pretraining.checkpoint import TrainingState

ACCURACIES = ("knn_top1", "probe_top1")
STANDARD_ERRORS = 1.645  # one-sided, 95 %


def layers_of(encoder: Encoder) -> list[list[nn.Parameter]]:
    """The parameters of the stem, which may be none, and of each block with what comes after it, in their order."""
    starts = {id(parameter): block for block in blocks(encoder.backbone) for parameter in block.parameters()}
    if not starts:  # a sequence of layers
        leaves = [module for module in encoder.backbone.modules() if list(module.parameters(recurse=False))]
        return [list(leaf.parameters(recurse=False)) for leaf in leaves]
    layers: list[list[nn.Parameter]] = [[]]
    last: nn.Module | None = None
    for parameter in encoder.backbone.parameters():
        block = starts.get(id(parameter), last)
        if block is not last:
            layers.append([])
            last = block
        layers[-1].append(parameter)
    return layers


def freeze_stem(encoder: Encoder) -> None:
    """Keep the weights before the first block. The statistics of a BatchNorm in it still follow the images."""
    for parameter in layers_of(encoder)[0]:
        parameter.requires_grad_(False)


def layer_rates(encoder: Encoder, decay: float) -> dict[int, float]:
    """``id`` of each parameter of the encoder -> the factor on its learning rate, 1 for the last block."""
    layers = layers_of(encoder)
    return {id(one): decay ** (len(layers) - 1 - place) for place, layer in enumerate(layers) for one in layer}


def split_by_rate(groups: Sequence[Mapping[str, Any]], rates: Mapping[int, float]) -> list[dict[str, Any]]:
    """Optimizer groups in which all parameters have one factor, ``rate``; those without one have 1."""
    split: dict[tuple[int, float], dict[str, Any]] = {}
    for place, group in enumerate(groups):
        for parameter in group["params"]:
            rate = rates.get(id(parameter), 1.0)
            split.setdefault((place, rate), {**group, "params": [], "rate": rate})["params"].append(parameter)
    return list(split.values())


@dataclass(frozen=True)
class AdaptationAlarm:
    """Raised when ``patience`` epochs in a row are less accurate on held-out labels than ``before``, the accuracies of
    the given weights in percent on ``judged`` images, by more than chance. Every process has one; the first one's
    history decides."""

    patience: int
    before: Mapping[str, float | None]
    judged: int

    def judge(self, state: TrainingState, member: Member) -> None:
        """At the start and after every epoch.

        Raises:
            AdaptationError: on every process at once.
        """
        worst = state.history[-self.patience :]
        raised = member.rank == 0 and len(worst) == self.patience and all(map(self._is_worse, worst))
        found = member.from_first((state.history[-1], dict(self.before)) if raised else None)
        if found is not None:
            record, before = found
            shown = f"kNN {record['knn_top1']:.1f} % and probe {record['probe_top1']:.1f} %"
            start = " and ".join(f"{before[name]:.1f} %" for name in ACCURACIES)
            raise AdaptationError(
                f"epoch {record['epoch']}: {shown} of held-out training labels, {start} with the unchanged weights; "
                f"worse for {self.patience} epochs in a row. Lower pretrain.warm_start.learning_rate_share or "
                "pretrain.weights.layer_decay, set pretrain.weights.frozen_stem: true, weaken pretrain.augmentation; "
                "pretrain.weights.stop_after: null trains to the end all the same"
            )

    def _is_worse(self, record: Record) -> bool:
        return all(self._below(self.before[name], record.get(name)) for name in ACCURACIES)

    def _below(self, before: float | None, now: Any) -> bool:
        """Two proportions on the same images, taken for independent: their errors are not, so this is careful."""
        if before is None or now is None or not self.judged:
            return False
        share = (before + now) / 200
        margin = STANDARD_ERRORS * 100 * math.sqrt(2 * share * (1 - share) / self.judged)
        return bool(now < before - margin)
