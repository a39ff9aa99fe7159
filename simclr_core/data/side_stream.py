"""What a GPU makes ahead of its use, while it computes: on another stream, a step ahead."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from simclr_core.data.dataset import prefetch
from simclr_core.data.transfer import choose

Item = TypeVar("Item")


def made_ahead(items: Iterable[Item], make: Callable[[Item], Tensor], device: torch.device) -> Iterator[Tensor]:
    """``make(item)`` of each item; on a GPU a background thread starts it one item ahead, on a stream next to the one
    that takes it, which waits for it on the device alone. (It has never run on a GPU.)"""
    if device.type != "cuda":
        yield from map(make, items)
        return
    taking = torch.cuda.current_stream(device)
    making = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    making.wait_stream(taking)  # for what ``make`` uses and was made there

    def start(item: Item) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(making):
            made = make(item)
            return made, making.record_event()

    for made, event in prefetch(map(start, items), 1, partial(choose, device)):
        taking.wait_event(event)
        made.record_stream(taking)  # its memory is free once that stream is done with it, too
        yield made
