"""What a GPU makes ahead of its use, while it computes: on another stream, a step ahead."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from simclr_core.data.dataset import prefetch
from simclr_core.data.transfer import choose

Item = TypeVar("Item")
Made = TypeVar("Made", Tensor, Tensor | tuple[Tensor, ...])


def made_ahead(items: Iterable[Item], make: Callable[[Item], Made], device: torch.device) -> Iterator[Made]:
    """``make(item)`` of each item; on a GPU a background thread starts it one item ahead, on a stream next to the one
    that takes it, which waits for it on the device alone. (It has never run on a GPU.)"""
    if device.type != "cuda":
        yield from map(make, items)
        return
    taking = torch.cuda.current_stream(device)
    making = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    making.wait_stream(taking)  # for what ``make`` uses and was made there

    def start(item: Item) -> tuple[Made, torch.cuda.Event]:
        with torch.cuda.stream(making):
            made = make(item)
            return made, making.record_event()

    for made, event in prefetch(map(start, items), 1, partial(choose, device)):
        taking.wait_event(event)
        for one in (made,) if isinstance(made, Tensor) else made:
            one.record_stream(taking)  # its memory is free once that stream is done with it, too
        yield made
