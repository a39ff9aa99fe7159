"""Distillation (SimCLRv2, Chen et al. 2020b, section 3): a student learns what a teacher says of all training images.

    python -m simclr_core distill        in a workspace, after finetune

Reads the configuration, builds student, teacher and objective for the loop of ``pretraining``, and publishes the
student as ``models/distilled``. Images are cropped and flipped, and nothing else (as the authors do); teacher and
student see the same view. Labels have a part only with ``distill.alpha`` below 1, and then only those that the teacher
has seen.
"""

import hashlib
import json
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.artifact import identity
from deploy.failpoint import failpoint
from deploy.plural import counted
from simclr_core import launch
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import DistillConfig, EncoderConfig
from simclr_core.data.dataset import TrainingImages, require_pixels
from simclr_core.data.order import Order
from simclr_core.data.shards import UNLABELED, DatasetCard, ShardedImages, content_digest, read_card
from simclr_core.data.shares import require_shares
from simclr_core.data.subsets import subset
from simclr_core.distillation.distilled import describe_student, examine, publish_distilled, publish_nothing
from simclr_core.distillation.objective import FromTeacher, direction_loss, distillation_loss
from simclr_core.distillation.report import DistillReport
from simclr_core.distillation.teacher import Seen, Teacher, choose_teacher
from simclr_core.errors import DistillationError, NonFiniteFeaturesError, NonFiniteLossError
from simclr_core.launch import Member
from simclr_core.machine.devices import memory_explained, resolve_precision
from simclr_core.model import FORMAT_VERSION
from simclr_core.model.encoder import Encoder, build_encoder
from simclr_core.model.model_directory import Model, load_model, load_weights
from simclr_core.monitoring.diagnostics import Record, choose_monitor, is_collapsed
from simclr_core.monitoring.history import Progress
from simclr_core.params import flatten, read_block
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.agreement import resume_point
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.collapse import CollapseAlarm
from simclr_core.pretraining.precision import LossScaler
from simclr_core.pretraining.pretrain import build_optimizer, choose_kernels, distributed
from simclr_core.pretraining.training import Learner, Observers, train
from simclr_core.pretraining.unfinished import end_training, run_folders, take_back
from simclr_core.reporter import emit, finish
from simclr_core.schedule import Schedule, peak_learning_rate

STAGE = "distill"
MONITORED = 2000  # training images by which the student's features are watched
LOWER = "lower distill.learning_rate, raise distill.temperature, or set distill.precision: float32"
LESS_MEMORY = "lower distill.batch_size, take a smaller distill.student"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a distillation is made of, before anything is built; ``card`` has the normalization of ``pretrained``."""

    config: DistillConfig
    card: DatasetCard
    images: ShardedImages
    pretrained: Model
    teacher: Teacher
    facts: dict[str, object]  # what every process of a group has to have alike
    folder: Path

    @property
    def shape(self) -> EncoderConfig:
        """Of the student."""
        return self.config.student or EncoderConfig(**self.pretrained.card["encoder"])

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Of all training images those that the teacher has seen, -1 for the others; None: labels have no part."""
        if self.config.alpha == 1:
            return None
        known = self.images.labels.astype(np.int64)
        if self.teacher.learned_from is None:
            return known
        kept = np.full(len(known), UNLABELED, np.int64)
        positions = np.flatnonzero(known != UNLABELED)
        positions = positions[subset(known[positions], self.images.keys[positions], *self.teacher.learned_from)]
        kept[positions] = known[positions]
        return kept

    def batches(self, member: Member) -> Batches:
        """One view of each image: a crop, maybe flipped."""
        size, config = self.pretrained.preprocessing.size, self.config
        flip = self.pretrained.card["config"]["augmentation"]["flip"]
        augmentation = Augmentation(
            size, config.crop_scale, flip=flip, jitter_probability=0, grayscale=0, blur=0, pair=False
        )
        order = Order(config.seed, len(self.images))
        pixels = TrainingImages(self.images)
        return Batches(pixels, self.card, augmentation, config.batch_size, order, member, self.labels)


def run(workspace: Path) -> None:
    """The stage; without a teacher it writes the reason why it trains no student.

    Raises:
        SimclrError, ArtifactError: whatever is wrong with the parameters, the images, the teacher or an earlier
            checkpoint; that another process of the group has other inputs; that memory is used up.
        SystemExit: 128 + the signal that asked to stop; everything up to the last step is saved.
    """
    began = time.perf_counter()
    if read_block(workspace / "params.yaml", STAGE, DistillConfig).teacher is None:
        said = publish_nothing(workspace)
        logger.info(said)
        finish(STAGE, workspace, began, said)
        return
    entrance = launch.member(STAGE, lambda _: read_inputs(workspace))
    with entrance as (member, inputs), memory_explained(LESS_MEMORY):
        choose_kernels(deterministic=True, tf32=False)
        with checkpoint.locked(inputs.folder) if member.rank == 0 else nullcontext():
            try:
                said = _train_and_publish(workspace, inputs, member)
            except NonFiniteLossError as error:
                raise DistillationError(f"{error.what}; {LOWER}") from None
            except NonFiniteFeaturesError:
                raise DistillationError(f"the student's output has become infinite or not a number; {LOWER}") from None
    if member.rank == 0:
        finish(STAGE, workspace, began, said)


def read_inputs(workspace: Path) -> Inputs:
    config = read_block(workspace / "params.yaml", STAGE, DistillConfig)
    prepared, start = workspace / "data" / "prepared", workspace / "models" / "pretrained"
    card, pretrained = read_card(prepared), load_model(start)
    if card.multi_label:
        raise DistillationError(
            "distillation takes one label for each image, and these images may have several; set distill.teacher: null"
        )
    require_pixels(card, pretrained.preprocessing, "the student")
    card = replace(card, mean=tuple(pretrained.card["mean"]), std=tuple(pretrained.card["std"]))
    own = EncoderConfig(**pretrained.card["encoder"])
    if config.init == "pretrained" and (config.student or own) != own:
        raise DistillationError(
            f"distill.init is pretrained, and distill.student is {config.student}, while models/pretrained is {own}; "
            "set distill.student: null, or distill.init: scratch"
        )
    teacher = choose_teacher(workspace, config, own, Seen(card, pretrained.preprocessing.size))
    facts = {
        "data/prepared": content_digest(prepared, ("train", "test")),
        "models/pretrained": identity(start),
        "the teacher": teacher.identity,
        **dict(flatten({STAGE: config.model_dump()})),
    }
    named = [FORMAT_VERSION, STAGE, config.model_dump(), card.digest, facts["models/pretrained"], teacher.identity]
    key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
    images = ShardedImages(prepared / "train")
    return Inputs(config, card, images, pretrained, teacher, facts, run_folders(workspace) / key)


def build(inputs: Inputs, workspace: Path, member: Member) -> Learner:
    """Student and objective, on this process's device."""
    config, teacher, model = inputs.config, inputs.teacher, inputs.pretrained
    torch.manual_seed(config.seed)
    size = model.preprocessing.size
    encoder = build_encoder(**inputs.shape.model_dump(), image_size=size, channels=inputs.card.bands)
    if config.init == "pretrained":
        load_weights(workspace / "models" / "pretrained", encoder, None)
    head = nn.Linear(encoder.feature_dim, teacher.dim)
    network = nn.Sequential(encoder, head).to(member.device).to(memory_format=torch.channels_last)
    teacher.network.to(member.device)
    optimizer = build_optimizer(config.optimizer, network, config.momentum, config.weight_decay)
    precision = resolve_precision(config.precision, member.device)
    scaler = LossScaler(precision, member.device)
    compare = partial(distillation_loss, temperature=config.temperature, alpha=config.alpha)
    objective = FromTeacher(
        teacher.network, compare if teacher.has_classes else direction_loss, precision, scaler.scaled
    )
    return Learner(network, distributed(network, member), optimizer, objective, scaler, less_memory=LESS_MEMORY)


def _train_and_publish(workspace: Path, inputs: Inputs, member: Member) -> str:
    config, folder, teacher = inputs.config, inputs.folder, inputs.teacher
    if config.alpha < 1 and not teacher.has_classes:
        raise DistillationError("distill.alpha is below 1, and the teacher has no classes; set distill.alpha: 1.0")
    require_shares(config.batch_size, len(inputs.images), member.size, "distill.batch_size")
    batches = inputs.batches(member)
    peak = peak_learning_rate(config.learning_rate, config.batch_size, config.learning_rate_scaling)
    schedule = Schedule(config.epochs, batches.steps_per_epoch, config.warmup_epochs, peak)
    if member.rank == 0:
        take_back(folder)
    begun = resume_point(folder, member)
    learner = build(inputs, workspace, member)
    if member.rank == 0:
        _announce(inputs, learner.network, schedule, member, begun)
    preprocessing = inputs.pretrained.preprocessing
    monitor = choose_monitor(inputs.images, inputs.card, preprocessing, MONITORED, config.seed, member)
    board, seen = workspace / ".simclr" / "tensorboard" / folder.name, schedule.steps * config.batch_size
    with Progress(schedule.epochs, seen, board, member.rank > 0) as progress:
        progress.stage = STAGE
        watched = replace(monitor, of_head=False)
        observers = Observers(watched, progress, CollapseAlarm(None, None), every=config.monitor_every)
        every = config.checkpoint_every_steps
        history = train(learner, batches, observers, schedule, every, folder=folder, learning_rate_scale=1.0)
    if member.rank:
        return ""
    failpoint("distill.trained")
    report = _publish(workspace, inputs, learner, schedule, history, member)
    end_training(folder)
    return f"top-1 {report.top1} %, the teacher's {report.teacher_top1} %" if report.top1 else str(report.reason)


def _publish(
    workspace: Path, inputs: Inputs, learner: Learner, schedule: Schedule, history: list[Record], member: Member
) -> DistillReport:
    network, teacher = learner.network.eval(), inputs.teacher
    encoder = network[0]
    assert isinstance(encoder, Encoder)
    shape = inputs.shape.model_dump()
    card = describe_student(inputs.pretrained, inputs.config, encoder, shape, teacher, inputs.card.classes)
    report = DistillReport(
        teacher=teacher.name,
        reason=None,
        teaches="classes" if teacher.has_classes else "vectors",
        knn_top1=history[-1]["knn_top1"],
        probe_top1=history[-1]["probe_top1"],
        parameters=sum(one.numel() for one in encoder.parameters()),
        teacher_parameters=teacher.parameters,
        labels=0 if inputs.labels is None else int(np.sum(inputs.labels != UNLABELED)),
        epochs=schedule.epochs,
        steps=schedule.steps,
        loss_first=history[0]["loss"],
        loss_last=history[-1]["loss"],
        collapsed=is_collapsed(history[-1]),
        precision=str(resolve_precision(inputs.config.precision, member.device)).removeprefix("torch."),
        processes=member.size,
    )
    model = replace(inputs.pretrained, card={**inputs.pretrained.card, "classes": inputs.card.classes})
    report = examine(report, workspace, network, teacher, model, member)
    publish_distilled(workspace, inputs.config, network.cpu(), card, history, report)
    return report


def _announce(inputs: Inputs, network: nn.Sequential, schedule: Schedule, member: Member, begun: int) -> None:
    config, teacher = inputs.config, inputs.teacher
    again = f"continuing at step {begun} of {schedule.steps}: " if begun else ""
    parameters = sum(one.numel() for one in network.parameters())
    taught = counted(teacher.dim, "class") if teacher.has_classes else f"vectors of {teacher.dim} numbers"
    message = (
        f"{again}{inputs.shape.name} with {parameters:,} parameters learns {taught} from {teacher.name}"
        f"{f' with {teacher.parameters:,}' if teacher.parameters else ''}, on {counted(len(inputs.images), 'image')}: "
        f"{counted(schedule.epochs, 'epoch')} of {counted(schedule.steps_per_epoch, 'step')} of "
        f"{counted(config.batch_size, 'image')}; temperature {config.temperature:g}, {config.optimizer} up to "
        f"{schedule.peak:.4g}; {member.size} x {member.device.type}"
    )
    logger.info(message)
    emit("start", stage=STAGE, message=message, images=len(inputs.images), steps=schedule.steps, parameters=parameters)
