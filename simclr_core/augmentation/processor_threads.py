"""Work in parts on the threads that torch may use: each thread takes whole parts, rather than a share of each.

torch divides a single operation among threads, which meet at its end, and a part of the views has tens of small ones.
On a busy machine, threads that wait at each of these meetings cost a multiple of the work.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Item = TypeVar("Item")


def share_out(work: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Do ``work`` for each item; what it raises for the first of them is raised here.

    Where there are fewer items than threads, each has a share of the threads. One alone is done by the caller.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers <= 1:
        for item in items:
            work(item)
        return
    try:
        with ThreadPoolExecutor(workers, "views", partial(torch.set_num_threads, threads // workers)) as pool:
            for _ in pool.map(work, items):
                pass
    finally:
        torch.set_num_threads(threads)  # it is also what threads begin with that are not there yet
