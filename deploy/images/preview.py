"""What a person sees of an image at full depth: each channel from its 1st to its 99th percentile, as gray or RGB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 1, 99  # percentiles
SHOWN = 3  # channels, as red, green and blue


def preview(samples: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """Show an image, or several: [..., height, width, channels] → uint8 [..., height, width, 3].

    uint8 RGB is returned as it is. Of uint16, the first three channels are red, green and blue; of one or two, the
    first is gray. A channel of one value is black.
    """
    if samples.dtype == np.uint8:
        return samples.astype(np.uint8, copy=False)
    shown = stretched(samples[..., : SHOWN if samples.shape[-1] >= SHOWN else 1])
    return np.broadcast_to(shown, (*shown.shape[:-1], SHOWN)).copy()


def summary(samples: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """All channels in three, uint8 [height, width, 3]: means of thirds of them, each stretched as in ``preview``.

    What is measured of a picture sees every channel so, and that of three channels is its preview.
    """
    channels = stretched(samples)
    count = channels.shape[-1]
    thirds = [range(count)] * SHOWN if count < SHOWN else np.array_split(np.arange(count), SHOWN)
    means = [channels[..., list(third)].mean(axis=-1) for third in thirds]
    return np.stack(means, axis=-1).round().astype(np.uint8)


def stretched(samples: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """Each channel of each image [..., height, width, channels] from its LOW to its HIGH percentile, as 0 to 255."""
    low, high = np.percentile(samples, (LOW, HIGH), axis=(-3, -2), keepdims=True)
    lowest, highest = samples.min(axis=(-3, -2), keepdims=True), samples.max(axis=(-3, -2), keepdims=True)
    flat = high <= low  # a small object on an even ground is all that varies
    low, high = np.where(flat, lowest, low), np.where(flat, highest, high)
    levels = (samples - low) / np.maximum(high - low, 1) * 255
    shown: NDArray[np.uint8] = levels.clip(0, 255).round().astype(np.uint8)
    return shown
