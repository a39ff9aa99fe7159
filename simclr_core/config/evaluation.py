"""The stages ``linear_eval``, ``finetune``, and ``compare``: what the encoder is worth."""

from typing import Literal

from pydantic import Field

from simclr_core.config.augmentation import CROP_SCALE
from simclr_core.params import Block
from simclr_core.values import CropScale, Fractions, LabelsPerClass, Positive, Seeds


class SgdConfig(Block):
    """A linear classifier as SimCLR trains it on ImageNet (section B.6), with all labels. See
    ``simclr_core.evaluation.classifier_training``."""

    epochs: int = Field(default=90, ge=1, description="passes over the labeled images")
    batch_size: int = Field(
        default=4096, ge=2, description="images in a step, over all processes; all that are labeled if they are fewer"
    )
    learning_rate: Positive = Field(
        default=0.1,
        description="peak of the learning rate for a batch of 256, scaled linearly to the images in a step",
    )
    crop_scale: CropScale = Field(default=(0.08, 1.0), description=CROP_SCALE)


class LinearEvalConfig(Block):
    """The linear probe and the kNN classifier on frozen features."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the label subsets and the random baselines")
    fractions: Fractions = Field(
        default=("0.01", "0.1", "1.0"),
        description="shares of the labels that the probe is trained on, in quotes",
    )
    labels_per_class: LabelsPerClass = Field(
        default=(1, 2, 5, 10, 25),
        description="labels of each class that the probe is trained on, besides the shares",
    )
    draws: int = Field(
        default=3,
        ge=1,
        description="draws of the labels, of which intervals know. A budget of more than half of the labels is drawn "
        "once, and without test images each is drawn once in each fold; with one draw intervals are wider, because it "
        "does not tell how much draws differ",
    )
    knn_neighbours: int = Field(default=20, ge=1, description="nearest training images that vote")
    knn_temperature: Positive = Field(default=0.1, description="temperature of the votes; lower favors the nearest")
    l2_count: int = Field(
        default=12, ge=2, le=45, description="values of the L2 penalty to try, from 1e-6 to 1e5; the paper takes 45"
    )
    sgd: SgdConfig | None = Field(
        default=None,
        description="also a linear classifier by SGD on augmented images (SimCLR section B.6); null: none. For example "
        "{epochs: 90, batch_size: 4096, learning_rate: 0.1}",
    )


class FinetuneConfig(Block):
    """Fine-tuning of the whole network on few labels, by SimCLR (section B.5) or SimCLRv2."""

    seeds: Seeds = Field(default=(0, 1, 2), description="one training for each; every seed draws its own labels")
    epochs: int = Field(default=30, ge=1, description="passes over the labeled images")
    epochs_few: int = Field(default=60, ge=1, description="passes where at most 1 % of the labels are used")
    # 1 % of ImageNet is 12,811 labels; 60 epochs of 80 labels would be over before they are learned.
    min_steps: int = Field(default=100, ge=1, description="steps at least, in more epochs where labels are few")
    batch_size: int = Field(default=64, ge=2, description="images in a step")
    optimizer: Literal["sgd", "lars"] = Field(
        default="sgd",
        description="how weights are updated. sgd is SimCLR's, with Nesterov's momentum; lars is SimCLRv2's and takes "
        "a rate of 0.005 with scaling sqrt. The baseline from scratch is always trained by sgd, then at a rate of 0.05",
    )
    # 0.05 is SimCLR's for a batch of 256. A batch of few labels is small because they are few, not to average less.
    learning_rate: Positive = Field(default=0.05, description="peak of the learning rate, before learning_rate_scaling")
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = Field(
        default="none",
        description="rate times batch_size / 256, sqrt(batch_size), or 1. linear is SimCLR's, for batches of 4096, and "
        "sqrt SimCLRv2's, for 1024",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="type to compute in. auto is bfloat16 on a GPU that has it, and float32 elsewhere"
    )
    start: Literal["zero", "probe"] = Field(
        default="probe",
        description="where the classifier begins. probe is the linear probe on the same labels",
    )
    # Of Fashion-MNIST, crops from 0.2 cost 5 points.
    crop_scale: CropScale = Field(
        default=(0.08, 1.0), description=f"{CROP_SCALE}. Small images lose accuracy below 0.8; photographs take 0.08"
    )
    head_layers: int = Field(
        default=0,
        ge=0,
        le=8,
        description="layers of the projection head to keep below the classifier; SimCLRv2 keeps 1 of 3",
    )


class CompareConfig(Block):
    """The candidate and the champion: the same classifiers on the same images."""

    knn_neighbours: int = Field(default=20, ge=1, description="nearest training images that vote")
    knn_temperature: Positive = Field(default=0.1, description="temperature of the votes; lower favors the nearest")
    l2_count: int = Field(
        default=5, ge=2, le=45, description="values of the L2 penalty to try for the linear probe, from 1e-6 to 1e5"
    )
