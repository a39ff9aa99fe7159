"""Embed the images of a command: those of a search at once, those of an index so that an interruption loses little."""

import csv
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import verify
from deploy.encoder import Encoder
from deploy.errors import ArgumentError, DeployError
from deploy.failure import notice, one_line, printable
from deploy.folders.folder import Options, embed_files
from deploy.folders.progress import Progress
from deploy.folders.unfinished import discard
from deploy.search.files import read_parts

Vectors = tuple[list[str], NDArray[Any]]  # paths and vectors [n, dim]

NO_DIRECTION = "all its features are zero, so it is similar to no image more than to another; leave it out"


def embed(encoder: Encoder, files: Sequence[str], failures: list[str]) -> Iterator[Vectors]:
    """Yield paths and vectors of the images that can be compared; report the others, append them to ``failures``."""
    for part in encoder.embed_iter(files, on_error="skip"):
        for position, error in part.errors.items():
            _report(part.sources[position], str(error), failures)
        yield _with_direction(
            [source for source, ok in zip(part.sources, part.ok, strict=True) if ok], part.vectors, failures
        )


@contextmanager
def embedded(
    encoder: Encoder, files: Sequence[str], out: Path, threads: int | None, failures: list[str]
) -> Iterator[Iterator[Vectors]]:
    """Yield paths and vectors for the index ``out``, like ``embed``, from a hidden folder next to it.

    The folder is kept if the process is killed or the block raises: the same call then continues. ``encoder`` is loaded
    with one thread.
    """
    for file, other in pairwise(sorted(files)):
        if file == other:
            raise ArgumentError(f"{file}: is given twice; give each image once")
    folder = out.parent / f".{out.name}.embeddings"
    discard(folder)
    if folder.exists() and not _is_of(folder, encoder, files):
        shutil.rmtree(folder)
    if not folder.exists():
        embed_files(encoder, files, folder, Options(threads=threads), Progress(len(files), sys.stderr), notice)
    with (folder / "failures.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as table:
        for row in csv.DictReader(table):
            _report(row["path"], row["message"], failures)
    yield (_with_direction(list(names), vectors, failures) for names, vectors, *_ in read_parts(folder)[1])
    shutil.rmtree(folder)


def _is_of(folder: Path, encoder: Encoder, files: Sequence[str]) -> bool:
    """Whether a folder of embeddings is whole, and of this encoder and these files."""
    try:
        verify(folder)
        card, _ = read_parts(folder)
    except DeployError:
        return False
    found: list[str] = []
    for name in ("ids.csv", "failures.csv"):
        with (folder / name).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            found += [row["path"] for row in csv.DictReader(file)]
    return card.encoder == encoder.id and sorted(found) == sorted(files)


def _with_direction(names: list[str], vectors: NDArray[Any], failures: list[str]) -> Vectors:
    zero: NDArray[np.bool_] = np.logical_not(vectors.any(axis=1))
    for row in np.flatnonzero(zero):
        _report(names[row], NO_DIRECTION, failures)
    return [name for name, left_out in zip(names, zero, strict=True) if not left_out], vectors[~zero]


def _report(path: str, message: str, failures: list[str]) -> None:
    failures.append(path)
    print(f"skipped {printable(path, None)}: {one_line(message)}", file=sys.stderr)
