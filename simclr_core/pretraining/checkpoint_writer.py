"""Checkpoints off the training thread: training pays for a copy in memory, a background thread for hashes and the disk.

    with CheckpointWriter(folder) as writer:
        for step in ...:
            writer.save(TrainingState(...))

One write is in flight at most. A save that is due before the last one is on the disk waits for it, rather than being
left out: so an interruption never costs more than the steps of two intervals, whatever the disk does.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from deploy.failpoint import failpoint
from simclr_core.errors import CheckpointError
from simclr_core.pretraining.checkpoint import OPTIONAL, TrainingState, save_training
from simclr_core.stopwatch import mark_stream

NOTICEABLE = 1.0  # seconds of waiting for the disk that are worth a word

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Saves the states of one run, in order. Leaving it waits for the disk."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._write: Future[None] | None = None
        self._buffers: dict[str, Tensor] = {}
        self._has_waited = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except CheckpointError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # what ended the training is reported by its own exception
        finally:
            self._thread.shutdown()

    def save(self, state: TrainingState) -> None:
        """Copy ``state`` and return; it is on the disk at the latest when ``wait`` or the next ``save`` returns.

        Raises:
            CheckpointError: the save *before* this one has failed.
        """
        started = time.monotonic()
        self.wait()
        waited = time.monotonic() - started
        if waited > NOTICEABLE and not self._has_waited:
            self._has_waited = True
            logger.warning(
                "training waited %.1f s for the checkpoint before this one to reach the disk; "
                "raise pretrain.checkpoint_every_steps, or take a faster disk",
                waited,
            )
        copy = self._copied(state)
        copied = mark_stream() if any(one.is_cuda for one in state.network.values()) else None
        failpoint("checkpoint.copied")
        self._write = self._thread.submit(self._save, copy, copied)

    def wait(self) -> None:
        """Until everything given to ``save`` is on the disk.

        Raises:
            CheckpointError: it could not be written; the checkpoints before it are untouched.
        """
        write, self._write = self._write, None
        if write is not None:
            write.result()

    def _copied(self, state: TrainingState) -> TrainingState:
        """The state as it is now: the next step changes its tensors in place, and continues filling its lists."""
        copies: dict[str, Any] = {"history": list(state.history), "unfinished": list(state.unfinished)}
        for field in ("network", "optimizer", *OPTIONAL):
            copies[field] = self._copied_tensors(field, getattr(state, field))
        return replace(state, **copies)

    def _save(self, state: TrainingState, copied: torch.cuda.Event | None) -> None:
        """In the background, which alone waits for a GPU: the next step changes what is copied after the copy, for both
        are on one stream."""
        if copied is not None:
            copied.synchronize()
        save_training(self._run, state)

    def _copied_tensors(self, field: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Into buffers that are kept: fresh memory costs a page fault every 4 KiB, more than the copy itself. They have
        the layout of the tensor, since the rows and columns of a file can be put in order in the background."""
        copies = {}
        for name, tensor in tensors.items():
            key = f"{field}.{name}"
            buffer = self._buffers.get(key)
            if buffer is None or buffer.shape != tensor.shape:
                buffer = self._buffers[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            copies[name] = buffer.copy_(tensor, non_blocking=True)
        return copies
