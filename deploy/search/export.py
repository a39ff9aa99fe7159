"""An index in the form that other vector stores load.

    pgvector   an SQL script for `psql -f`: a table named as the file, its rows by COPY, and an HNSW index; then
               SELECT id FROM photos ORDER BY embedding <=> '[...]' LIMIT 10;        (<#> for inner products)
    qdrant     JSON, one request a line: the body of `PUT /collections/NAME/points`
    lancedb    Parquet, for `db.create_table(NAME, pyarrow.parquet.read_table(FILE))`; DuckDB and polars read it, too

Each says which encoder made the vectors. Bytes of an id that are no UTF-8 appear as `\\udc..`.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from deploy.errors import ArgumentError, MissingExtraError
from deploy.search.files import blocks
from deploy.search.index import Index

Store = Literal["pgvector", "qdrant", "lancedb"]
STORES: tuple[Store, ...] = get_args(Store)

POINTS = 256  # in a request to Qdrant, which takes 32 MB
FULL_DIM, HALF_DIM = 2000, 4000  # that pgvector's HNSW takes: as `vector` of 4 bytes, and as `halfvec` of 2 bytes


def export_index(index: Index, store: Store, file: Path) -> None:
    """Write all vectors of ``index`` into the new ``file``, which appears when it is complete.

    Raises:
        ArgumentError: no such store, the file exists, or the store cannot index vectors of that dimension.
        MissingExtraError: "lancedb" needs pyarrow, which comes with it.
    """
    if store not in STORES:
        raise ArgumentError(f"store={store!r}; choose {', '.join(STORES)}")
    if file.exists():
        raise ArgumentError(f"{file}: exists already; choose another name, or remove it")
    partial = file.with_name(f".{file.name}.partial")
    try:
        _WRITERS[store](index, partial, file.stem)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def pgvector_statements(index: Index, table: str) -> tuple[str, str]:
    """What creates the table up to its rows, and what follows them.

    Raises:
        ArgumentError: the vectors have more dimensions than an HNSW index takes.
    """
    if index.dim > HALF_DIM:
        raise ArgumentError(f"vectors of {index.dim} dimensions; pgvector indexes up to {HALF_DIM:,}")
    kind = "vector" if index.dim <= FULL_DIM and index.info["dtype"] == "float32" else "halfvec"
    distance = "cosine" if index.info["metric"] == "cosine" else "ip"
    name, about = _quoted(table, '"'), _quoted(json.dumps(index.info), "'")
    before = (
        "BEGIN;\n"
        "CREATE EXTENSION IF NOT EXISTS vector;\n"
        f"CREATE TABLE {name} (id text PRIMARY KEY, embedding {kind}({index.dim}) NOT NULL);\n"
        f"COMMENT ON TABLE {name} IS {about};\n"
        f"COPY {name} (id, embedding) FROM STDIN WITH (ENCODING 'UTF8');\n"
    )
    return before, f"\\.\nCREATE INDEX ON {name} USING hnsw (embedding {kind}_{distance}_ops);\nCOMMIT;\n"


def _pgvector(index: Index, file: Path, name: str) -> None:
    before, after = pgvector_statements(index, name)
    decimals = ",".join(["%.9g"] * index.dim)  # nine digits are enough for every float32
    with file.open("w", encoding="utf-8", newline="\n") as script:
        script.write(before)
        for identity, vector in _rows(index):
            script.write(f"{_escaped(identity)}\t[{decimals % tuple(vector)}]\n")
        script.write(after)


def _qdrant(index: Index, file: Path, _: str) -> None:
    # A point is named by its encoder and id, so that what is sent twice is there once.
    points = (
        {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{index.encoder}/{identity}")),
            "vector": [float(f"{value:.9g}") for value in vector],
            "payload": {"id": identity, "encoder": index.encoder},
        }
        for identity, vector in _rows(index)
    )
    with file.open("w", encoding="utf-8", newline="\n") as requests:
        while request := list(islice(points, POINTS)):
            requests.write(json.dumps({"points": request}, ensure_ascii=False, separators=(",", ":")) + "\n")


def _lancedb(index: Index, file: Path, _: str) -> None:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise MissingExtraError("a Parquet file needs pyarrow; install it with `pip install pyarrow`") from error
    value = pyarrow.from_numpy_dtype(index.info["dtype"])
    fields = [("id", pyarrow.string()), ("vector", pyarrow.list_(value, index.dim))]
    about = {name: str(value) for name, value in index.info.items()}
    schema = pyarrow.schema(fields, metadata=about)
    with ParquetWriter(file, schema, use_dictionary=False) as writer:
        for names, vectors in blocks(index.ids, index.vectors):
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), index.dim)
            table = [pyarrow.array(map(_text, names), pyarrow.string()), column]
            writer.write_table(pyarrow.Table.from_arrays(table, schema=schema))


_WRITERS: dict[Store, Callable[[Index, Path, str], None]] = {
    "pgvector": _pgvector,
    "qdrant": _qdrant,
    "lancedb": _lancedb,
}


def _rows(index: Index) -> Iterator[tuple[str, list[Any]]]:
    for names, vectors in blocks(index.ids, index.vectors):
        for name, vector in zip(names, vectors.astype(np.float64).tolist(), strict=True):
            yield _text(name), vector


def _text(identity: str) -> str:
    return identity.encode("utf-8", "backslashreplace").decode()


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, 2 * quote) + quote


def _escaped(text: str) -> str:
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text
