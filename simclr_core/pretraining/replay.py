"""One step of a training again, to see where its first infinite or undefined number comes from.

    python -m simclr_core replay 1234        the step that a NonFiniteLossError names, counted from 0

From the last checkpoint before the step the training continues in memory, as it did, up to the step; the step itself
runs under observation. Prints what it found, and writes it to ``.simclr/replay/`` with a picture of the images
concerned. It saves no checkpoint and can be run as often as wanted. It runs with the processes of the training, each
with its share of the batch; with more or fewer of them the numbers are the same up to rounding.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.artifact import write_atomically
from deploy.images.preview import preview
from simclr_core import launch, plots
from simclr_core.augmentation.augmentations import as_pixels
from simclr_core.data.dataset import evaluation_images
from simclr_core.errors import ReplayError
from simclr_core.loss.objective import Views, by_size
from simclr_core.machine.devices import memory_explained
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.collapse import attempt_folder, roll_backs
from simclr_core.pretraining.pretrain import (
    MORE_MEMORY,
    Inputs,
    build,
    choose_kernels,
    plan,
    read_inputs,
)
from simclr_core.pretraining.training import Learner, gradients, resume, step_seed, update

SHOWN = 8  # images in the picture
KINDS = ("views", "weights", "layers", "gradients")
SHARED_OUT = ("views", "layers")  # each process has its part of the rows; of the others all of them have the same


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


class _Look(NamedTuple):
    """A finding, and its turn among those of its kind: the lowest is where it began."""

    turn: int
    finding: Finding


def run(workspace: Path, step: int) -> None:
    """Replay ``step`` of the interrupted training that params.yaml, the data and the start describe.

    Raises:
        ReplayError: that training has not come so far, or its checkpoints are already past the step.
        SimclrError, ArtifactError: as ``pretrain.run``.
    """
    entrance = launch.member(f"replay of step {step}", lambda device: _uncompiled(read_inputs(workspace, device)))
    with entrance as (member, inputs), memory_explained(MORE_MEMORY):
        choose_kernels(inputs.config.deterministic, inputs.config.tf32)
        with checkpoint.locked(inputs.folder) if member.rank == 0 else nullcontext():
            batches = inputs.batches(member)
            learner, _ = build(inputs, batches)
            _continue_to(step, inputs, batches, learner)
            views = next(batches.network_inputs(step, step + 1))
            loss, looks = _observe(step, inputs, batches, learner, views)
        findings = _joined(member.gathered(looks), batches)
        affected = {row for finding in findings for row in finding.rows}
        rows = sorted({row % batches.batch_size for row in affected})[:SHOWN]
        parts = member.gathered(_own_views(views, rows, batches))
        if member.rank == 0:
            keys = _keys(batches, step, affected)
            report = workspace / ".simclr" / "replay" / f"step-{step}.json"
            _write(report, step, loss, findings, keys)
            pictures = {row: views for part in parts for row, views in part.items()}
            _draw(report.with_suffix(".png"), inputs, batches, step, pictures)
            _say(step, loss, findings, keys, report)


def _uncompiled(inputs: Inputs) -> Inputs:
    """A compiled network calls no hooks."""
    return replace(inputs, config=inputs.config.model_copy(update={"compile": False}))


def _continue_to(step: int, inputs: Inputs, batches: Batches, learner: Learner) -> None:
    """From the last checkpoint, in memory, as the training did."""
    config, member = inputs.config, batches.member
    schedule = plan(config, batches.steps_per_epoch, inputs.start)
    done = member.from_first(roll_backs(inputs.folder))
    first, _, _ = resume(attempt_folder(inputs.folder, done), learner, member)
    if not first <= step < schedule.steps:
        raise ReplayError(
            f"step {step} cannot be run again: the last checkpoint is that of step {first}, and the training has "
            f"{schedule.steps}; give a step from {first} to {schedule.steps - 1}"
        )
    for earlier, views in enumerate(batches.network_inputs(first, step), first):
        gradients(learner, views, step_seed(config.seed, earlier, member.rank), batches.marks(earlier))
        update(learner, schedule.rate(earlier) * config.on_collapse.learning_rate_factor**done)


def _observe(
    step: int, inputs: Inputs, batches: Batches, learner: Learner, views: Views
) -> tuple[float, dict[str, _Look]]:
    """The loss over all processes, and what this one sees first of each kind."""
    looks = {"views": [_Look(0, one) for one in _found_in_views(views)]}
    looks["weights"] = _weight_looks(learner.network)
    # The rows of a part are not those of the batch.
    whole = inputs.config.micro_batch_size is None and isinstance(views, Tensor)
    with _Observed(learner.network, whole) as observed:
        seed = step_seed(inputs.config.seed, step, batches.member.rank)
        loss = float(gradients(learner, views, seed, batches.marks(step)).loss)
    looks |= {"layers": observed.looks, "gradients": _gradient_looks(learner.network)}
    return loss, {kind: those[0] for kind, those in looks.items() if those}


def _joined(everyone: Sequence[Mapping[str, _Look]], batches: Batches) -> list[Finding]:
    """Of each kind what came first in any process, with the rows of the whole batch."""
    findings = []
    for kind in KINDS:
        looks = [(rank, looks[kind]) for rank, looks in enumerate(everyone) if kind in looks]
        if not looks:
            continue
        earliest = min(look.turn for _, look in looks)
        those = [(rank, look.finding) for rank, look in looks if look.turn == earliest]
        findings.append(_merged(those, batches) if kind in SHARED_OUT else those[0][1])
    return findings


def _merged(those: Sequence[tuple[int, Finding]], batches: Batches) -> Finding:
    first, size = those[0][1], batches.member.size
    share = batches.batch_size // size
    rows = [_row_of_batch(row, rank, share, size) for rank, finding in those for row in finding.rows]
    return Finding(first.place, sum(one.not_finite for _, one in those), first.numbers * size, sorted(rows))


def _row_of_batch(row: int, rank: int, share: int, size: int) -> int:
    """Of a row of this rank's views, all first ones before all second ones, that among the views of all ranks."""
    view, image = divmod(row, share)
    return view * share * size + rank * share + image


def _own_views(views: Views, rows: Sequence[int], batches: Batches) -> dict[int, list[Tensor]]:
    """All views [channels, s, s] of those images of the batch that this process has."""
    share = batches.batch_size // batches.member.size
    first = batches.member.rank * share
    return {
        row: [view for sized in by_size(views) for view in sized[row - first :: share].cpu()]
        for row in rows
        if first <= row < first + share
    }


class _Observed:
    """While it lasts, every layer's output with numbers that are not finite becomes a look, in order."""

    def __init__(self, network: nn.Module, of_rows: bool) -> None:
        self.looks: list[_Look] = []
        self._network, self._of_rows = network, of_rows
        self._turn = 0

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
            self._turn += 1
            if isinstance(output, Tensor):
                found = _found(f"output of layer {name} ({type(module).__name__})", output, self._of_rows)
                self.looks += [_Look(self._turn, one) for one in found]

        return look


def _keys(batches: Batches, step: int, rows: Collection[int]) -> list[str]:
    """SHA-256 of the raw files behind rows of the views, each once."""
    sources = batches.sources(step)
    ordered = sorted(rows, key=lambda row: (row % batches.batch_size, row))
    return [batches.images.key(position) for position in dict.fromkeys(sources[ordered].tolist())] if ordered else []


def _weight_looks(network: nn.Module) -> list[_Look]:
    """Of the weights before the step."""
    return _looks((f"weight {name}", tensor) for name, tensor in network.state_dict().items())


def _gradient_looks(network: nn.Module) -> list[_Look]:
    """From the loss backwards."""
    named = reversed([(name, weight.grad) for name, weight in network.named_parameters() if weight.grad is not None])
    return _looks((f"gradient of {name}", gradient) for name, gradient in named)


def _looks(tensors: Iterable[tuple[str, Tensor]]) -> list[_Look]:
    return [_Look(turn, one) for turn, (place, tensor) in enumerate(tensors) for one in _found(place, tensor)]


def _found_in_views(views: Views) -> list[Finding]:
    bad = torch.cat([one.isfinite().logical_not().flatten(1).sum(dim=1) for one in by_size(views)])
    if not bad.any():
        return []
    numbers = sum(one.numel() for one in by_size(views))
    return [Finding("augmented views", int(bad.sum()), numbers, bad.nonzero().flatten().tolist())]


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


def _draw(path: Path, inputs: Inputs, batches: Batches, step: int, pictures: Mapping[int, Sequence[Tensor]]) -> None:
    """A row per image of the batch: as evaluation sees it, then its views; what is not finite in them is black."""
    if not pictures:
        plots.note(path, "no image is affected more than another")
        return
    rows = sorted(pictures)
    positions = batches.positions(step)[rows]
    originals = evaluation_images(batches.images, positions, inputs.preprocessing)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (inputs.card.mean, inputs.card.std))
    kind = torch.uint16 if inputs.card.channels else torch.uint8

    def shown(view: Tensor) -> NDArray[np.uint8]:
        pixels = (view * std + mean).nan_to_num(0, 0, 0).clamp(0, 1)
        return preview(as_pixels(pixels[None], kind)[0])

    grid = [[original, *map(shown, pictures[row])] for original, row in zip(preview(originals), rows, strict=True)]
    title = "Left: an image of the step; then its views, black where a number is not finite."
    plots.image_grid(path, grid, [batches.images.key(position)[:8] for position in positions], title=title)
