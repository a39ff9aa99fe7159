"""The stage ``pretrain``: where its weights begin, its loss, and its optimization."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simclr_core.config.augmentation import AugmentationConfig
from simclr_core.config.interventions import EarlyStoppingConfig, OnCollapseConfig
from simclr_core.config.network import EncoderConfig, InitializationConfig, ProjectionHeadConfig
from simclr_core.encoder_names import NO_BLOCKS, has_one_side, side_fault
from simclr_core.params import Block
from simclr_core.values import Channels, Distinct, Positive, Spreads, WeightsSource


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
