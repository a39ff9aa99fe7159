"""The blocks of params.yaml that the training stages read, and what each of their keys allows.

These objects stop at the entry of a stage: functions and classes below it take plain arguments.
"""

import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from simclr_core.params import Block

Item = TypeVar("Item")


def _fraction(value: str) -> str:
    if not re.fullmatch(r"[01]\.\d+", value) or not 0 < float(value) <= 1:
        raise ValueError('a fraction in quotes above 0 and up to 1, such as "0.01"')
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("[low, high] with low <= high")
    return value


def _within_the_image(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] > 1:
        raise ValueError("[low, high] with high <= 1, the whole image")
    return value


def _with_fp32(values: tuple[str, ...]) -> tuple[str, ...]:
    if "fp32" not in values or len(set(values)) != len(values):
        raise ValueError("a list with fp32, in which nothing is twice")
    return values


def _some(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if not values:
        raise ValueError("a list of at least one")
    return values


Variants = Annotated[tuple[Literal["fp32", "int8", "fp16"], ...], Field(strict=False), AfterValidator(_with_fp32)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[str, AfterValidator(_fraction)]
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[Positive, Positive], Field(strict=False), AfterValidator(_ordered)]  # YAML has lists, no tuples
CropScale = Annotated[Range, AfterValidator(_within_the_image)]  # area of the crop over the area of the image


class EncoderConfig(Block):
    """The network whose output is kept: see ``encoder.build_encoder``."""

    name: str = "resnet18"
    width: Positive = 1.0
    stem: Literal["imagenet", "cifar", "compact"] = "imagenet"


class ProjectionHeadConfig(Block):
    """The head g between the encoder and the loss, dropped after pretraining: see ``projection_head``."""

    layers: Annotated[int, Field(ge=0, le=8)] = 2  # 0: identity, 1: linear
    width: Annotated[int, Field(ge=1)] = 2048
    dim: Annotated[int, Field(ge=1)] = 128


# What a preset sets; a key given beside it wins. `imagenet` and `cifar` are SimCLR's sections A and B.9. The other two
# are ours: gray images have no colour to drop, and medical ones carry meaning in colour and texture but have no upside.
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {},  # the defaults
    "cifar": {"jitter_strength": 0.5, "blur": 0.0},
    "grayscale": {"crop_scale": (0.2, 1.0), "grayscale": 0.0, "blur": 0.0},
    "medical": {
        "crop_scale": (0.3, 1.0),
        "jitter_strength": 0.25,
        "grayscale": 0.0,
        "blur": 0.0,
        "rotation": 0.75,
    },
}


class AugmentationConfig(Block):
    """SimCLR section A, see ``augmentations``; ``flip``, ``blur`` and the like are probabilities in 0..1."""

    preset: Annotated[Literal["imagenet", "cifar", "grayscale", "medical"] | None, Field(exclude=True)] = None
    crop_scale: CropScale = (0.08, 1.0)
    crop_ratio: Range = (0.75, 4 / 3)  # width over height
    flip: Probability = 0.5
    jitter_strength: Annotated[float, Field(ge=0, le=1.25)] = 1.0  # brightness 1 +- 0.8 s must not turn negative
    jitter_probability: Probability = 0.8
    grayscale: Probability = 0.2
    blur: Probability = 0.5
    mode: Literal["exact", "fused"] = "exact"
    jitter_order: Literal["fixed", "random"] = "fixed"
    rotation: Probability = 0.0  # by 90, 180 or 270 degrees
    solarize: Probability = 0.0
    extra_crops: Annotated[int, Field(ge=0, le=16)] = 0  # more views of each image, of smaller parts of it
    extra_crop_scale: CropScale = (0.05, 0.14)  # SwAV

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[preset], **given} if isinstance(preset, str) and preset in PRESETS else given


class QueueConfig(Block):
    """Negatives from earlier batches, keys from a momentum encoder (MoCo): see ``momentum_queue``."""

    size: Annotated[int, Field(ge=2)] = 4096  # keys, at least batch_size
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of the encoder that makes them


class WarmStartConfig(Block):
    """How pretraining goes on from a champion, instead of the values beside: see ``schedule``."""

    epochs: Annotated[int, Field(ge=1)] | None = None  # null: as many as from scratch
    learning_rate_share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the peak from scratch
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0


class OnCollapseConfig(Block):
    """What happens when h or z collapses, as ``diagnostics.collapsed`` has it: see ``collapse``."""

    action: Literal["report", "stop", "roll_back"] = "report"
    patience: Annotated[int, Field(ge=1)] = 2  # collapsed epochs in a row
    learning_rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of each roll-back
    max_roll_backs: Annotated[int, Field(ge=1)] = 3


class PretrainConfig(Block):
    """SimCLR pretraining. Sizes are of the whole batch over all processes, durations in epochs."""

    init: Literal["scratch", "champion"] = "scratch"
    warm_start: WarmStartConfig = WarmStartConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    encoder: EncoderConfig = EncoderConfig()
    projection_head: ProjectionHeadConfig = ProjectionHeadConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    image_size: Annotated[int, Field(ge=8, le=1024)] = 224  # side of a view, pixels
    resize: Annotated[int, Field(ge=8)] | None = None  # evaluation's short side before the centre crop; null: same
    batch_size: Annotated[int, Field(ge=2)] = 256  # images, two views each
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None  # images of a process at a time; null: all of its share
    epochs: Annotated[int, Field(ge=1)] = 100
    optimizer: Literal["sgd", "lars", "adamw"] = "lars"
    learning_rate: Positive = 0.3
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = "linear"  # times batch / 256 or times sqrt(batch)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd and lars
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    temperature: Positive = 0.1
    loss: Literal["nt_xent", "dcl", "info_nce"] = "nt_xent"
    queue: QueueConfig | None = None  # null: the negatives are those of the batch
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # tested first: see ``precision``
    compile: bool = False  # the encoder and head, by torch.compile
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    checkpoint_every_steps: Annotated[int, Field(ge=1)] = 100
    monitor_images: Annotated[int, Field(ge=16)] = 2000  # judged after every epoch, those with labels first
    on_collapse: OnCollapseConfig = OnCollapseConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = []
        if self.resize is not None and self.resize < self.image_size:
            faults.append(f"resize of at least image_size ({self.image_size}), not {self.resize}")
        if self.warmup_epochs > self.epochs:
            faults.append(f"warmup_epochs up to epochs ({self.epochs}), not {self.warmup_epochs:g}")
        epochs, warmup_epochs = self.warm_start.epochs or self.epochs, self.warm_start.warmup_epochs
        if warmup_epochs > epochs:
            faults.append(
                f"warm_start.warmup_epochs up to the epochs of a warm start ({epochs}), not {warmup_epochs:g}"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            faults.append(f"micro_batch_size up to batch_size ({self.batch_size}), not {self.micro_batch_size}")
        faults += self._faults_of_queue()
        if self.compile and self.gradient_checkpointing:
            faults.append("compile or gradient_checkpointing, not both: a compiler chooses itself what it keeps")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_queue(self) -> list[str]:
        if self.queue is None:
            return []
        faults = []
        if self.queue.size < self.batch_size:
            faults.append(f"queue.size of at least batch_size ({self.batch_size}), not {self.queue.size}")
        if self.loss != "info_nce":
            faults.append(f"loss: info_nce, the one there is over a queue, not {self.loss}, or queue: null")
        if self.micro_batch_size is not None:
            faults.append(
                "micro_batch_size: null beside a queue, whose negatives do not depend on the batch: lower batch_size"
            )
        return faults


class WatchConfig(Block):
    """Where else a training is shown. No result depends on it, and DVC is not told: a change trains nothing again."""

    trackers: Annotated[tuple[Literal["wandb", "mlflow"], ...], Field(strict=False)] = ()
    embedding_map_every: Annotated[int, Field(ge=0)] = 0  # epochs; 0: no maps in TensorBoard, only its projector


class LinearEvalConfig(Block):
    """The linear probe and the kNN classifier on frozen features."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    fractions: Annotated[tuple[Fraction, ...], Field(strict=False), AfterValidator(_some)] = ("0.01", "0.1", "1.0")
    knn_neighbours: Annotated[int, Field(ge=1)] = 20
    knn_temperature: Positive = 0.1
    l2_count: Annotated[int, Field(ge=2, le=45)] = 12  # values of the sweep over 1e-6 .. 1e5; the paper takes 45


class FinetuneConfig(Block):
    """Fine-tuning of the whole network on few labels (SimCLR section B.5)."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False), AfterValidator(_some)] = (0, 1, 2)
    epochs: Annotated[int, Field(ge=1)] = 30
    epochs_few: Annotated[int, Field(ge=1)] = 60  # with at most 1 % of the labels
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Positive = 0.05  # for a batch of 256, scaled linearly
    crop_scale: CropScale = (0.08, 1.0)
    head_layers: Annotated[int, Field(ge=0, le=8)] = 0  # of the projection head, kept below the classifier


class CompareConfig(Block):
    """The candidate beside the champion: both get the same classifiers on the same images."""

    knn_neighbours: Annotated[int, Field(ge=1)] = 20
    knn_temperature: Positive = 0.1
    l2_count: Annotated[int, Field(ge=2, le=45)] = 5


class ExportConfig(Block):
    """The served bundle."""

    name: str = "simclr-encoder"
    source: Literal["pretrained", "finetuned"] = "pretrained"
    opset: Annotated[int, Field(ge=18, le=25)] = 20  # above, torch writes opset 18 without a word
    license: str = "proprietary"
    variants: Variants = ("fp32", "int8")  # of the ONNX file; each but fp32 has to pass its gate
