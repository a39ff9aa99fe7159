"""The finished parts of an unfinished embedding, in a hidden folder next to the place of the result.

A part holds the vectors and failures of consecutive files, and is either complete or absent. The folder is named by a
digest of the request, and the process that writes it holds its lock.
"""

import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.artifact import MANIFEST, write_atomically
from deploy.encoder import Embeddings
from deploy.errors import ArgumentError, CorruptArtifactError
from deploy.failpoint import failpoint
from deploy.lock import acquire

PART_FILES, PART_SECONDS = 4096, 10.0
"""A part is written after this many files or seconds, whichever comes first; a kill loses at most one part."""


@contextmanager
def work_folder(out: Path, digest: str, notice: Callable[[str], None]) -> Iterator[Path]:
    """Yield the folder for the parts of this request, and keep it if the block raises.

    Folders of other requests for ``out`` are removed.

    Raises:
        ArgumentError: another process is writing ``out``.
    """
    work = out.parent / f"{_prefix(out)}{digest[:16]}"
    for other in _work_folders(out):
        if other != work:
            with _locked(other, out):
                shutil.rmtree(other)
            notice("the images, the bundle or the options differ from those of an interrupted run; starting over")
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work, out):
        try:
            yield work
            shutil.rmtree(work)
        finally:
            if work.exists() and not any(work.iterdir()):
                work.rmdir()


def discard(out: Path) -> None:
    """Remove the parts of a run that was killed right after it had completed ``out``."""
    for work in _work_folders(out) if (out / MANIFEST).exists() else []:
        with _locked(work, out):
            shutil.rmtree(work)


def write_parts(
    work: Path, batches: Iterable[Embeddings], done: int, total: int, progress: Callable[[int], None]
) -> None:
    """Write the embeddings of files ``done`` to ``total`` into ``work``, one part after another."""
    start, waiting, began = done, list[Embeddings](), time.monotonic()
    for batch in batches:
        waiting.append(batch)
        done += len(batch.sources)
        progress(done)
        if done - start >= PART_FILES or done == total or time.monotonic() - began >= PART_SECONDS:
            failpoint("folder.part")
            _write_part(work / f"{start:012d}-{done:012d}.npz", waiting)
            start, waiting, began = done, [], time.monotonic()


def _write_part(path: Path, batches: Sequence[Embeddings]) -> None:
    failures = [[error.reason, str(error)] for batch in batches for _, error in sorted(batch.errors.items())]
    content = io.BytesIO()
    np.savez(
        content,
        vectors=np.concatenate([batch.vectors for batch in batches]),
        ok=np.concatenate([batch.ok for batch in batches]),
        failures=np.frombuffer(json.dumps(failures).encode(), np.uint8),
    )
    write_atomically(path, content.getvalue())


def finished_parts(work: Path) -> list[range]:
    """Return the positions of the files in each part, from the first file up to the first gap."""
    parts, done = list[range](), 0
    for path in sorted(work.glob("*.npz")):
        part = range(*map(int, path.stem.split("-")))
        if part.start == done:
            parts.append(part)
            done = part.stop
    return parts


def read_part(work: Path, part: range) -> Any:
    """Return vectors float32 [rows, dim], ok bool [files], and [reason, message] of each failure.

    Raises:
        CorruptArtifactError: the part cannot be read.
    """
    path = work / f"{part.start:012d}-{part.stop:012d}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["vectors"], arrays["ok"], json.loads(arrays["failures"].tobytes())
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptArtifactError(f"{path}: damaged ({error}); remove it and run the same command again") from None


def _work_folders(out: Path) -> list[Path]:
    if not out.parent.is_dir():
        return []
    return [path for path in out.parent.iterdir() if path.name.startswith(_prefix(out))]


def _prefix(out: Path) -> str:
    return f".{out.name}.unfinished-"


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not acquire(descriptor):
            raise ArgumentError(f"{out}: another process is writing it; wait, or choose another directory")
        yield
    finally:
        os.close(descriptor)
