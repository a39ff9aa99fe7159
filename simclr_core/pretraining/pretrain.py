"""SimCLR pretraining (Chen et al. 2020): data/prepared and models/initial in, models/pretrained and reports/ out.

    python -m simclr_core pretrain

Reads the configuration, builds what is trained (``training`` has the loop), and publishes what has come of it. Labels
are read to watch the features get better, never to change a weight.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.failpoint import failpoint
from deploy.images.preprocess import Preprocessing
from deploy.plural import counted
from simclr_core import launch
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import PretrainConfig, WatchConfig
from simclr_core.data.dataset import require_pixels
from simclr_core.data.groups import Groups
from simclr_core.data.shards import DatasetCard, ShardedImages, content_digest, read_card
from simclr_core.errors import BatchSizeError
from simclr_core.lars import LARS, parameter_groups
from simclr_core.launch import Member
from simclr_core.loss.momentum_queue import MomentumQueue, random_directions
from simclr_core.loss.nt_xent import LOSSES
from simclr_core.loss.objective import InBatch, Objective, by_size
from simclr_core.machine.devices import DTYPES, memory_explained, resolve_precision
from simclr_core.model.batch_norm import synchronize
from simclr_core.model.encoder import Encoder, build_encoder, require_other_side
from simclr_core.model.gradient_checkpointing import recompute_blocks
from simclr_core.model.initialization import initialize
from simclr_core.model.layer_rates import freeze_stem, layer_rates, split_by_rate
from simclr_core.model.model_directory import load_weights
from simclr_core.model.projection_head import build_projection_head
from simclr_core.model.weight_average import WeightAverage
from simclr_core.monitoring.diagnostics import Monitor, choose_monitor
from simclr_core.monitoring.history import Progress, summary
from simclr_core.monitoring.throughput import FORWARD_AND_BACKWARD, Pace, choose_pace
from simclr_core.monitoring.trackers import open_trackers
from simclr_core.params import flatten, read_block
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.agreement import resume_point
from simclr_core.pretraining.batches import Batches, choose_groups, choose_order, choose_pixels
from simclr_core.pretraining.choices import Choice, settle
from simclr_core.pretraining.collapse import CollapseAlarm, with_roll_backs
from simclr_core.pretraining.compilation import compile_model
from simclr_core.pretraining.early_stopping import AdaptationAlarm, EarlyStopping
from simclr_core.pretraining.initial import Start, read_start
from simclr_core.pretraining.precision import LossScaler, choose_precision
from simclr_core.pretraining.pretrained import (
    Arithmetic,
    describe,
    draw_views,
    publish_pretrained,
    served_preprocessing,
)
from simclr_core.pretraining.training import Learner, Observers, keep_best, train
from simclr_core.pretraining.unfinished import end_training, run_folders, run_key, take_back
from simclr_core.reporter import emit, record_timing
from simclr_core.schedule import Schedule, peak_learning_rate
from simclr_core.torch_calls import data_parallel

PROCESSORS = torch.device("cpu")
MORE_MEMORY = (
    "end other programs that use it and run the same command, which continues from the last checkpoint; or set "
    "pretrain.micro_batch_size or gradient_checkpointing, lower batch_size or image_size, or use more processes, and "
    "training begins again"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a training is made of, before anything is built; ``key`` names its run directory ``folder``."""

    config: PretrainConfig
    card: DatasetCard
    images: ShardedImages
    start: Start
    key: str
    folder: Path
    content: str  # digest of what training reads of data/prepared

    @property
    def facts(self) -> dict[str, object]:
        """What every process of a group has to have alike."""
        parameters = dict(flatten({"pretrain": self.config.model_dump()}))
        return {"data/prepared": self.content, "models/initial": self.start.identity, **parameters}

    @property
    def preprocessing(self) -> Preprocessing:
        return served_preprocessing(self.config, self.card)

    def batches(self, member: Member) -> Batches:
        config, images = self.config, self.images
        augmentation = Augmentation(config.image_size, **config.augmentation.model_dump())
        pixels, order = choose_pixels(config, images, self.card, member.device), choose_order(config, images)
        return Batches(pixels, self.card, augmentation, config.batch_size, order, member, self.groups)

    @property
    def groups(self) -> Groups | None:
        """What the second views are drawn from; None: each image is its own positive."""
        return choose_groups(self.config, self.images)


def run(workspace: Path) -> None:
    """The stage: read ``params.yaml``, ``data/prepared`` and ``models/initial``, train or continue training, publish.

    Raises:
        SimclrError, ArtifactError: whatever is wrong with the parameters, the data, the start, an earlier checkpoint,
            the loss or the features; that another process of the group has other inputs; that memory is used up.
        SystemExit: 128 + the signal that asked to stop; everything up to the last step is saved.
    """
    entrance = launch.member("pretrain", partial(read_inputs, workspace))
    with entrance as (member, inputs), memory_explained(MORE_MEMORY):
        choose_kernels(inputs.config.deterministic, inputs.config.tf32)
        with checkpoint.locked(inputs.folder) if member.rank == 0 else nullcontext():
            _train_and_publish(workspace, inputs, member)


def _train_and_publish(workspace: Path, inputs: Inputs, member: Member) -> None:
    config, card, start, folder = inputs.config, inputs.card, inputs.start, inputs.folder
    watch, on_collapse = read_block(workspace / "params.yaml", "watch", WatchConfig), config.on_collapse
    batches = inputs.batches(member)
    schedule = plan(config, batches.steps_per_epoch, start)
    if member.rank == 0:
        take_back(folder)
    begun = resume_point(folder, member)
    learner, arithmetic = build(inputs, batches)
    trackers = []
    if member.rank == 0:
        _announce(inputs, learner.network, schedule, arithmetic, member, begun)
        trackers = open_trackers(watch.trackers, workspace / ".simclr", inputs.key, config.model_dump())
    monitor = choose_monitor(inputs.images, card, inputs.preprocessing, config.monitor_images, config.seed, member)
    acts, rolls_back = on_collapse.action != "report", on_collapse.action == "roll_back"
    alarm = CollapseAlarm(on_collapse.patience if acts else None, folder / "healthy" if rolls_back else None)
    adaptation = watch_adaptation(config, start, learner.network, monitor)
    stopping = choose_stopping(config, folder, monitor)
    board, seen = workspace / ".simclr" / "tensorboard" / inputs.key, schedule.steps * config.batch_size
    pace = _choose_pace(inputs, learner.network, arithmetic, member, watch.log_every_steps)
    with Progress(schedule.epochs, seen, board, member.rank > 0, trackers, watch.embedding_map_every, pace) as progress:
        observers = Observers(monitor, progress, alarm, adaptation, stopping, config.monitor_every)
        attempt = partial(train, learner, batches, observers, schedule, config.checkpoint_every_steps)
        limit = on_collapse.max_roll_backs if rolls_back else 0
        history = with_roll_backs(attempt, folder, on_collapse.learning_rate_factor, limit, member)
        seconds, images_per_second = progress.seconds, progress.images_per_second
    if member.rank == 0:
        failpoint("pretrain.trained")
        skipped = learner.scaler.skipped
        kept = keep_best(learner, stopping, history, schedule.steps_per_epoch)
        described = describe(config, start, schedule, learner.result[0], history, kept, arithmetic)
        report = replace(described, skipped_steps=skipped)
        publish_pretrained(workspace, config, card, start, learner.result, history, report)
        draw_views(workspace / "reports" / "augmentations.png", batches, inputs.preprocessing)
        failpoint("pretrain.reported")
        end_training(folder)
        parts = {f"{name}_seconds": spent for name, spent in progress.parts.items()}
        rates = {"seconds": seconds, "images_per_second": images_per_second, **parts}
        record_timing("pretrain", workspace=workspace, **rates)
        message = f"{counted(report.steps, 'step')}, {summary(kept)}{progress.lost}"
        emit("end", stage="pretrain", message=message, **kept)


def read_inputs(workspace: Path, device: torch.device = PROCESSORS) -> Inputs:
    """``device`` is where the views are computed, on which those of ``augmentation.mode: fused`` depend."""
    config = read_block(workspace / "params.yaml", "pretrain", PretrainConfig)
    prepared = workspace / "data" / "prepared"
    card, images = read_card(prepared), ShardedImages(prepared / "train")
    start = read_start(workspace, config)
    card = start.normalized(card)
    key = run_key(config.model_dump(), card.digest, start.identity, device.type)
    folder = run_folders(workspace) / key
    inputs = Inputs(config, card, images, start, key, folder, content_digest(prepared))
    require_pixels(card, inputs.preprocessing, "pretraining")
    return inputs


def build(inputs: Inputs, batches: Batches) -> tuple[Learner, Arithmetic]:
    """Everything that is trained, with the weights that the training begins with, on this process's device."""
    config, member, folder = inputs.config, batches.member, inputs.folder
    network = build_network(config, inputs.start, member, inputs.card.bands)
    optimizer = build_optimizer(
        config.optimizer, network, config.momentum, config.weight_decay, _layer_rates(config, inputs.start, network)
    )
    precision = _settle_precision(config, network, batches, folder)
    scaler = LossScaler(DTYPES[precision.value], member.device)
    objective = choose_objective(config, network, scaler, DTYPES[precision.value], member)
    average = None if config.average_decay is None else WeightAverage(network, config.average_decay)
    model, execution = distributed(network, member), Choice("eager")
    if config.compile:
        views = next(batches.network_inputs(0, 1))

        def backward(candidate: nn.Module) -> Tensor:
            return objective.backward(candidate, views).loss

        model, execution = compile_model(model, folder, member, backward)
    learner = Learner(network, model, optimizer, objective, scaler, average, config.clip_gradient_norm)
    return learner, Arithmetic(precision, execution, member.size)


def build_network(config: PretrainConfig, start: Start, member: Member, channels: int = 3) -> nn.Sequential:
    torch.manual_seed(config.seed)
    encoder = build_encoder(**config.encoder.model_dump(), image_size=config.image_size, channels=channels)
    require_other_side(config.encoder.name, config.image_size, config.augmentation.extra_crop_size or config.image_size)
    head = build_projection_head(encoder.feature_dim, **config.projection_head.model_dump())
    initialize(encoder, head, **config.initialization.model_dump())
    if start.network:
        load_weights(start.network, encoder, head)
    if start.weights and config.weights.frozen_stem:
        freeze_stem(encoder)
    if config.gradient_checkpointing:
        recompute_blocks(encoder)
    return nn.Sequential(encoder, head).to(member.device).to(memory_format=torch.channels_last)


def plan(config: PretrainConfig, steps_per_epoch: int, start: Start) -> Schedule:
    """The learning rate over the whole run: from scratch, or as ``warm_start`` says of given weights."""
    peak = peak_learning_rate(config.learning_rate, config.batch_size, config.learning_rate_scaling)
    schedule = Schedule(config.epochs, steps_per_epoch, config.warmup_epochs, peak)
    if start.network is None:
        return schedule
    warm = config.warm_start
    return schedule.again(warm.epochs or config.epochs, warm.warmup_epochs, warm.learning_rate_share)


def watch_adaptation(
    config: PretrainConfig, start: Start, network: nn.Sequential, monitor: Monitor
) -> AdaptationAlarm | None:
    """The alarm on features that become worse than those of given weights, which ``network`` still has. Every process
    has one, and calls this at once; the first one's decides."""
    if start.weights is None or config.weights.stop_after is None:
        return None
    features = monitor.features(network[0])
    before = monitor.accuracies(features) if monitor.member.rank == 0 else {}
    return AdaptationAlarm(config.weights.stop_after, before, monitor.judged)


def choose_stopping(config: PretrainConfig, folder: Path, monitor: Monitor) -> EarlyStopping | None:
    """What ends training early, and keeps its best epoch in the run directory ``folder``; None: nothing does."""
    wanted = config.early_stopping
    if wanted.patience is None and wanted.keep == "last":
        return None
    if monitor.member.rank == 0 and not monitor.judged and wanted.measure != "effective_rank":
        logger.warning(
            "pretrain.early_stopping.measure is %s, and no training image has a label: training goes to its last "
            "epoch, which is kept; effective_rank needs no labels",
            wanted.measure,
        )
    return EarlyStopping(wanted.measure, wanted.patience, folder / "best" if wanted.keep == "best" else None)


def _choose_pace(inputs: Inputs, network: nn.Module, arithmetic: Arithmetic, member: Member, every: int) -> Pace:
    config, side, bands = inputs.config, inputs.config.image_size, inputs.card.bands
    smaller, keys = config.augmentation.extra_crop_size or side, config.queue is not None
    passes: Counter[tuple[int, ...]] = Counter(
        {(bands, side, side): FORWARD_AND_BACKWARD + (1 if keys else FORWARD_AND_BACKWARD)}
    )
    passes[bands, smaller, smaller] += FORWARD_AND_BACKWARD * config.augmentation.extra_crops
    kind = DTYPES[arithmetic.precision.value], config.tf32
    return choose_pace(network, passes, kind, member, config.batch_size, every)


def _layer_rates(config: PretrainConfig, start: Start, network: nn.Sequential) -> dict[int, float]:
    """By ``id`` of the parameter; none where every layer has the same rate."""
    encoder = network[0]
    assert isinstance(encoder, Encoder)
    if start.weights is None or config.weights.layer_decay == 1:
        return {}
    return layer_rates(encoder, config.weights.layer_decay)


def build_optimizer(
    name: str, network: nn.Module, momentum: float, weight_decay: float, rates: Mapping[int, float] | None = None
) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW over ``network``; the learning rate is set before every step, times that of ``rates``."""
    groups = parameter_groups([network], weight_decay)
    fused = next(network.parameters()).device.type == "cuda" or None  # None: as torch does on processors
    if rates:
        groups = split_by_rate(groups, rates)
    if name == "lars":
        return LARS(groups, lr=0.0, momentum=momentum, fused=fused)
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused)
        return with_velocities(sgd) if fused else sgd
    assert name == "adamw", name
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


def with_velocities(sgd: torch.optim.SGD) -> torch.optim.SGD:
    """Fused SGD makes them in the first step, and leaves them as their memory was if that step is left out."""
    for group in sgd.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


def choose_objective(
    config: PretrainConfig, network: nn.Sequential, scaler: LossScaler, precision: torch.dtype, member: Member
) -> Objective:
    """The loss over the batch, at once or from micro-batches, or over a queue.

    Raises:
        BatchSizeError: a micro-batch is larger than this process's share of the batch.
    """
    temperature, extra_crops = config.temperature, config.augmentation.extra_crops
    if config.queue is not None:
        encoder, head = network[0], config.projection_head
        assert isinstance(encoder, Encoder)
        dim = head.dim if head.layers else encoder.feature_dim
        queue, momentum = random_directions(config.seed, config.queue.size, dim), config.queue.momentum
        return MomentumQueue(network, queue, momentum, temperature, precision, extra_crops, scaler.scaled)
    share = config.batch_size // member.size
    if config.micro_batch_size is not None and config.micro_batch_size > share:
        raise BatchSizeError(
            f"pretrain.micro_batch_size is {config.micro_batch_size}, but each of {member.size} processes has {share} "
            f"of the {config.batch_size} images of a batch; give at most {share}, or null"
        )
    loss = LOSSES[config.loss]
    return InBatch(loss, temperature, precision, config.micro_batch_size, extra_crops, scaler.scaled)


def _settle_precision(config: PretrainConfig, network: nn.Module, batches: Batches, folder: Path) -> Choice:
    member = batches.member
    if resolve_precision(config.precision, member.device, scales_loss=True) == torch.float32:
        return Choice("float32")

    def backward(views: Tensor, precision: torch.dtype) -> Tensor:
        return InBatch(LOSSES[config.loss], config.temperature, precision).backward(network, views).loss

    def choose() -> Choice:
        if member.from_first(any(folder.rglob("step-*"))):  # begun when auto was float32 on this GPU
            return Choice("float32")
        views = by_size(next(batches.network_inputs(0, 1)))[0]
        return choose_precision(config.precision, network, views, member, backward)

    return settle(folder, "precision", member, choose)


def distributed(network: nn.Module, member: Member) -> nn.Module:
    """The network as the processes of the group train it together."""
    if member.size == 1:
        return network
    synchronize(network)
    # BatchNorm statistics are those of the global batch, so the buffers of all processes are equal as they are.
    return data_parallel(network)


def choose_kernels(deterministic: bool, tf32: bool) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # A debugging aid that costs a pass over every new tensor. mypy does not see the module's property.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


def _announce(
    inputs: Inputs, network: nn.Module, schedule: Schedule, arithmetic: Arithmetic, member: Member, begun: int
) -> None:
    """What follows from configuration, data and machine together, before it costs hours."""
    config, images = inputs.config, len(inputs.images)
    again = f"continuing at step {begun} of {schedule.steps}, begun " if begun else ""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    message = (
        f"{again}from {inputs.start}: {counted(images, 'image')}, {counted(schedule.epochs, 'epoch')} of "
        f"{counted(schedule.steps_per_epoch, 'step')} of {counted(config.batch_size, 'image')}; "
        f"{config.encoder.name} and head with {parameters:,} parameters, {config.optimizer} up to {schedule.peak:.4g}; "
        f"{config.image_size} pixels, {member.size} x {member.device.type}, {arithmetic.precision.value}"
        f"{_describe_kernels(config, member.device)}, "
        f"{arithmetic.execution.value}{', gradient checkpointing' if config.gradient_checkpointing else ''}"
        f"{_describe_groups(inputs)}"
    )
    if inputs.card.bands != 3 and (config.augmentation.jitter_probability or config.augmentation.grayscale):
        message += f"; saturation, hue, and grayscale change nothing in images with {inputs.card.bands} channels"
    for choice in (arithmetic.precision, arithmetic.execution):
        if choice.reason is not None:
            logger.warning("continuing in %s: %s", choice.value, choice.reason)
            message += f"; {choice.value}, because {choice.reason}"
    logger.info(message)
    emit("start", stage="pretrain", message=message, images=images, steps=schedule.steps, parameters=parameters)


def _describe_kernels(config: PretrainConfig, device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    return f" {'with' if config.tf32 else 'without'} TF32{'' if config.deterministic else ', not deterministic'}"


def _describe_groups(inputs: Inputs) -> str:
    if inputs.groups is None:
        return ""
    return f"; second views are of another image of the group, for {inputs.groups}"
