"""The blocks of params.yaml that the training stages read, and what each of their keys means and allows.

A field's description is the only one there is: its first sentence is the comment in params.yaml, all of it the help in
the launchpad and in docs/reference. These objects stop at the entry of a stage: functions and classes below it take
plain arguments.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from simclr_core.encoder_names import NO_BLOCKS, fixed_shape, has_one_side, side_fault, unknown_encoder
from simclr_core.params import Block
from simclr_core.values import (
    ArtifactName,
    Channels,
    CropScale,
    Distinct,
    Fractions,
    LabelsPerClass,
    Positive,
    Probability,
    Range,
    Seeds,
    Spreads,
    Variants,
    WeightsSource,
)

CROP_SCALE = "area of the crop over the area of the image: [lowest, highest]"


class EncoderConfig(Block):
    """The network whose output is kept. See ``simclr_core.model.encoder``."""

    name: str = Field(
        default="resnet18",
        description="network: resnet10, any classification model of torchvision, or timm/NAME with the extra timm",
    )
    width: Positive = Field(default=1.0, description="factor on the number of channels of a ResNet")
    stem: Literal["imagenet", "cifar", "compact"] = Field(
        default="imagenet",
        description="first layers of a ResNet. imagenet is a 7x7 convolution of stride 2 with max pooling, cifar a 3x3 "
        "convolution of stride 1, compact one of stride 2",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if (advice := unknown_encoder(name)) is not None:
            raise ValueError(f"the name of an encoder; {advice}")
        return name

    @model_validator(mode="after")
    def _shaped(self) -> Self:
        if (fault := fixed_shape(self.name, self.width, self.stem)) is not None:
            raise ValueError(f"a width and a stem that go with the name: {fault}")
        return self


class ProjectionHeadConfig(Block):
    """The network between encoder and loss, dropped after training. See ``simclr_core.model.projection_head``."""

    layers: int = Field(default=2, ge=0, le=8, description="number of layers; 0: identity, 1: linear")
    width: int = Field(default=2048, ge=1, description="units of each hidden layer")
    dim: int = Field(default=128, ge=1, description="length of the vectors that the loss compares")


# What a preset sets; a key given next to it wins. `imagenet` and `cifar` are SimCLR's sections A and B.9. The other two
# are ours: gray images have no color to drop, and medical ones carry meaning in color and texture but have no upside.
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
    """How an image becomes a view; `python -m simclr_core augment-sheet` draws it. See ``simclr_core.augmentation``."""

    preset: Literal["imagenet", "cifar", "grayscale", "medical"] | None = Field(
        default=None, exclude=True, description="defaults for keys left out here; null: imagenet"
    )
    crop_scale: CropScale = Field(default=(0.08, 1.0), description=CROP_SCALE)
    crop_ratio: Range = Field(default=(0.75, 4 / 3), description="width of the crop over its height: [lowest, highest]")
    flip: Probability = Field(default=0.5, description="probability of a horizontal flip")
    jitter_strength: float = Field(
        default=1.0,
        ge=0,
        le=1.25,  # brightness 1 +- 0.8 s must not turn negative
        description="strength s of the color jitter. Brightness, contrast, and saturation change by a factor of up to "
        "1 ± 0.8 s, and hue turns by up to 0.2 s of the circle",
    )
    jitter_probability: Probability = Field(default=0.8, description="probability of the color jitter")
    grayscale: Probability = Field(
        default=0.2, description="probability of dropping the color; of no use where images are gray already"
    )
    blur: Probability = Field(
        default=0.5, description="probability of a Gaussian blur; small images need none (SimCLR section B.9)"
    )
    mode: Literal["exact", "fused"] = Field(
        default="exact",
        description="how views are computed; fused is faster. It turns hue in YIQ and clamps only at the end",
    )
    jitter_order: Literal["fixed", "random"] = Field(
        default="fixed",
        description="order of the color changes. Fixed is brightness, contrast, saturation, hue; random is drawn for "
        "each image",
    )
    rotation: Probability = Field(
        default=0.0, description="probability of a turn by 90, 180, or 270 degrees, for images that have no top"
    )
    solarize: Probability = Field(
        default=0.0, description="probability of inverting the bright half of the pixel range"
    )
    extra_crops: int = Field(default=0, ge=0, le=16, description="more views of each image, from smaller parts of it")
    extra_crop_scale: CropScale = Field(
        default=(0.05, 0.14),  # SwAV
        description="area of an extra crop over the area of the image: [lowest, highest]",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="how a crop is resized; SimCLR takes bicubic"
    )
    second_blur: Probability | None = Field(
        default=None,
        description="probability of the blur in the second view; null: as in the others. BYOL: 1.0 and 0.1",
    )
    second_solarize: Probability | None = Field(
        default=None, description="probability of solarizing the second view; null: as the others. BYOL: 0.0 and 0.2"
    )
    extra_crop_size: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="side of an extra crop, in pixels; null: image_size. Views of less than half the side take a "
        "quarter of the time; SwAV has 96 next to 224. ViT and MaxViT have one size",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[preset], **given} if isinstance(preset, str) and preset in PRESETS else given


class QueueConfig(Block):
    """Negatives from earlier batches, keys from a momentum encoder (MoCo). See ``simclr_core.loss.momentum_queue``."""

    size: int = Field(default=4096, ge=2, description="number of keys, at least batch_size")
    momentum: float = Field(default=0.999, ge=0, lt=1, description="momentum of the encoder that makes the keys")


class WeightsConfig(Block):
    """Weights that pretraining begins with if init is weights, and how they are adapted."""

    source: WeightsSource | None = Field(
        default=None,
        description="file in the folder weights, or torchvision: and a name. A file is safetensors, a state dict of "
        "torch, or ONNX; a folder there is a models/pretrained of another workspace. A name is one such as "
        "torchvision:ResNet50_Weights.IMAGENET1K_V2",
    )
    mean: Channels | None = Field(
        default=None,
        description="mean of each channel, 0 to 1, as the weights expect it; null: as their card says",
    )
    std: Spreads | None = Field(
        default=None, description="standard deviation of each channel, likewise; null: as their card says"
    )
    frozen_stem: bool = Field(default=False, description="keep the layers before the first block as they are")
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor on the learning rate from each block to the one before it; 1.0 treats all alike",
    )
    stop_after: int | None = Field(
        default=5,
        ge=1,
        description="epochs in a row below the accuracy of the start that stop training; null: never. Both kNN and "
        "probe of held-out training labels have to be lower by more than chance; without labels nothing stops it",
    )

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std both, or neither")
        return self


class WarmStartConfig(Block):
    """What differs when pretraining continues from a champion or from weights. See ``simclr_core.schedule``."""

    epochs: int | None = Field(default=None, ge=1, description="epochs of training; null: the same as from scratch")
    learning_rate_share: float = Field(
        default=0.5, gt=0, le=1, description="peak of the learning rate, as a share of the peak from scratch"
    )
    warmup_epochs: float = Field(default=1.0, ge=0, description="epochs in which the learning rate rises to this peak")


class OnCollapseConfig(Block):
    """What happens when all images get nearly the same features. See ``simclr_core.pretraining.collapse``."""

    action: Literal["report", "stop", "roll_back"] = Field(
        default="report",
        description="what to do; roll_back resumes from the last healthy epoch. The learning rate is lower from there",
    )
    patience: int = Field(default=2, ge=1, description="collapsed epochs in a row that trigger the action")
    learning_rate_factor: float = Field(
        default=0.5, gt=0, lt=1, description="factor on the learning rate at each roll-back"
    )
    max_roll_backs: int = Field(default=3, ge=1, description="stop after this many roll-backs")


class InitializationConfig(Block):
    """Fresh weights, and which of them are not trained. See ``simclr_core.model.initialization``."""

    scheme: Literal["torch", "simclr"] = Field(
        default="torch",
        description="how fresh weights are drawn. simclr is as its code does, torch as torch and torchvision do",
    )
    zero_last_gamma: bool = Field(
        default=False,
        description="begin residual blocks as the identity. The last BatchNorm of each of a ResNet then has weight 0",
    )
    without_last_beta: bool = Field(
        default=False, description="keep the bias of the last BatchNorm of the projection head at 0"
    )
    frozen_first_layer: bool = Field(
        default=False,
        description="keep the first convolution as it is drawn. Of a ViT that is the projection of the patches, "
        "whose training makes the rest unstable (MoCo v3)",
    )


class EarlyStoppingConfig(Block):
    """When training ends early, and which epoch is kept. See ``simclr_core.pretraining.early_stopping``."""

    measure: Literal["knn_top1", "probe_top1", "effective_rank"] = Field(
        default="knn_top1",
        description="what has to rise. kNN and linear probe of held-out training labels need labels, the effective "
        "rank needs none",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="epochs in a row without a higher measure that end training; null: never. The learning rate is "
        "then not at the end of its cosine, where features become best",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="which epoch is published, by the measure. The best one is saved whenever there is a better one",
    )


class PretrainConfig(Block):
    """SimCLR pretraining. Sizes are of the whole batch over all processes, durations in epochs."""

    init: Literal["scratch", "champion", "weights"] = Field(
        default="scratch",
        description="initial weights; champion is the released encoder. From there training continues on old and new "
        "images together. With weights it begins with those that the block `weights` names",
    )
    weights: WeightsConfig = WeightsConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of every random choice")
    encoder: EncoderConfig = EncoderConfig()
    projection_head: ProjectionHeadConfig = ProjectionHeadConfig()
    initialization: InitializationConfig = InitializationConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    image_size: int = Field(default=224, ge=8, le=1024, description="side of a view, in pixels")
    resize: int | None = Field(
        default=None,
        ge=8,
        description="shorter side before the center crop of evaluation and serving; null: image_size",
    )
    batch_size: int = Field(default=256, ge=2, description="images over all processes; two views of each")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="images a process computes at a time, to save memory; null: its share of the batch. The negatives "
        "stay those of the whole batch",
    )
    epochs: int = Field(default=100, ge=1, description="passes over the training images")
    order: Literal["images", "shards"] = Field(
        default="images",
        description="order of an epoch; shards reads few files at a time, for slow storage. The shards are shuffled, "
        "and the images of each 2 GB of them",
    )
    optimizer: Literal["sgd", "lars", "adamw"] = Field(default="lars", description="how weights are updated")
    learning_rate: Positive = Field(default=0.3, description="peak of the learning rate, before learning_rate_scaling")
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = Field(
        default="linear", description="rate times batch_size / 256, sqrt(batch_size), or 1"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd and lars")
    weight_decay: float = Field(default=1e-6, ge=0, description="weight decay of the optimizer")
    clip_gradient_norm: Positive | None = Field(
        default=None,
        description="largest norm of the gradient of a step, over all weights; null: any. A longer gradient is "
        "shortened to it; the norm that is shown is the one before. Only of sgd and adamw: steps of lars do not "
        "depend on that length",
    )
    average_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="decay of the moving average (EMA) of the weights; null: none. The average is then what the "
        "monitor measures and what is published; 0.999 follows some thousand steps",
    )
    warmup_epochs: float = Field(default=10, ge=0, description="epochs in which the learning rate rises to its peak")
    temperature: Positive = Field(
        default=0.1, description="temperature of the loss; lower puts more weight on hard negatives"
    )
    loss: Literal["nt_xent", "dcl", "info_nce"] = Field(
        default="nt_xent",
        description="contrastive loss. dcl leaves the positive out of the denominator, info_nce compares with the "
        "other view alone",
    )
    positives: Literal["group", "image"] = Field(
        default="group",
        description="whose the second view is: another image of the group, or the same. Without groups in "
        "labels.csv both are the same; images of a group are then no negatives of each other",
    )
    queue: QueueConfig | None = Field(
        default=None,
        description="negatives from earlier batches (MoCo), with loss info_nce; null: those of the batch. For example "
        "{size: 4096, momentum: 0.999}",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="type to compute in; float32 if its self-test fails. auto is bfloat16 on a GPU that has it, "
        "float16 on an older one with tensor cores (V100, T4), and float32 elsewhere",
    )
    tf32: bool = Field(
        default=False,
        description="float32 products on a GPU keep 10 bits of the fraction of each number: faster",
    )
    decode: Literal["cpu", "gpu"] = Field(
        default="cpu",
        description="what decodes prepared JPEGs; on a GPU it is nvJPEG. Its pixels differ by a few levels. Only where "
        "a GPU computes, with a torchvision that is built for CUDA",
    )
    deterministic: bool = Field(
        default=True,
        description="kernels that give the same result every time; false lets a GPU choose the fastest ones",
    )
    compile: bool = Field(
        default=False,
        description="use torch.compile, which needs a C++ compiler and takes a minute or two at the start",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice: less memory for a third more time"
    )
    checkpoint_every_steps: int = Field(default=100, ge=1, description="steps between two checkpoints")
    monitor_images: int = Field(
        default=2000,
        ge=16,
        description="training images for the kNN monitor, labeled ones first. The weights never depend on them",
    )
    monitor_every: int = Field(
        default=1,
        ge=1,
        description="epochs from one look at the features to the next; the last epoch is always looked at. Each look "
        "is a row of the history, and alarms count looks",
    )
    on_collapse: OnCollapseConfig = OnCollapseConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = []
        if self.init == "weights" and self.weights.source is None:
            faults.append("weights.source for init: weights, such as a file in the folder weights")
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
        if self.clip_gradient_norm is not None and self.optimizer == "lars":
            faults.append(
                "clip_gradient_norm: null with optimizer lars, whose steps have lengths that do not depend on that of "
                "the gradient (You et al. 2017, section 4); sgd and adamw take it"
            )
        faults += [*self._faults_of_queue(), *self._faults_of_execution(), *self._faults_of_sides()]
        if self.early_stopping.keep == "best" and self.on_collapse.action == "roll_back":
            faults.append("early_stopping.keep: last with on_collapse.action roll_back, which goes back on its own")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_execution(self) -> list[str]:
        faults = []
        if self.initialization.without_last_beta and not self.projection_head.layers:
            faults.append("initialization.without_last_beta: false where projection_head.layers is 0")
        if self.gradient_checkpointing and self.encoder.name in NO_BLOCKS:
            faults.append(f"gradient_checkpointing: false for {self.encoder.name}, which has no blocks")
        if self.compile and self.gradient_checkpointing:
            faults.append("compile or gradient_checkpointing, not both: the compiler itself chooses what to keep")
        return faults

    def _faults_of_sides(self) -> list[str]:
        name, smaller, faults = self.encoder.name, self.augmentation.extra_crop_size, []
        if (side := side_fault(name, self.image_size)) is not None:
            faults.append(f"image_size {side} for encoder.name {name}, not {self.image_size}")
        if smaller is None or smaller == self.image_size:
            return faults
        if has_one_side(name):
            faults.append(f"augmentation.extra_crop_size: null for {name}, which takes images of one size")
        elif (side := side_fault(name, smaller)) is not None:
            faults.append(f"augmentation.extra_crop_size {side} for encoder.name {name}, not {smaller}")
        return faults

    def _faults_of_queue(self) -> list[str]:
        if self.queue is None:
            return []
        faults = []
        if self.queue.size < self.batch_size:
            faults.append(f"queue.size of at least batch_size ({self.batch_size}), not {self.queue.size}")
        if self.loss != "info_nce":
            faults.append(f"loss: info_nce, the only one with a queue, not {self.loss}, or queue: null")
        if self.micro_batch_size is not None:
            faults.append(
                "micro_batch_size: null with a queue, whose negatives do not depend on the batch: lower batch_size"
            )
        return faults


class WatchConfig(Block):
    """Where else training is shown; no result depends on it, so a change retrains nothing. DVC does not track it."""

    trackers: Annotated[tuple[Literal["wandb", "mlflow"], ...], Distinct] = Field(
        default=(),
        strict=False,
        description="services that also get the metrics; each needs its extra",
    )
    embedding_map_every: int = Field(
        default=0, ge=0, description="epochs between t-SNE maps in TensorBoard; 0: only its projector, at the end"
    )
    log_every_steps: int = Field(
        default=0,
        ge=0,
        description="steps between two lines with loss, images a second, and memory; 0: none. On a GPU that is known, "
        "the share of its peak too (MFU); TensorBoard and trackers get the same",
    )


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
    """Fine-tuning of the whole network on few labels (SimCLR section B.5)."""

    seeds: Seeds = Field(default=(0, 1, 2), description="one training for each; every seed draws its own labels")
    epochs: int = Field(default=30, ge=1, description="passes over the labeled images")
    epochs_few: int = Field(default=60, ge=1, description="passes where at most 1 % of the labels are used")
    # 1 % of ImageNet is 12,811 labels; 60 epochs of 80 labels would be over before they are learned.
    min_steps: int = Field(default=100, ge=1, description="steps at least, in more epochs where labels are few")
    batch_size: int = Field(default=64, ge=2, description="images in a step")
    # 0.05 is SimCLR's for a batch of 256. A batch of few labels is small because they are few, not to average less.
    learning_rate: Positive = Field(default=0.05, description="peak of the learning rate, before learning_rate_scaling")
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = Field(
        default="none",
        description="rate times batch_size / 256, sqrt(batch_size), or 1. linear is the paper's, for batches of 4096",
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


class ExportConfig(Block):
    """The bundle that is served."""

    name: ArtifactName = Field(default="simclr-encoder", description="name of the encoder and of its versions")
    source: Literal["pretrained", "finetuned"] = Field(default="pretrained", description="which network is served")
    opset: int = Field(
        default=20,
        ge=18,
        le=25,  # above, torch silently writes opset 18
        description="version of the ONNX operators",
    )
    license: str = Field(default="proprietary", description="license of the weights, which are yours")
    variants: Variants = Field(
        default=("fp32", "int8"),
        description="versions of the ONNX file; one that loses accuracy is left out. fp32 must be among them",
    )
    max_loss: float = Field(
        default=0.5,
        ge=0,
        le=100,
        description="percentage points that a version may lose to fp32. A larger loss that a paired test shows on the "
        "same test images leaves it out",
    )
