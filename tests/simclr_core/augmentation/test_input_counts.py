"""What the views of a step ask of a GPU: a copy of the pixels, one of the draws, few kernels, nothing that waits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.data import dataset
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.groups import Groups
from simclr_core.data.order import Order
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.launch import Member
from simclr_core.pretraining.batches import Batches
from tests.simclr_core import fake_cuda
from tests.simclr_core.fake_cuda import count

PAIRS = np.arange(96, dtype=np.int32) // 2


def pinned(number: int, dtype: torch.dtype, pinned: bool) -> torch.Tensor:
    """Memory that decoding can write to, and that the fake GPU takes for pinned."""
    assert pinned
    (gpu,) = fake_cuda._open
    return gpu._pin(torch.empty(number, dtype=dtype))


@pytest.mark.seconds
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("recipe", "most"),
    [
        ({}, 60),  # 294 when each row was sent and changed alone
        ({"size": 32}, 60),
        ({"jitter_order": "random"}, 100),  # 746
        ({"rotation": 0.5, "solarize": 0.5, "extra_crops": 2}, 65),
        ({"extra_crops": 6, "extra_crop_size": 96}, 120),
        ({"mode": "fused"}, 40),  # 154
        ({"mode": "fused", "jitter_order": "random", "size": 32}, 40),
    ],
)
def test_a_step_of_views(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], most: int, grouped: bool
) -> None:
    folder = prepared / "data" / "prepared"
    monkeypatch.setattr(dataset, "host_buffer", pinned)
    with fake_cuda.fake_cuda() as device:
        groups = Groups(PAIRS) if grouped else None
        augmentation = Augmentation(**{"size": 224, **recipe})
        images, member = ShardedImages(folder / "train"), Member(0, 1, device)
        pixels, order = TrainingImages(images), Order(0, len(images))
        batches = Batches(pixels, read_card(folder), augmentation, 32, order, member, groups)
        with _disable_current_modes():  # decoding writes to real memory, in separate threads
            drawn = batches._drawn(batches.positions(0), 0)
        counts = count(lambda: batches._inputs(drawn))
        assert (counts.blocking_copies, counts.read_backs, counts.waits) == (0, 0, 0), counts.names
        assert counts.kernels <= most, counts.names
        asked = count(lambda: batches.marks(0))
        assert (asked.blocking_copies, asked.read_backs) == (0, 0), asked.names
