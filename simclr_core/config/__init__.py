"""The blocks of params.yaml that the training stages read, and what each of their keys means and allows: by stage.

A field's description is the only one there is: its first sentence is the comment in params.yaml, all of it the help in
the launchpad and in docs/reference. These objects stop at the entry of a stage: functions and classes below it take
plain arguments. Nothing here imports torch.
"""

from simclr_core.config.augmentation import PRESETS, AugmentationConfig
from simclr_core.config.distillation import DistillConfig
from simclr_core.config.evaluation import CompareConfig, FinetuneConfig, LinearEvalConfig, SgdConfig
from simclr_core.config.export import ExportConfig
from simclr_core.config.interventions import EarlyStoppingConfig, OnCollapseConfig
from simclr_core.config.network import EncoderConfig, InitializationConfig, ProjectionHeadConfig
from simclr_core.config.pretraining import PretrainConfig, QueueConfig, WarmStartConfig, WatchConfig, WeightsConfig

__all__ = [
    "PRESETS",
    "AugmentationConfig",
    "CompareConfig",
    "DistillConfig",
    "EarlyStoppingConfig",
    "EncoderConfig",
    "ExportConfig",
    "FinetuneConfig",
    "InitializationConfig",
    "LinearEvalConfig",
    "OnCollapseConfig",
    "PretrainConfig",
    "ProjectionHeadConfig",
    "QueueConfig",
    "SgdConfig",
    "WarmStartConfig",
    "WatchConfig",
    "WeightsConfig",
]
