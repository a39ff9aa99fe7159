"""Whether a batch can be shared among processes: known before any of them starts. Loads no torch."""

from pathlib import Path

from deploy.plural import counted
from simclr_core.data.shards import read_card
from simclr_core.errors import BatchSizeError
from simclr_core.machine.settings import PROCESSES

LEAST = 2  # images of a process: one alone has nothing to be compared with


def is_shareable(batch_size: int, processes: int) -> bool:
    """Whether each of the processes gets an equal part of a batch, of two images or more where there are several."""
    return processes == 1 or (batch_size % processes == 0 and batch_size >= LEAST * processes)


def require_shares(batch_size: int, images: int, processes: int, key: str = "pretrain.batch_size") -> None:
    """Each of the ``processes`` gets an equal part, of two images or more, of a batch of the training ``images``; its
    size is ``key`` of params.yaml.

    Raises:
        BatchSizeError: that is not possible.
    """
    if processes > 1 and LEAST * processes > images:
        raise BatchSizeError(
            f"{processes} processes for {counted(images, 'training image')}, and each process needs {LEAST} in every "
            f"step; set {PROCESSES} to at most {max(1, images // LEAST)}, or ingest more images"
        )
    if batch_size > images:
        raise BatchSizeError(
            f"{key} is {batch_size}, but there are {images} training images; "
            "give at most this many, or ingest more images"
        )
    if batch_size % processes:
        raise BatchSizeError(
            f"{key} is {batch_size}, which {processes} processes cannot share equally; "
            f"give a multiple of {processes}, or set {PROCESSES}"
        )
    if batch_size < LEAST * processes:
        raise BatchSizeError(
            f"{key} is {batch_size}, which leaves each of {processes} processes one image and "
            f"nothing to compare it with; give {LEAST * processes} or more, or set {PROCESSES}"
        )


def require_shares_in(workspace: Path, batch_size: int, processes: int, key: str = "pretrain.batch_size") -> None:
    """``require_shares`` of the prepared images of a workspace.

    Raises:
        DatasetError: there are none; BatchSizeError among them.
    """
    require_shares(batch_size, read_card(workspace / "data" / "prepared").images["train"], processes, key)
