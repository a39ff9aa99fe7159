"""The learning rate as a pure function of the step: linear warm-up, then a cosine to zero (SimCLR section 2.4).

A champion's own training has ended at a rate of zero, where nothing is learned. A training that continues from it warms
the rate up and decays it a second time (Gupta et al. 2023, arXiv 2308.04014; Ibrahim et al. 2024, arXiv 2403.08763):
from zero to a share of the peak, since the higher it rises the more is forgotten, and along the cosine to zero again.
The share is always of the peak from scratch, however many warm starts lie between. The other guard against forgetting
is replay: every epoch draws from all images ever ingested, old and new.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self


def peak_learning_rate(base: float, batch_size: int, scaling: Literal["linear", "sqrt", "none"]) -> float:
    """Scale the base rate to the global batch: base · B / 256, base · sqrt(B) (SimCLR section B.1), or base."""
    return base * {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}[scaling]


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """The rate of step 0 .. steps - 1. Warm-up reaches the peak at its last step; no step has a rate of zero.

    Examples:
        >>> [round(learning_rate(step, steps=6, warmup_steps=2, peak=1.0), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    assert 0 <= step < steps, (step, steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedule:
    """One rise and fall of the learning rate, up to ``peak``; durations in epochs."""

    epochs: int
    steps_per_epoch: int
    warmup_epochs: float
    peak: float

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        return learning_rate(step, self.steps, round(self.warmup_epochs * self.steps_per_epoch), self.peak)

    def again(self, epochs: int, warmup_epochs: float, share: float) -> Self:
        """The rise and fall of a warm start: up to ``share`` of this peak."""
        return replace(self, epochs=epochs, warmup_epochs=warmup_epochs, peak=share * self.peak)
