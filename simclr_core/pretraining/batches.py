"""The batches of a training: which images a process sees at a step, and how. A pure function of seed and step.

The global batch is a slice of the epoch's order, a keyed permutation, shared out by slots, so neither an interruption
nor the number of processes changes which images meet in a batch. With groups, the second view is of another image of
the group. Distillation has one view of each image, and labels in place of groups.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy.images.preview import preview
from simclr_core.augmentation.augmentations import MAIN_VIEWS, Augmentation, as_pixels
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.config import PretrainConfig
from simclr_core.data.dataset import TrainingImages, UndecodedImages, prefetch
from simclr_core.data.gpu_decoding import EncodedImages, require_gpu_decoding
from simclr_core.data.groups import Groups
from simclr_core.data.order import Order, ShardOrder
from simclr_core.data.ragged import RaggedImages
from simclr_core.data.shards import DatasetCard, ShardedImages
from simclr_core.data.shares import require_shares
from simclr_core.data.side_stream import made_ahead
from simclr_core.data.transfer import choose, send
from simclr_core.errors import BatchSizeError, DatasetError
from simclr_core.launch import Member
from simclr_core.loss.objective import Views
from simclr_core.stopwatch import part

PREFETCHED = 2  # batches decoded ahead of their step


class _Drawn(NamedTuple):
    """The images of a batch, those that second views are of after the others, and what happens in each view."""

    images: RaggedImages | EncodedImages
    views: list[ViewDraws]


class Batches:
    """The views of each of ``batch_size`` images per step, over all processes of the group: two of most trainings.

    ``marks`` is what the objective knows of the images: their groups, or an int64 of each of them.

    Raises:
        BatchSizeError: more than there are images, or not a multiple, of two or more, of the processes.
    """

    def __init__(
        self,
        pixels: TrainingImages | UndecodedImages,
        card: DatasetCard,
        augmentation: Augmentation,
        batch_size: int,
        order: Order | ShardOrder,
        member: Member,
        marks: Groups | NDArray[np.int64] | None = None,
    ) -> None:
        require_shares(batch_size, len(pixels), member.size)
        self.images = pixels.images
        self.batch_size = batch_size
        self.seed = order.seed
        self.member = member
        self.steps_per_epoch = len(pixels) // batch_size
        self._order = order
        self._marks = marks
        self._groups = marks if isinstance(marks, Groups) else None
        self._pixels = pixels
        self._augmentation = augmentation
        self._channels, self._pixel = card.bands, torch.uint16 if card.channels else torch.uint8
        self._mean = torch.tensor(card.mean, device=member.device).view(-1, 1, 1)
        self._std = torch.tensor(card.std, device=member.device).view(-1, 1, 1)

    def positions(self, step: int) -> NDArray[np.int64]:
        """The images of the global batch, int64 [batch_size]."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        slots = np.arange(step_of_epoch * self.batch_size, (step_of_epoch + 1) * self.batch_size)
        return self._order.positions(epoch, slots)

    def sources(self, step: int) -> NDArray[np.int64]:
        """The image behind each view of the global batch, int64 [v batch_size], in the order of ``network_inputs``."""
        shown = [self.positions(step)] * self._augmentation.views
        shown[1:MAIN_VIEWS] = (self._partners(one, step // self.steps_per_epoch) for one in shown[1:MAIN_VIEWS])
        return np.concatenate(shown)

    def keys(self, step: int) -> list[str]:
        """SHA-256 of the raw files behind the global batch, each once."""
        return [self.images.key(position) for position in dict.fromkeys(self.sources(step).tolist())]

    def marks(self, step: int) -> Tensor | None:
        """int64 [batch_size] of the global batch: equal for images of one group, or what ``marks`` has of each; None:
        nothing is known of them."""
        if self._marks is None:
            return None
        marks, positions = self._marks, self.positions(step)
        found = marks.identities(positions) if isinstance(marks, Groups) else marks[positions]
        return send({"marks": found}, self.member.device)["marks"]

    def network_inputs(self, first: int, last: int) -> Iterator[Views]:
        """This process's normalized views of each step in [first, last): float32 [v n, 3, s, s], n = batch / processes,
        all first views before all second ones before all extra crops; v is 2 without those, and 1 without a pair. Extra
        crops of another size are a second tensor. Images are read and decoded ahead, in the background; on a GPU the
        views of the next step are made ahead too, while the network computes."""
        share = self.batch_size // self.member.size
        own = slice(self.member.rank * share, (self.member.rank + 1) * share)
        drawn = (self._drawn(self.positions(step)[own], step // self.steps_per_epoch) for step in range(first, last))
        device = self.member.device
        yield from made_ahead(prefetch(drawn, PREFETCHED, partial(choose, device)), self._inputs, device)

    def pictures(self, count: int, epochs: int) -> list[list[NDArray[np.uint8]]]:
        """For people: a row for each of the first ``count`` images, with all its views in each of the first epochs."""
        positions = self.positions(0)[:count]
        shown: list[NDArray[np.uint8]] = []
        for drawn in (self._drawn(positions, epoch) for epoch in range(epochs)):
            images = drawn.images
            if isinstance(images, EncodedImages):
                images = images.to(self.member.device)
            for number, view in enumerate(drawn.views):
                views = self._augmentation.of_view(number).ragged_view(images, view)
                shown.append(preview(as_pixels(views, self._pixel)))
        return [list(row) for row in zip(*shown, strict=True)]

    def _partners(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        return positions if self._groups is None else self._groups.partners(self.seed, epoch, positions)

    def _drawn(self, positions: NDArray[np.int64], epoch: int) -> _Drawn:
        """The draws are those of the row's image, also where the second view is of a partner: of two rows with one
        partner, the views differ."""
        shown = positions
        if self._groups is not None:
            shown = np.concatenate([positions, self._partners(positions, epoch)])
        on_gpu = self.member.device.type == "cuda"
        images = self._pixels.batch(shown, pinned=on_gpu)
        n = len(positions)
        views = []
        for view in range(self._augmentation.views):
            first = n if view == 1 and self._groups is not None else 0
            sizes = images.sizes[first : first + n]
            views.append(ViewDraws(first, self._augmentation.draws(sizes, self.seed, epoch, positions, view)))
        return _Drawn(images, views)

    def _inputs(self, drawn: _Drawn) -> Views:
        images, augmentation = drawn.images.to(self.member.device), self._augmentation
        with part("augment"):
            if not augmentation.is_of_two_sizes:
                return self._normalized(images, drawn.views, augmentation)
            pair, extras = drawn.views[:MAIN_VIEWS], drawn.views[MAIN_VIEWS:]
            smaller = self._normalized(images, extras, augmentation.of_view(MAIN_VIEWS))
            return self._normalized(images, pair, augmentation), smaller

    def _normalized(self, images: RaggedImages, views: Sequence[ViewDraws], augmentation: Augmentation) -> Tensor:
        """Views one after the other, normalized, each with the channels last in memory, as convolutions want it."""
        shape = (sum(view.count for view in views), self._channels, augmentation.size, augmentation.size)
        inputs = torch.empty(shape, device=self.member.device, memory_format=torch.channels_last)

        def put(rows: slice, pixels: Tensor) -> None:
            inputs[rows] = pixels.sub(self._mean).div_(self._std)

        augmentation.make(images, views, put)
        return inputs


def choose_pixels(
    config: PretrainConfig, images: ShardedImages, card: DatasetCard, device: torch.device
) -> TrainingImages | UndecodedImages:
    """The images for what decodes them.

    Raises:
        DeviceError: a GPU is to decode, and cannot.
        DatasetError: it is, and the images are not JPEGs.
    """
    pixels = TrainingImages(images)
    if config.decode == "cpu":
        return pixels
    if card.channels is not None:
        raise DatasetError(
            "pretrain.decode is gpu, but the prepared images are arrays of 16 bits, not JPEGs; set pretrain.decode: cpu"
        )
    require_gpu_decoding(device)
    return UndecodedImages(pixels)


def choose_order(config: PretrainConfig, images: ShardedImages) -> Order | ShardOrder:
    if config.order == "shards":
        return ShardOrder(config.seed, images.shards, images.sizes)
    return Order(config.seed, len(images))


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
