"""Parts are done once each, on threads of which each has its share of torch's; views are the same on any number."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.augmentation.processor_threads import share_out
from simclr_core.data.ragged import RaggedImages
from tests.simclr_core.pictures import pictures


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "items", "each"), [(2, 5, 1), (3, 2, 1), (4, 2, 2), (6, 4, 1)])
def test_each_item_is_done_once_on_a_thread_with_its_share(threads: int, items: int, each: int) -> None:
    torch.set_num_threads(threads)
    done: list[tuple[int, int, bool]] = []

    def work(item: int) -> None:
        done.append((item, torch.get_num_threads(), threading.current_thread() is threading.main_thread()))

    share_out(work, range(items))
    assert sorted(done) == [(item, each, False) for item in range(items)]
    assert torch.get_num_threads() == threads
    later: list[int] = []
    new = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert later == [threads]


@pytest.mark.parametrize(("threads", "items"), [(1, 3), (4, 1), (4, 0)])
def test_without_others_the_caller_does_it(threads: int, items: int) -> None:
    torch.set_num_threads(threads)
    done: list[tuple[int, int, bool]] = []
    share_out(
        lambda item: done.append(
            (item, torch.get_num_threads(), threading.current_thread() is threading.main_thread())
        ),
        range(items),
    )
    assert done == [(item, threads, True) for item in range(items)]


def test_an_error_is_raised_and_leaves_the_threads_as_they_were() -> None:
    torch.set_num_threads(2)

    def work(item: int) -> None:
        if item == 1:
            raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"):
        share_out(work, range(3))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize(("side", "size", "count"), [(40, 24, 500), (230, 200, 3), (230, 224, 3)])
def test_views_are_the_same_to_the_bit_on_any_number_of_threads(side: int, size: int, count: int, mode: str) -> None:
    augmentation = replace(Augmentation(size, grayscale=0.4), mode=mode, jitter_order="random")
    images = pictures(count, side, side)
    gray = images[:, :1].expand(-1, 3, -1, -1).contiguous()
    for batch in (RaggedImages.of(one, torch.full((count, 2), side)) for one in (images, gray)):
        view = ViewDraws(0, augmentation.draws(batch.sizes, 0, 0, np.arange(count), 0))
        views = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            views.append(augmentation.ragged_view(batch, view))
        assert torch.equal(views[1], views[0])
        assert torch.equal(views[2], views[0])
