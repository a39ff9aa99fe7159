"""Write embeddings in one of three formats: vectors.npy with ids.csv, vectors.csv, or vectors.parquet."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError, DeployError, require_choice

Format = Literal["npy", "csv", "parquet"]

ROW_GROUP = 4096
"""Rows that a reader of the Parquet file takes at a time."""


class Write(Protocol):
    def __call__(self, sources: Sequence[str], vectors: NDArray[np.float32]) -> None: ...


def check_format(format: Format, sources: Sequence[str]) -> None:
    """Check, before hours of work, that the result can be written.

    Raises:
        DeployError: pyarrow is not installed.
        ArgumentError: the format does not exist, or it cannot represent one of the paths.
    """
    require_choice(list(WRITERS), format=format)
    if format != "parquet":
        return
    _pyarrow()
    for source in sources:
        try:
            source.encode()
        except UnicodeEncodeError:
            raise ArgumentError(
                f"{source!r}: not UTF-8, which Parquet needs; rename it, or choose npy or csv"
            ) from None


@contextmanager
def table(path: Path, columns: Sequence[object]) -> Iterator[Any]:
    """Open a CSV file and write its header row. Paths that are not UTF-8 keep their bytes."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer


@contextmanager
def _npy(folder: Path, dim: int) -> Iterator[Write]:
    rows = 0
    with (folder / "vectors.npy").open("wb") as file, table(folder / "ids.csv", ["row", "path"]) as ids:

        def write(sources: Sequence[str], vectors: NDArray[np.float32]) -> None:
            nonlocal rows
            ids.writerows(enumerate(sources, rows))
            file.write(vectors.astype("<f4").tobytes())
            rows += len(vectors)

        _npy_header(file, 0, dim)
        yield write
        file.seek(0)
        _npy_header(file, rows, dim)  # numpy pads the header, so its length does not depend on the number of rows


def _npy_header(file: IO[bytes], rows: int, dim: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def _csv(folder: Path, dim: int) -> Iterator[Write]:
    with table(folder / "vectors.csv", ["path", *range(dim)]) as rows:

        def write(sources: Sequence[str], vectors: NDArray[np.float32]) -> None:
            # str of a float32 is the shortest decimal that reads back as the same number.
            rows.writerows([source, *map(str, row)] for source, row in zip(sources, vectors, strict=True))

        yield write


@contextmanager
def _parquet(folder: Path, dim: int) -> Iterator[Write]:
    pyarrow, parquet = _pyarrow()
    schema = pyarrow.schema([("path", pyarrow.string()), ("vector", pyarrow.list_(pyarrow.float32(), dim))])
    # Row groups have the same size regardless of how the rows arrive, so that equal rows give equal bytes.
    waiting = schema.empty_table()
    with parquet.ParquetWriter(folder / "vectors.parquet", schema, use_dictionary=False) as file:

        def write(sources: Sequence[str], vectors: NDArray[np.float32]) -> None:
            nonlocal waiting
            values = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1), pyarrow.float32())
            columns = [pyarrow.array(sources, pyarrow.string()), pyarrow.FixedSizeListArray.from_arrays(values, dim)]
            waiting = pyarrow.concat_tables([waiting, pyarrow.Table.from_arrays(columns, schema=schema)])
            while len(waiting) >= ROW_GROUP:
                file.write_table(waiting.slice(0, ROW_GROUP))
                waiting = waiting.slice(ROW_GROUP)

        yield write
        if len(waiting):
            file.write_table(waiting)


WRITERS: dict[Format, Callable[[Path, int], AbstractContextManager[Write]]] = {
    "npy": _npy,
    "csv": _csv,
    "parquet": _parquet,
}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DeployError("Parquet needs the package pyarrow: pip install pyarrow; or choose npy or csv") from None
    return pyarrow, pyarrow.parquet
