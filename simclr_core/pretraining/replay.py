"""One step of a training again, to see where its first infinite or undefined number comes from.

    python -m simclr_core replay 1234        the step that a NonFiniteLossError names, counted from 0

From the last checkpoint before the step the training continues in memory, as it did, up to the step; the step itself
runs under observation. Prints what it found, and writes it to ``.simclr/replay/`` with a picture of the images
concerned. It saves no checkpoint and can be run as often as wanted. One process sees the whole batch, whatever number
trained: the same numbers up to rounding, in the memory of one.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deploy.artifact import write_atomically
from deploy.images.preview import preview
from simclr_core import launch, plots
from simclr_core.augmentation.augmentations import as_pixels
from simclr_core.data.dataset import evaluation_images
from simclr_core.errors import ReplayError
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.collapse import attempt_folder, roll_backs
from simclr_core.pretraining.pretrain import Inputs, build, plan, prefer_deterministic_kernels, read_inputs
from simclr_core.pretraining.training import gradients, resume, step_seed, update

SHOWN = 8  # images in the picture


@dataclass(frozen=True)
class Finding:
    """A tensor with numbers that are not finite. ``rows`` are those of the batch, empty for weights and gradients."""

    place: str
    not_finite: int
    numbers: int
    rows: Sequence[int] = ()

    def __str__(self) -> str:
        rows = f", in {len(self.rows)} rows" if self.rows else ""
        return f"{self.place}: {self.not_finite:,} of {self.numbers:,} numbers are not finite{rows}"


def run(workspace: Path, step: int) -> None:
    """Replay ``step`` of the interrupted training that params.yaml, the data and the start describe.

    Raises:
        ReplayError: that training has not come so far, or its checkpoints are already past the step.
        SimclrError, ArtifactError: as ``pretrain.run``.
    """
    inputs = read_inputs(workspace)
    config, folder = inputs.config, inputs.folder
    prefer_deterministic_kernels()
    with launch.member() as member, checkpoint.locked(folder):
        batches = inputs.batches(member)
        schedule = plan(config, batches.steps_per_epoch, inputs.start)
        built, _ = build(inputs, batches)
        learner = built._replace(model=built.network)  # a compiled one calls no hooks
        done = roll_backs(folder)
        first, _, _ = resume(attempt_folder(folder, done), learner, member)
        if not first <= step < schedule.steps:
            raise ReplayError(
                f"step {step} cannot be run again: the last checkpoint is that of step {first}, and the training has "
                f"{schedule.steps}; give a step from {first} to {schedule.steps - 1}"
            )
        for earlier, views in enumerate(batches.network_inputs(first, step), first):
            gradients(learner, views, step_seed(config.seed, earlier, member.rank), batches.groups(earlier))
            update(learner, schedule.rate(earlier) * config.on_collapse.learning_rate_factor**done)
        views = next(batches.network_inputs(step, step + 1))
        findings = _first_findings(learner.network, views)
        with _Observed(learner.network) as observed:
            seed = step_seed(config.seed, step, member.rank)
            loss = float(gradients(learner, views, seed, batches.groups(step)).loss)
        findings += observed.findings[:1] + _gradient_findings(learner.network)[:1]
        affected = {row for finding in findings for row in finding.rows}
        rows = sorted({row % config.batch_size for row in affected})
        keys = _keys(batches, step, affected)
        report = workspace / ".simclr" / "replay" / f"step-{step}.json"
        _write(report, step, loss, findings, keys)
        _draw(report.with_suffix(".png"), inputs, batches, step, views, rows[:SHOWN])
        _say(step, loss, findings, keys, report)


class _Observed:
    """While it lasts, every layer's output with numbers that are not finite becomes a finding, in order."""

    def __init__(self, network: nn.Module) -> None:
        self.findings: list[Finding] = []
        self._network = network

    def __enter__(self) -> Self:
        layers = [(name, module) for name, module in self._network.named_modules() if not list(module.children())]
        self._hooks = [module.register_forward_hook(self._hook(name, module)) for name, module in layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str, module: nn.Module) -> Any:
        def look(*inputs_and_output: Any) -> None:
            output = inputs_and_output[-1]
            if isinstance(output, Tensor):
                self.findings += _found(f"output of layer {name} ({type(module).__name__})", output, of_rows=True)

        return look


def _keys(batches: Batches, step: int, rows: Collection[int]) -> list[str]:
    """SHA-256 of the raw files behind rows of the views, each once."""
    sources = batches.sources(step)
    ordered = sorted(rows, key=lambda row: (row % batches.batch_size, row))
    return [batches.images.key(position) for position in dict.fromkeys(sources[ordered].tolist())] if ordered else []


def _first_findings(network: nn.Module, views: Tensor) -> list[Finding]:
    """Of the views that come in, and of the weights before the step."""
    weights = [found for name, tensor in network.state_dict().items() for found in _found(f"weight {name}", tensor)]
    return _found("augmented views", views, of_rows=True) + weights[:1]


def _gradient_findings(network: nn.Module) -> list[Finding]:
    """From the loss backwards."""
    named = reversed([(name, weight.grad) for name, weight in network.named_parameters() if weight.grad is not None])
    return [found for name, gradient in named for found in _found(f"gradient of {name}", gradient)]


def _found(place: str, tensor: Tensor, of_rows: bool = False) -> list[Finding]:
    bad = ~tensor.detach().isfinite()
    if not bad.any():
        return []
    rows = bad.flatten(1).any(dim=1).nonzero().flatten().tolist() if of_rows else []
    return [Finding(place, int(bad.sum()), bad.numel(), rows)]


def _write(path: Path, step: int, loss: float, findings: Sequence[Finding], keys: Sequence[str]) -> None:
    report = {"step": step, "loss": str(loss), "findings": [asdict(finding) for finding in findings], "images": keys}
    write_atomically(path, json.dumps(report, indent=2) + "\n")


def _say(step: int, loss: float, findings: Sequence[Finding], keys: Sequence[str], report: Path) -> None:
    if not findings:
        print(f"step {step}: the loss is {loss:g}, and every number on the way to it and back is finite")
        return
    print(f"step {step}: the loss is {loss:g}. In the order in which they were computed, the first of each kind:")
    for finding in findings:
        print(f"  {finding}")
    print(f"affected images: {', '.join(key[:12] for key in keys[:SHOWN]) or 'none'}; all {len(keys)} in {report}")


def _draw(path: Path, inputs: Inputs, batches: Batches, step: int, views: Tensor, rows: Sequence[int]) -> None:
    """A row per image: as evaluation sees it, then its views; what is not finite in them is black."""
    if not rows:
        plots.note(path, "no image is affected more than another")
        return
    positions = batches.positions(step)
    originals = evaluation_images(batches.images, positions[list(rows)], inputs.preprocessing)
    statistics = (inputs.card.mean, inputs.card.std)
    mean, std = (torch.tensor(values, device=views.device).view(-1, 1, 1) for values in statistics)
    pixels = (views * std + mean).nan_to_num(0, 0, 0).clamp(0, 1)
    shown = preview(as_pixels(pixels, torch.uint16 if inputs.card.channels else torch.uint8))
    grid = [[original, *shown[row :: len(positions)]] for original, row in zip(preview(originals), rows, strict=True)]
    plots.image_grid(path, grid, [batches.images.key(positions[row])[:8] for row in rows])
