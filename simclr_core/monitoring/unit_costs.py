"""What the parts of a run cost on this machine, as ``python -m simclr_core rate`` measures them. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSet:
    """What decides how long a step takes, and the look at the features: ``images`` of ``classes`` kinds, with three
    channels of 8 bits, or with ``channels`` at full depth. ``sizes`` are the heights and widths of some of them as they
    are prepared; none: they are squares as large as the views.
    """

    images: int
    classes: int
    channels: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class UnitCosts:
    """Seconds, bytes and sizes.

    Attributes:
        images_per_second: of pretraining, without decoding.
        start_seconds: from the start of a process until PyTorch and a stage are imported.
        monitor_seconds: the look at the features at the end of an epoch, for each image that is looked at.
        forward_seconds: an image through the frozen encoder, in batches.
        tuning_seconds: a step of fine-tuning without images, and an image in it.
        axes_seconds: the principal axes of 512 features of 512 images.
        descent_seconds: one evaluation of a linear probe's loss on few images, and on 512 images of 512 features.
        memory_bytes: of the measuring process at most.
        encoder_parameters, head_parameters: of what is pretrained; ``feature_dim`` is the length of a vector.
    """

    images_per_second: float
    start_seconds: float
    monitor_seconds: float
    forward_seconds: float
    tuning_seconds: tuple[float, float]
    axes_seconds: float
    descent_seconds: tuple[float, float]
    memory_bytes: int
    encoder_parameters: int
    head_parameters: int
    feature_dim: int
