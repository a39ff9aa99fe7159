"""What stops pretraining, or sends it back: collapsed features, and a measure that no longer rises."""

from typing import Literal

from pydantic import Field

from simclr_core.params import Block


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
