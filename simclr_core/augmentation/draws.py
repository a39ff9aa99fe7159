"""What is drawn for a view: the random choices of each of its samples, before a pixel is looked at."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Draws(NamedTuple):
    """What happens to each sample of a batch; every array begins with the sample."""

    boxes: Floats  # top, left, height, width
    flip: Flags
    turns: NDArray[np.int64]  # quarter turns, 0..3
    jitter: Flags
    swings: Floats  # [n, 4]: brightness, contrast, saturation, hue, in [-s, s]
    orders: NDArray[np.int64]  # [n, 4]: which of these comes first, second, ...
    gray: Flags
    blur: Flags
    sigmas: Floats
    solarize: Flags


@dataclass(frozen=True)
class ViewDraws:
    """The draws of one view of some images of a batch, which are one after the other from image ``first`` on."""

    first: int
    draws: Draws

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.draws.flip)
