"""What can go wrong when an encoder is trained, evaluated or exported.

SimclrError (ValueError)
├── ConfigError                  params.yaml is missing, is not YAML, or has unknown keys or values out of range
├── DatasetError                 the prepared images are missing, damaged, or not what the stage needs
│   ├── BatchSizeError           the batch does not fit the number of images or of processes
│   └── LabelError               the labels are missing, unknown, or too few for what was asked
├── AugmentationError            an augmentation parameter is out of its range
├── NtXentError                  the temperature or the projections cannot be used by the loss
├── UnknownEncoderError          no encoder of this name, or not with this stem or width
├── InitialError                 pretraining cannot begin with what models/initial or models/champion holds
├── ReportError                  a report is missing, or is not what its stage writes
├── ChampionError                models/champion is missing, or its parts contradict each other
├── CheckpointError              a checkpoint of another format, architecture or dataset, or none that verifies
├── CompileError                 torch.compile fails in a run that began compiled
├── RunLockedError               another process is training this very configuration
├── NonFiniteLossError           the loss or a gradient became infinite or not a number
├── NonFiniteFeaturesError       so did the output of the encoder
├── CollapseError                the features collapsed, and the run was to stop
├── ReplayError                  there is no such step to run again
├── TrackerError                 a tracker's package is not installed
├── DeviceError                  a GPU is there, or asked for, and cannot be used
├── DeviceMemoryError            the device has no memory left
├── LaunchError                  the processes of a distributed run could not be started
├── GroupError                   the processes of a distributed run would not work on the same thing
└── ParityError                  the exported encoder does not compute what the trained one computes
"""

from collections.abc import Mapping, Sequence
from pathlib import Path


class SimclrError(ValueError):
    """Root of every error this package raises on purpose."""


class ConfigError(SimclrError):
    """Every fault of a configuration file at once; ``faults`` holds them one by one."""

    def __init__(self, source: Path, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = list(faults)
        count = f"{len(self.faults)} faults: " if len(self.faults) > 1 else ""
        super().__init__(f"{source}: {count}{'; '.join(self.faults)}")


class DatasetError(SimclrError):
    """The prepared images cannot be used for what was asked."""


class BatchSizeError(DatasetError):
    """The global batch does not fit the number of images or of processes."""


class LabelError(DatasetError):
    """The labels cannot be used for what was asked."""


class AugmentationError(SimclrError):
    """An augmentation parameter is out of its range."""


class NtXentError(SimclrError):
    """The temperature or the projections cannot be used by the loss."""


class UnknownEncoderError(SimclrError):
    """No such encoder."""


class InitialError(SimclrError):
    """The start that was asked for is not there, or its network is of another architecture."""


class WeightsError(SimclrError):
    """A file of weights cannot be read, cannot be trusted, or is not of this encoder."""


class DistillationError(SimclrError):
    """The teacher cannot teach here, or the student has learned nothing from it."""


class AdaptationError(SimclrError):
    """Training makes the features worse than those of the weights that it began with."""


class ReportError(SimclrError):
    """A report is missing, unreadable, or lacks something."""


class ChampionError(SimclrError):
    """models/champion is missing, or its parts contradict each other."""


class CheckpointError(SimclrError):
    """A checkpoint cannot be used here."""


class CompileError(SimclrError):
    """A run that began compiled cannot continue compiled."""


class RunLockedError(SimclrError):
    """Another process holds the run directory."""


class NonFiniteLossError(SimclrError):
    """The loss or a gradient is infinite or not a number, at ``step``, over the images whose raw files have ``keys``.

    Nothing of that step is on the disk. All the keys are in the file ``listed``.
    """

    def __init__(self, step: int, loss: float, gradient_norm: float, keys: Sequence[str], listed: Path) -> None:
        self.step = step
        self.keys = list(keys)
        shown = ", ".join(key[:12] for key in self.keys[:4])
        self.what = (
            f"step {step}: the loss is {loss:g}, the norm of its gradient {gradient_norm:g}; nothing of it was "
            f"saved. Images: {shown} and {len(self.keys[4:])} more, all in {listed}"
        )
        super().__init__(
            f"{self.what}. `python -m simclr_core replay "
            f"{step}` shows where it began. Lower pretrain.learning_rate, raise pretrain.temperature, or set "
            "pretrain.precision: float32"
        )


class NonFiniteFeaturesError(SimclrError):
    """The output of the encoder is infinite or not a number: its weights are lost."""


class CollapseError(SimclrError):
    """The features have collapsed in ``patience`` epochs in a row up to ``epoch``, whose ``numbers`` show it."""

    def __init__(self, epoch: int, numbers: Mapping[str, float], patience: int) -> None:
        self.epoch = epoch
        times = f", {patience} epochs in a row" if patience > 1 else ""
        self.what = f"epoch {epoch}: the features have collapsed{times}"
        shown = ", ".join(f"{name} {number:.3g}" for name, number in numbers.items())
        super().__init__(
            f"{self.what} ({shown}; every image looks the same to the encoder). Lower "
            "pretrain.learning_rate or pretrain.weight_decay, lengthen pretrain.warmup_epochs, or weaken "
            "pretrain.augmentation; the next run starts from scratch"
        )


class ReplayError(SimclrError):
    """The step cannot be run again."""


class TrackerError(SimclrError):
    """A tracker was asked for whose package is not installed."""


class DeviceError(SimclrError):
    """A GPU is there, or was asked for, and CUDA does not start; or the environment names no device."""


class DeviceMemoryError(SimclrError):
    """The device, or the machine, has no memory left for the next step."""


class LaunchError(SimclrError):
    """The processes of a distributed run could not be started."""


class GroupError(SimclrError):
    """The processes of a distributed run have other images, weights, parameters or packages, or one has failed."""


class ParityError(SimclrError):
    """The exported encoder differs from the trained one by more than the tolerance."""
