"""Images of any sizes in one flat buffer, one directly after the other: what a batch is before it is augmented.

Nothing is padded: a wide and a tall picture take the bytes of their pixels, and so does every other image of the batch.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class RaggedImages:
    """``samples``: uint8 or uint16, flat, on any device; ``sizes``: int64 [n, 2], height and width.

    With ``channels_last`` an image is [height, width, channels] in memory, otherwise [channels, height, width]. What
    comes after the last image is not one. ``colorless``: all images have three equal channels, of which one is enough.

    Examples:
        >>> batch = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
        >>> images = RaggedImages.of(batch, torch.tensor([[2, 2], [1, 2]]))
        >>> images.samples.numel(), images.starts.tolist()
        (18, [0, 12])
        >>> images.image(1).tolist()
        [[[12, 13]], [[16, 17]], [[20, 21]]]
    """

    samples: Tensor
    sizes: NDArray[np.int64]
    channels: int = 3
    channels_last: bool = False
    colorless: bool = False

    @classmethod
    def of(cls, images: Tensor, sizes: Tensor) -> "RaggedImages":
        """From a batch [n, channels, H, W] that holds each image in the top left corner; ``sizes`` int64 [n, 2].

        Images that fill the batch are not copied.
        """
        channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
        in_memory = images.permute(0, 2, 3, 1) if channels_last else images
        kept = sizes.cpu().numpy()
        if (kept == images.shape[2:]).all():
            samples = in_memory.reshape(-1)
        else:
            cut = [image[:, :height, :width] for image, (height, width) in zip(images, kept.tolist(), strict=True)]
            samples = torch.cat([(one.permute(1, 2, 0) if channels_last else one).reshape(-1) for one in cut])
        return cls(samples, kept, images.shape[1], channels_last, _is_colorless(images))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def distinct(self) -> int:
        """Channels that have to be looked at."""
        return 1 if self.colorless else self.channels

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """int64 [n]: where in ``samples`` each image begins."""
        return starts_of(self.sizes, self.channels)

    def to(self, device: torch.device) -> "RaggedImages":
        """The same on a device, by one copy, which waits for nothing if it is from pinned memory."""
        return replace(self, samples=self.samples.to(device, non_blocking=True))

    def image(self, row: int) -> Tensor:
        """[distinct, height, width], without a copy."""
        height, width = self.sizes[row].tolist()
        start = int(self.starts[row])
        flat = self.samples[start : start + height * width * self.channels]
        if self.channels_last:
            return flat.view(height, width, self.channels).permute(2, 0, 1)[: self.distinct]
        return flat.view(self.channels, height, width)[: self.distinct]

    def padded(self, rows: slice) -> Tensor:
        """[m, distinct, H, W] of a few images, each in the top left of zeros; those of one size are not copied."""
        sizes = self.sizes[rows]
        height, width = sizes.max(axis=0).tolist()
        if (sizes == sizes[0]).all():
            start, shape = int(self.starts[rows.start]), (len(sizes), self.channels, height, width)
            flat = self.samples[start : start + len(sizes) * self.channels * height * width]
            if self.channels_last:
                return flat.view(len(sizes), height, width, self.channels).permute(0, 3, 1, 2)[:, : self.distinct]
            return flat.view(shape)[:, : self.distinct]
        batch = torch.zeros((len(sizes), self.distinct, height, width), dtype=self.samples.dtype)
        for place, row in zip(batch, range(rows.start, rows.stop), strict=True):
            image = self.image(row)
            place[:, : image.shape[1], : image.shape[2]] = image
        return batch


def starts_of(sizes: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """Where each image of ``sizes`` [n, 2] begins in a flat buffer."""
    samples = channels * sizes.prod(axis=1)
    starts: NDArray[np.int64] = np.cumsum(samples) - samples
    return starts


def _is_colorless(images: Tensor) -> bool:
    if images.shape[1] != 3:
        return False
    red, green, blue = (images if images.dtype == torch.uint8 else images.view(torch.int16)).unbind(1)
    return torch.equal(red, green) and torch.equal(green, blue)
