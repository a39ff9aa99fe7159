"""The batches of pretraining: which images a process sees at a step, and how. A pure function of seed and step.

The global batch is a slice of the epoch's keyed permutation, shared out by slots, so neither an interruption nor the
number of processes changes which images meet in a batch. With groups, the second view is of another image of the group.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy.images.preview import preview
from simclr_core.augmentation.augmentations import Augmentation, as_pixels
from simclr_core.config import PretrainConfig
from simclr_core.data.dataset import TrainingImages, prefetch
from simclr_core.data.groups import Groups
from simclr_core.data.order import permuted
from simclr_core.data.shards import DatasetCard, ShardedImages
from simclr_core.data.shares import require_shares
from simclr_core.errors import BatchSizeError
from simclr_core.launch import Member
from simclr_core.stopwatch import part

PREFETCHED = 2  # batches decoded ahead of their step


class _Decoded(NamedTuple):
    """The images of a batch, uint8 [n, 3, H, W] with sizes int64 [n, 2], and those of which the second views are."""

    epoch: int
    positions: NDArray[np.int64]
    images: Tensor
    sizes: Tensor
    partners: Tensor
    partner_sizes: Tensor


class Batches:
    """Two views of each of ``batch_size`` images per step, over all processes of the group.

    Raises:
        BatchSizeError: more than there are images, or not a multiple, of two or more, of the processes.
    """

    def __init__(
        self,
        images: ShardedImages,
        card: DatasetCard,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        member: Member,
        groups: Groups | None = None,
    ) -> None:
        require_shares(batch_size, len(images), member.size)
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.member = member
        self.steps_per_epoch = len(images) // batch_size
        self._groups = groups
        self._pixels = TrainingImages(images)
        self._augmentation = augmentation
        self._channels, self._pixel = card.bands, torch.uint16 if card.channels else torch.uint8
        self._mean = torch.tensor(card.mean, device=member.device).view(-1, 1, 1)
        self._std = torch.tensor(card.std, device=member.device).view(-1, 1, 1)

    def positions(self, step: int) -> NDArray[np.int64]:
        """The images of the global batch, int64 [batch_size]."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        slots = np.arange(step_of_epoch * self.batch_size, (step_of_epoch + 1) * self.batch_size)
        return permuted(self.seed, epoch, slots, len(self.images))

    def sources(self, step: int) -> NDArray[np.int64]:
        """The image behind each view of the global batch, int64 [v batch_size], in the order of ``network_inputs``."""
        positions = self.positions(step)
        seconds = self._partners(positions, step // self.steps_per_epoch)
        return np.concatenate([positions, seconds, *[positions] * (self._augmentation.views - 2)])

    def keys(self, step: int) -> list[str]:
        """SHA-256 of the raw files behind the global batch, each once."""
        return [self.images.key(position) for position in dict.fromkeys(self.sources(step).tolist())]

    def groups(self, step: int) -> Tensor | None:
        """int64 [batch_size] of the global batch: equal for images of one group; None: there are no groups."""
        if self._groups is None:
            return None
        return torch.from_numpy(self._groups.identities(self.positions(step))).to(self.member.device)

    def network_inputs(self, first: int, last: int) -> Iterator[Tensor]:
        """This process's normalized views of each step in [first, last): float32 [v n, 3, s, s], n = batch / processes,
        all first views before all second ones before all extra crops; v is 2 without those. Images are read and decoded
        ahead, in the background."""
        share = self.batch_size // self.member.size
        own = slice(self.member.rank * share, (self.member.rank + 1) * share)
        steps = ((step, self.positions(step)[own]) for step in range(first, last))
        pinned = self.member.device.type == "cuda"  # copied by the device on its own, while the network computes
        decoded = (self._decoded(positions, step // self.steps_per_epoch, pinned) for step, positions in steps)
        for batch in prefetch(decoded, PREFETCHED):
            with part("augment"):
                inputs = self._normalized(self._views(batch))
            yield inputs

    def pictures(self, count: int, epochs: int) -> list[list[NDArray[np.uint8]]]:
        """For people: a row for each of the first ``count`` images, with all its views in each of the first epochs."""
        positions = self.positions(0)[:count]
        pixels = [views for epoch in range(epochs) for views in self._views(self._decoded(positions, epoch))]
        views = preview(as_pixels(torch.cat(pixels), self._pixel))
        return [list(views[row :: len(positions)]) for row in range(len(positions))]

    def _partners(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        return positions if self._groups is None else self._groups.partners(self.seed, epoch, positions)

    def _decoded(self, positions: NDArray[np.int64], epoch: int, pinned: bool = False) -> "_Decoded":
        if self._groups is None:
            images, sizes = self._pixels.batch(positions, pinned)
            return _Decoded(epoch, positions, images, sizes, images, sizes)
        images, sizes = self._pixels.batch(np.concatenate([positions, self._partners(positions, epoch)]), pinned)
        n = len(positions)
        return _Decoded(epoch, positions, images[:n], sizes[:n], images[n:], sizes[n:])

    def _views(self, batch: "_Decoded") -> Iterator[Tensor]:
        """Each view in turn of all images: float32 [n, 3, s, s] in [0, 1]. The draws are those of the row's image, also
        where the second view is of a partner: of two rows with one partner, the views differ."""
        samples = torch.from_numpy(batch.positions)
        own = batch.images.to(self.member.device, non_blocking=True)
        other = own if batch.partners is batch.images else batch.partners.to(self.member.device, non_blocking=True)
        for view in range(self._augmentation.views):
            images, sizes = (other, batch.partner_sizes) if view == 1 else (own, batch.sizes)
            yield self._augmentation.view(images, sizes, self.seed, batch.epoch, samples, view)

    def _normalized(self, views: Iterator[Tensor]) -> Tensor:
        """All views one after the other, each image with the channels last in memory, as convolutions want them."""
        n, size = self.batch_size // self.member.size, self._augmentation.size
        shape = (self._augmentation.views * n, self._channels, size, size)
        inputs = torch.empty(shape, device=self.member.device, memory_format=torch.channels_last)
        for view, pixels in enumerate(views):
            inputs[view * n : (view + 1) * n] = pixels.sub_(self._mean).div_(self._std)
        return inputs


def choose_groups(config: PretrainConfig, images: ShardedImages) -> Groups | None:
    """The groups of the images, unless there are none or ``positives`` says to leave them alone.

    Raises:
        BatchSizeError: a batch may be of one group, in which the decoupled loss has no negatives.
    """
    if config.positives == "image" or images.groups is None:
        return None
    groups = Groups(images.groups)
    if config.loss == "dcl" and groups.largest >= config.batch_size:
        raise BatchSizeError(
            f"pretrain.batch_size is {config.batch_size}, and the largest group has {groups.largest} images: a batch "
            "of them alone has no negatives for pretrain.loss dcl; give a larger batch, another loss, or "
            "pretrain.positives: image"
        )
    return groups
