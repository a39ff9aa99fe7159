"""The learning rate as a pure function of the step: linear warm-up, then a cosine to zero (SimCLR section 2.4)."""

import math
from typing import Literal


def peak_learning_rate(base: float, batch_size: int, scaling: Literal["linear", "sqrt", "none"]) -> float:
    """Scale the base rate to the global batch: base · B / 256, base · sqrt(B) (SimCLR section B.1), or base."""
    return base * {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}[scaling]


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """The rate of step 0 .. steps - 1. Warm-up reaches the peak at its last step; no step has a rate of zero."""
    assert 0 <= step < steps, (step, steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
