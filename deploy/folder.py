"""Embed many image files into a directory that another program can read.

    vectors.npy ids.csv    float32 [rows, dim], and the path of each row     (format "npy")
    vectors.csv            path and values, one line an image                (format "csv")
    failures.csv           path, reason, message of the images without a row
    embedding.json         which bundle made them, and how many there are
    MANIFEST.sha256        `sha256sum -c` checks the directory

The directory appears when it is complete; an interrupted run leaves nothing.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import publish
from deploy.encoder import Encoder
from deploy.errors import ArgumentError

Format = Literal["npy", "csv"]
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The given files as they are, and those in the given folders with an image suffix, in order of their names.

    Links to folders are not followed.

    Raises:
        ArgumentError: a path does not exist, or there is no image at all.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
            files += sorted(file for file in found if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise ArgumentError(f"{path}: no such file or folder")
    if not files:
        raise ArgumentError(f"no image found; give files, or folders that hold {', '.join(SUFFIXES)}")
    return files


def embed_files(
    encoder: Encoder,
    files: Sequence[Path],
    out: Path,
    format: Format = "npy",
    normalize: bool = True,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the embeddings of ``files`` into the new directory ``out``; return how many files failed.

    ``progress`` is called after each batch with the number of files done.

    Raises:
        ArgumentError: ``out`` exists.
    """
    if out.exists():
        raise ArgumentError(f"{out}: exists already; choose another directory, or remove it")
    info = encoder.info
    rows = done = 0
    with publish(out) as work:
        with (
            _table(work / "failures.csv", ["path", "reason", "message"]) as failures,
            _WRITERS[format](work, info["dim"]) as write,
        ):
            for part in encoder.embed_iter(files, batch_size, normalize, on_error="skip"):
                write([source for source, ok in zip(part.sources, part.ok, strict=True) if ok], part.vectors)
                for position, error in part.errors.items():
                    failures.writerow([part.sources[position], error.reason, str(error)])
                rows, done = rows + len(part.vectors), done + len(part.sources)
                if progress:
                    progress(done)
        summary = {"bundle": info["id"], "name": info["name"], "dim": info["dim"], "normalized": normalize}
        summary |= {"rows": rows, "failures": done - rows}
        (work / "embedding.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return done - rows


class _Write(Protocol):
    def __call__(self, sources: Sequence[str], vectors: NDArray[np.float32]) -> None: ...


@contextmanager
def _npy(work: Path, dim: int) -> Iterator[_Write]:
    rows = 0
    with (work / "vectors.npy").open("wb") as file, _table(work / "ids.csv", ["row", "path"]) as ids:

        def write(sources: Sequence[str], vectors: NDArray[np.float32]) -> None:
            nonlocal rows
            ids.writerows(enumerate(sources, rows))
            file.write(vectors.astype("<f4").tobytes())
            rows += len(vectors)

        _npy_header(file, 0, dim)
        yield write
        file.seek(0)
        _npy_header(file, rows, dim)  # numpy pads it, so that its length does not depend on the number of rows


@contextmanager
def _csv(work: Path, dim: int) -> Iterator[_Write]:
    with _table(work / "vectors.csv", ["path", *range(dim)]) as table:

        def write(sources: Sequence[str], vectors: NDArray[np.float32]) -> None:
            # str of a float32 is its shortest decimal that reads back as the same number.
            table.writerows([source, *map(str, row)] for source, row in zip(sources, vectors, strict=True))

        yield write


_WRITERS: dict[Format, Callable[[Path, int], Any]] = {"npy": _npy, "csv": _csv}


def _npy_header(file: IO[bytes], rows: int, dim: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def _table(path: Path, columns: Sequence[object]) -> Iterator[Any]:
    """A CSV file. Paths that are not UTF-8 keep their bytes."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer
