"""SimCLR pretraining (Chen et al. 2020): data/prepared and models/initial in, models/pretrained and reports/ out.

    python -m simclr_core pretrain

Killed at any moment, the same command goes on from the last checkpoint and ends with the same weights, bit for bit:
every random draw is a function of the seed and of the step or sample that it is for. Labels are read to watch the
features get better (kNN), never to change a weight.
"""

import hashlib
import logging
import math
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from deploy.failpoint import failpoint
from deploy.preprocess import Preprocessing
from simclr_core import checkpoint, launch
from simclr_core.augmentations import Augmentation
from simclr_core.batch_norm import synchronise
from simclr_core.batches import Batches
from simclr_core.checkpoint import TrainingState
from simclr_core.checkpoint_writer import CheckpointWriter
from simclr_core.config import PretrainConfig, read_block
from simclr_core.diagnostics import Monitor, choose_monitor
from simclr_core.encoder import Encoder, build_encoder
from simclr_core.errors import BatchSizeError, NonFiniteLossError
from simclr_core.gradient_checkpointing import recompute_blocks
from simclr_core.history import Progress, Record, record, summary
from simclr_core.initial import Start, read_start
from simclr_core.lars import LARS, parameter_groups
from simclr_core.launch import Member, StopRequest
from simclr_core.momentum_queue import MomentumQueue
from simclr_core.nt_xent import LOSSES
from simclr_core.objective import InBatch, Objective, buffers_kept
from simclr_core.pretrained import draw_views, publish_pretrained
from simclr_core.projection_head import build_projection_head
from simclr_core.reporter import emit, record_timing
from simclr_core.schedule import Schedule, peak_learning_rate
from simclr_core.shards import ShardedImages, read_card

logger = logging.getLogger(__name__)


def run(workspace: Path) -> None:
    """The stage: read ``params.yaml``, ``data/prepared`` and ``models/initial``, train or go on training, publish.

    Raises:
        SimclrError, ArtifactError: whatever is wrong with the parameters, the data, the start, an earlier checkpoint
            or the loss.
        SystemExit: 128 + the signal that asked to stop; everything up to the last step is saved.
    """
    config = read_block(workspace / "params.yaml", "pretrain", PretrainConfig)
    prepared, scratch = workspace / "data" / "prepared", workspace / ".simclr"
    card, images = read_card(prepared), ShardedImages(prepared / "train")
    start = read_start(workspace, config)
    key = checkpoint.run_key(config.model_dump(), card.digest, start.identity)
    folder = scratch / "runs" / key
    prefer_deterministic_kernels()
    with launch.member() as member, checkpoint.locked(folder) if member.rank == 0 else nullcontext():
        augmentation = Augmentation(config.image_size, **config.augmentation.model_dump())
        batches = Batches(images, card, augmentation, config.batch_size, config.seed, member)
        torch.manual_seed(config.seed)
        encoder = build_encoder(**config.encoder.model_dump(), image_size=config.image_size)
        head = build_projection_head(encoder.feature_dim, **config.projection_head.model_dump())
        if start.network:
            checkpoint.load_weights(start.network, encoder, head)
        if config.gradient_checkpointing:
            recompute_blocks(encoder)
        network = nn.Sequential(encoder, head).to(member.device).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(config.optimizer, network, config.momentum, config.weight_decay)
        schedule = plan(config, batches.steps_per_epoch, start)
        precision = resolve_precision(config.precision, member.device)
        objective = choose_objective(config, network, precision, member)
        preprocessing = Preprocessing(config.image_size, config.resize or config.image_size)
        monitor = None
        if member.rank == 0:
            _announce(config, network, len(images), start, schedule, precision, execution, member)
            monitor = choose_monitor(images, card, preprocessing, config.monitor_images, config.seed)
        board = scratch / "tensorboard" / key
        seen = schedule.steps * config.batch_size
        with Progress(schedule.epochs, seen, board, quiet=member.rank > 0) as progress:
            history = pretrain(
                network,
                model,
                optimizer,
                batches,
                monitor,
                progress,
                schedule=schedule,
                objective=objective,
                folder=folder,
                checkpoint_every=config.checkpoint_every_steps,
            )
            seconds, images_per_second = progress.seconds, progress.images_per_second
        if member.rank == 0:
            failpoint("pretrain.trained")
            publish_pretrained(workspace, config, card, preprocessing, start, schedule, network, history)
            draw_views(workspace / "reports" / "augmentations.png", batches, preprocessing)
            failpoint("pretrain.reported")
            checkpoint.remove_training(folder)
            record_timing("pretrain", workspace=workspace, seconds=seconds, images_per_second=images_per_second)
            emit("end", stage="pretrain", message=f"{schedule.steps} steps, {summary(history[-1])}", **history[-1])


def pretrain(
    network: nn.Sequential,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    monitor: Monitor | None,
    progress: Progress,
    *,
    schedule: Schedule,
    objective: Objective,
    folder: Path,
    checkpoint_every: int,
) -> list[Record]:
    """Train ``network`` (encoder, projection head) in place, from the last checkpoint in ``folder`` if there is one.

    ``model`` is the same network as it is run: distributed, compiled, or simply itself.
    Called by every process of the group at once; the first one alone has a ``monitor``, saves, and returns the history.
    A checkpoint is saved every ``checkpoint_every`` steps, at the end, and when SIGTERM or Ctrl-C asks to stop; all of
    them are on the disk when this returns or raises SystemExit.
    """
    member, steps = batches.member, schedule.steps
    state = _resume(folder, network, optimizer, objective, member)
    history, unfinished = state.history, state.unfinished
    scaler.restore(state.scaler)
    if state.step < steps:
        _dry_batch(model, next(batches.network_inputs(state.step, state.step + 1)), objective)
    progress.start(state.step * batches.batch_size)
    with StopRequest() as stop, CheckpointWriter(folder) as writer:
        for step, views in zip(range(state.step, steps), batches.network_inputs(state.step, steps), strict=True):
            failpoint("pretrain.step")
            torch.manual_seed(_step_seed(batches.seed, step, member.rank))  # for networks that draw: stochastic depth
            optimizer.zero_grad()
            outcome = objective.backward(model, views)
            gradient_norm = get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            unfinished.append(_finite(step, outcome.loss, gradient_norm, batches))
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            optimizer.step()
            objective.update()
            failpoint("pretrain.stepped")
            progress.step(batches.batch_size)
            if (step + 1) % schedule.steps_per_epoch == 0:
                if monitor is not None:
                    losses, gradient_norms = zip(*unfinished, strict=True)
                    judged = monitor.measure(network[0], outcome.first, outcome.second)
                    history.append(record(len(history) + 1, losses, gradient_norms, schedule.rate(step), judged))
                    progress.epoch(history[-1])
                    failpoint("pretrain.epoch")
                unfinished.clear()
            stopped = stop.agreed(member)
            if member.rank == 0 and (stopped or (step + 1) % checkpoint_every == 0 or step + 1 == steps):
                tensors = checkpoint.optimizer_tensors(optimizer)
                state_dict, lasting = network.state_dict(), objective.tensors()
                writer.save(TrainingState(step + 1, state_dict, tensors, history, unfinished, lasting))
            if stopped:
                writer.wait()
                logger.info("stopped after step %d of %d; the same command goes on from there", step + 1, steps)
                raise SystemExit(128 + stopped)
    return history


def plan(config: PretrainConfig, steps_per_epoch: int, start: Start) -> Schedule:
    """The learning rate over the whole run: from scratch, or as ``warm_start`` says when there is a champion."""
    peak = peak_learning_rate(config.learning_rate, config.batch_size, config.learning_rate_scaling)
    schedule = Schedule(config.epochs, steps_per_epoch, config.warmup_epochs, peak)
    if start.champion is None:
        return schedule
    warm = config.warm_start
    return schedule.again(warm.epochs or config.epochs, warm.warmup_epochs, warm.learning_rate_share)


def choose_objective(
    config: PretrainConfig, network: nn.Sequential, precision: torch.dtype, member: Member
) -> Objective:
    """The loss over the batch, at once or from micro-batches, or over a queue.

    Raises:
        BatchSizeError: a micro-batch is larger than this process's share of the batch.
    """
    if config.queue is not None:
        encoder, head = network[0], config.projection_head
        assert isinstance(encoder, Encoder)
        dim = head.dim if head.layers else encoder.feature_dim
        size, momentum, extra_crops = config.queue.size, config.queue.momentum, config.augmentation.extra_crops
        return MomentumQueue(network, dim, size, momentum, config.temperature, precision, config.seed, extra_crops)
    share = config.batch_size // member.size
    if config.micro_batch_size is not None and config.micro_batch_size > share:
        raise BatchSizeError(
            f"pretrain.micro_batch_size is {config.micro_batch_size}, but each of {member.size} processes has {share} "
            f"of the {config.batch_size} images of a batch; give at most {share}, or null"
        )
    loss, extra_crops = LOSSES[config.loss], config.augmentation.extra_crops
    return InBatch(loss, config.temperature, precision, config.micro_batch_size, extra_crops)


def build_optimizer(name: str, network: nn.Module, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW over ``network``; the learning rate is set before every step."""
    groups = parameter_groups([network], weight_decay)
    if name == "lars":
        return LARS(groups, lr=0.0, momentum=momentum)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum)
    assert name == "adamw", name
    return torch.optim.AdamW(groups, lr=0.0)


def _settle_precision(config: PretrainConfig, network: nn.Module, batches: Batches, folder: Path) -> Choice:
    member = batches.member
    if resolve_precision(config.precision, member.device) == torch.float32:
        return Choice("float32")

    def backward(views: Tensor, precision: torch.dtype) -> Tensor:
        return _back_propagate(network, views, config.temperature, precision)

    def choose() -> Choice:
        return choose_precision(config.precision, network, next(batches.network_inputs(0, 1)), member, backward)

    return settled(folder, "precision", member, choose)


def _compile(
    model: nn.Module, batches: Batches, folder: Path, temperature: float, precision: torch.dtype
) -> tuple[nn.Module, Choice]:
    views = next(batches.network_inputs(0, 1))
    return compile_model(
        model, folder, batches.member, lambda candidate: _back_propagate(candidate, views, temperature, precision)
    )


def _back_propagate(model: nn.Module, views: Tensor, temperature: float, precision: torch.dtype) -> Tensor:
    loss = nt_xent(*_project(model, views, precision), temperature)
    torch.autograd.backward(loss)
    return loss.detach()


def _resume(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective, member: Member
) -> TrainingState:
    """The newest checkpoint, chosen by the first process for all, put into network, optimizer and objective."""
    newest = [checkpoint.newest_training(folder) if member.rank == 0 else None]
    if member.size > 1:
        torch.distributed.broadcast_object_list(newest)
    if newest[0] is None:
        return TrainingState(0, {}, {}, [], [])
    state = checkpoint.load_training(newest[0])
    checkpoint.fill(network, state.network, newest[0], "the network of params.yaml")
    checkpoint.restore_optimizer(optimizer, state.optimizer)
    objective.restore(state.objective)
    failpoint("pretrain.resumed")
    if member.rank == 0:
        logger.info("going on from step %d (%s)", state.step, newest[0])
    return state


def _distributed(network: nn.Module, member: Member) -> nn.Module:
    if member.size == 1:
        return network
    synchronise(network)
    # BatchNorm statistics are those of the global batch, so the buffers of all processes are equal as they are.
    return DistributedDataParallel(network, gradient_as_bucket_view=True, forward_sync_buffers=False)


def _dry_batch(model: nn.Module, views: Tensor, objective: Objective) -> None:
    """A forward and backward pass that leaves no trace: what does not fit or match fails before anything is written."""
    try:
        with buffers_kept(model):
            objective.backward(model, views)
    except torch.OutOfMemoryError as error:
        raise BatchSizeError(
            f"a step over {len(views)} views per process needs more memory than the device has; set "
            "pretrain.micro_batch_size, lower batch_size or image_size, or use more processes"
        ) from error
    model.zero_grad()


def _finite(step: int, loss: Tensor, gradient_norm: Tensor, batches: Batches) -> tuple[float, float]:
    """Loss and gradient norm as numbers; both are the same on every process."""
    values = torch.stack([loss, gradient_norm]).tolist()
    if not all(map(math.isfinite, values)):
        raise NonFiniteLossError(step, values[0], values[1], batches.keys(step))
    return values[0], values[1]


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])


def prefer_deterministic_kernels() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that costs a pass over every new tensor. mypy does not see the module's property.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def _announce(
    config: PretrainConfig,
    network: nn.Module,
    images: int,
    start: Start,
    schedule: Schedule,
    precision: Choice,
    execution: Choice,
    member: Member,
) -> None:
    """What follows from configuration, data and machine together, before it costs hours."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    message = (
        f"from {start}: {images} images, {schedule.epochs} epochs of {schedule.steps_per_epoch} steps of "
        f"{config.batch_size} images; {config.encoder.name} and head with {parameters:,} parameters, "
        f"{config.optimizer} up to {schedule.peak:.4g}; "
        f"{config.image_size} pixels, {member.size} x {member.device.type}, {precision.value}, {execution.value}"
        f"{', gradient checkpointing' if config.gradient_checkpointing else ''}"
    )
    for choice in (precision, execution):
        if choice.reason is not None:
            logger.warning("going on in %s: %s", choice.value, choice.reason)
            message += f"; {choice.value}, because {choice.reason}"
    logger.info(message)
    emit("start", stage="pretrain", message=message, images=images, steps=schedule.steps, parameters=parameters)
