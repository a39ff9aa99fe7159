"""The stage ``distill``. A params.yaml without its block is one with all defaults: there is no teacher."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from simclr_core.config.augmentation import CROP_SCALE
from simclr_core.config.network import EncoderConfig
from simclr_core.params import Block
from simclr_core.values import Channels, CropScale, Positive, Probability, Spreads, WeightsSource


class DistillConfig(Block):
    """A student that learns from a teacher on all training images (SimCLRv2, section 3)."""

    may_be_missing: ClassVar[bool] = True

    teacher: WeightsSource | None = Field(
        default=None,
        description='who teaches: a share of finetune such as "0.1", or a file in weights; null: none does. A '
        "file is an ONNX classifier or encoder, weights of one, or a copy of models/finetuned/0.1. "
        "With null the stage does nothing",
    )
    teacher_encoder: EncoderConfig | None = Field(
        default=None, description="network of a teacher whose file has only weights; null: that of pretrain"
    )
    mean: Channels | None = Field(
        default=None,
        description="mean of each channel, 0 to 1, as the teacher's file expects it; null: as its card says",
    )
    std: Spreads | None = Field(default=None, description="standard deviation of each channel, likewise")
    student: EncoderConfig | None = Field(
        default=None, description="encoder of the student; null: that of pretrain, which is self-distillation"
    )
    init: Literal["scratch", "pretrained"] = Field(
        default="scratch",
        description="where the student begins. pretrained is models/pretrained, of the same encoder; SimCLRv2 begins "
        "from scratch",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of every random choice")
    temperature: Positive = Field(
        default=1.0,
        description="temperature of both, above 1 softer. SimCLRv2 has 0.1 for self-distillation and 1.0 for a smaller "
        "student",
    )
    alpha: Probability = Field(
        default=1.0, description="weight of what the teacher says; the labels that it has seen have the rest"
    )
    epochs: int = Field(default=100, ge=1, description="passes over the training images; SimCLRv2 has 400")
    batch_size: int = Field(default=256, ge=2, description="images over all processes, one view of each")
    optimizer: Literal["sgd", "lars"] = Field(default="lars", description="how weights are updated")
    learning_rate: Positive = Field(default=0.3, description="peak of the learning rate, before learning_rate_scaling")
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = Field(
        default="linear", description="rate times batch_size / 256, sqrt(batch_size), or 1"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of the optimizer")
    weight_decay: float = Field(default=1e-4, ge=0, description="weight decay of the optimizer")
    warmup_epochs: float = Field(default=5, ge=0, description="epochs in which the learning rate rises to its peak")
    crop_scale: CropScale = Field(default=(0.08, 1.0), description=f"{CROP_SCALE}. Flips are those of pretraining")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="type to compute in. auto is bfloat16 on a GPU that has it, and float32 elsewhere"
    )
    checkpoint_every_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    monitor_every: int = Field(default=1, ge=1, description="epochs from one look at the features to the next")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = []
        if self.warmup_epochs > self.epochs:
            faults.append(f"warmup_epochs up to epochs ({self.epochs}), not {self.warmup_epochs:g}")
        if (self.mean is None) != (self.std is None):
            faults.append("mean and std both, or neither")
        if faults:
            raise ValueError("; ".join(faults))
        return self
