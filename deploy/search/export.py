"""Export an index in a format that another vector store loads.

    pgvector   an SQL script for `psql -f`: a table named after the file, its rows by COPY, and an HNSW index; then
               SELECT id FROM photos ORDER BY embedding <=> '[...]' LIMIT 10;        (<#> for inner products)
    qdrant     JSON, one request per line: the body of `PUT /collections/NAME/points`
    lancedb    Parquet, for `db.create_table(NAME, pyarrow.parquet.read_table(FILE))`; DuckDB and polars also read it

Each file names the encoder that made the vectors. Bytes of an id that are not UTF-8 appear as `\\udc..`.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from deploy.errors import ArgumentError, MissingExtraError, as_path, require_choice
from deploy.search.index import Index

Store = Literal["pgvector", "qdrant", "lancedb"]
STORES: tuple[Store, ...] = get_args(Store)

POINTS = 256  # in a request to Qdrant, which accepts up to 32 MB
FULL_DIM, HALF_DIM = 2000, 4000  # limits of pgvector's HNSW for `vector` (4 bytes a value) and `halfvec` (2 bytes)


def export_index(index: Index, store: Store, file: str | Path) -> None:
    """Write all vectors of ``index`` into the new ``file``, which appears when it is complete.

    Args:
        store: "pgvector", "qdrant" or "lancedb".

    Raises:
        ArgumentError: the store is unknown, the file exists, the store cannot index vectors of that dimension, or an
            argument has a wrong type.
        MissingExtraError: "lancedb" needs pyarrow, which LanceDB installs.
    """
    require_choice(STORES, store=store)
    if not isinstance(index, Index):
        raise ArgumentError(f"index={index!r:.80}; give an Index, as `Index.open` returns")
    file = as_path(file=file)
    if file.exists():
        raise ArgumentError(f"{file}: already exists; choose another name, or remove it")
    partial = file.with_name(f".{file.name}.partial")
    try:
        _WRITERS[store](index, partial, file.stem)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def pgvector_statements(index: Index, table: str) -> tuple[str, str]:
    """Return the SQL before the rows of the table, and the SQL after them.

    Raises:
        ArgumentError: the vectors have more dimensions than an HNSW index supports.
    """
    if index.dim > HALF_DIM:
        raise ArgumentError(f"vectors of {index.dim} dimensions; pgvector can index up to {HALF_DIM:,}")
    kind = "vector" if index.dim <= FULL_DIM and index.info["dtype"] == "float32" else "halfvec"
    distance = "cosine" if index.info["metric"] == "cosine" else "ip"
    name, about = _quote(table, '"'), _quote(json.dumps(index.info), "'")
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
    decimals = ",".join(["%.9g"] * index.dim)  # nine digits represent every float32 exactly
    with file.open("w", encoding="utf-8", newline="\n") as script:
        script.write(before)
        for identity, vector in _rows(index):
            script.write(f"{_escape(identity)}\t[{decimals % tuple(vector)}]\n")
        script.write(after)


def _qdrant(index: Index, file: Path, _: str) -> None:
    # A point's id is derived from encoder and image id, so that sending it twice does not duplicate it.
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
        for names, vectors, _metadata in index.parts():
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), index.dim)
            table = [pyarrow.array(map(_text, names), pyarrow.string()), column]
            writer.write_table(pyarrow.Table.from_arrays(table, schema=schema))


_WRITERS: dict[Store, Callable[[Index, Path, str], None]] = {
    "pgvector": _pgvector,
    "qdrant": _qdrant,
    "lancedb": _lancedb,
}


def _rows(index: Index) -> Iterator[tuple[str, list[Any]]]:
    for names, vectors, _ in index.parts():
        for name, vector in zip(names, vectors.astype(np.float64).tolist(), strict=True):
            yield _text(name), vector


def _text(identity: str) -> str:
    return identity.encode("utf-8", "backslashreplace").decode()


def _quote(text: str, quote: str) -> str:
    return quote + text.replace(quote, 2 * quote) + quote


def _escape(text: str) -> str:
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text
