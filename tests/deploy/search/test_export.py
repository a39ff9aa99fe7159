"""An export is read back as another store reads it, with every bit of every vector and unusual ids.

PostgreSQL with pgvector loads the SQL script and finds the neighbors.
"""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from deploy.errors import ArgumentError, MissingExtraError
from deploy.search.export import POINTS, export_index, pgvector_statements
from deploy.search.index import Index
from tests.postgres import Database, running_database

ENCODER = "a" * 64
IDS = ["späte Ernte/c,\n.webp", "", "caf\udce9.jpg", "日本.png", "tab\tback\\slash\r.gif", "\\.", "quote'\".jpg", "\\N"]


@pytest.fixture
def index() -> Index:
    vectors = np.random.default_rng(0).standard_normal((len(IDS), 5)) * 10.0 ** np.arange(-20, 20, 5)[:, None]
    return Index.build(vectors.astype(np.float32), IDS, ENCODER, "inner_product")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with running_database() as server:
        yield server


def readable(ids: list[str]) -> list[str]:
    return [name.replace("\udce9", "\\udce9") for name in ids]


def same(found: Any, expected: NDArray[np.float32]) -> bool:
    return np.array_equal(np.array(found, np.float32), expected)


def load(postgres: Database, script: Path) -> None:
    command = [postgres.programs / "psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", f"--file={script}"]
    subprocess.run([*command, postgres.address], check=True, env={})


@pytest.mark.seconds
def test_postgresql_loads_the_script(index: Index, tmp_path: Path, postgres: Database) -> None:
    script = tmp_path / "my \"photos'.sql"
    export_index(index, "pgvector", script)
    load(postgres, script)
    connection = psycopg2.connect(postgres.address)
    with connection.cursor() as cursor:
        cursor.execute('SELECT id, embedding FROM "my ""photos\'"')
        rows = dict(cursor.fetchall())
        cursor.execute("""SELECT obj_description('"my ""photos''"'::regclass)""")
        (about,) = cursor.fetchone() or ()
    connection.close()
    assert sorted(rows) == sorted(readable(IDS))
    assert same([json.loads(rows[name]) for name in readable(IDS)], index.vectors)
    assert json.loads(about) == index.info


@pytest.mark.parametrize(
    ("dim", "metric", "dtype", "column", "operators"),
    [
        (2000, "cosine", "float32", "vector(2000)", "vector_cosine_ops"),
        (2000, "inner_product", "float32", "vector(2000)", "vector_ip_ops"),
        (2001, "cosine", "float32", "halfvec(2001)", "halfvec_cosine_ops"),
        (8, "cosine", "float16", "halfvec(8)", "halfvec_cosine_ops"),
    ],
)
def test_pgvector_finds_the_neighbors_by_hnsw(
    dim: int, metric: Any, dtype: Any, column: str, operators: str, tmp_path: Path, postgres: Database
) -> None:
    index = Index.build(
        np.random.default_rng(1).standard_normal((60, dim)), [str(row) for row in range(60)], ENCODER, metric, dtype
    )
    table = f"photos_{dim}_{metric}_{dtype}"
    before, after = pgvector_statements(index, table)
    assert f'CREATE TABLE "{table}" (id text PRIMARY KEY, embedding {column} NOT NULL);\n' in before
    assert f'\\.\nCREATE INDEX ON "{table}" USING hnsw (embedding {operators});\nCOMMIT;\n' == after
    export_index(index, "pgvector", tmp_path / f"{table}.sql")
    load(postgres, tmp_path / f"{table}.sql")
    query = np.random.default_rng(2).standard_normal(dim)
    operator = "<=>" if metric == "cosine" else "<#>"
    nearest = f"SELECT id FROM {table} ORDER BY embedding {operator} '{json.dumps(query.tolist())}' LIMIT 5"
    connection = psycopg2.connect(postgres.address)
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off; SET hnsw.ef_search = 100")  # more than there are: exact
        cursor.execute(f"EXPLAIN {nearest}")
        assert f"Index Scan using {table}_embedding_idx" in str(cursor.fetchall())
        cursor.execute(nearest)
        found = [identity for (identity,) in cursor.fetchall()]
    connection.close()
    scores = index.vectors.astype(np.float64) @ query
    assert found == [index.ids[row] for row in np.argsort(-scores)[:5]]


def test_pgvector_indexes_no_more_than_4000_dimensions(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="vectors of 4001 dimensions; pgvector can index up to 4,000"):
        export_index(Index.build(np.ones((1, 4001)), ["a"], ENCODER), "pgvector", tmp_path / "a.sql")
    assert list(tmp_path.iterdir()) == []


def test_qdrant_gets_bodies_of_requests(index: Index, tmp_path: Path) -> None:
    export_index(index, "qdrant", tmp_path / "points.jsonl")
    lines = (tmp_path / "points.jsonl").read_text(encoding="utf-8").splitlines()
    (points,) = [json.loads(line)["points"] for line in lines]
    assert [point["payload"] for point in points] == [{"id": name, "encoder": ENCODER} for name in readable(IDS)]
    assert same([point["vector"] for point in points], index.vectors)
    assert len({uuid.UUID(point["id"]) for point in points}) == len(IDS)
    export_index(index, "qdrant", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "points.jsonl").read_bytes()


def test_qdrant_gets_many_points_in_several_requests(tmp_path: Path) -> None:
    count = 2 * POINTS + 1
    index = Index.build(np.ones((count, 2)), [str(row) for row in range(count)], ENCODER)
    export_index(index, "qdrant", tmp_path / "points.jsonl")
    requests = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert [len(request["points"]) for request in requests] == [POINTS, POINTS, 1]
    assert [point["payload"]["id"] for request in requests for point in request["points"]] == list(index.ids)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lancedb_reads_parquet(dtype: Any, tmp_path: Path) -> None:
    index = Index.build(np.random.default_rng(0).standard_normal((len(IDS), 5)), IDS, ENCODER, dtype=dtype)
    export_index(index, "lancedb", tmp_path / "photos.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "photos.parquet")
    value = pyarrow.from_numpy_dtype(dtype)
    assert table.schema.field("vector").type == pyarrow.list_(value, 5), "the type that LanceDB treats as a vector"
    assert table["id"].to_pylist() == readable(IDS)
    assert same(table["vector"].to_pylist(), index.vectors.astype(np.float32))
    assert table.schema.metadata[b"encoder"].decode() == ENCODER


def test_an_empty_index_can_be_exported(tmp_path: Path) -> None:
    index = Index.build(np.empty((0, 3)), [], ENCODER)
    for store in ("pgvector", "qdrant", "lancedb"):
        export_index(index, store, tmp_path / store)  # type: ignore[arg-type]
    assert (tmp_path / "qdrant").read_bytes() == b""
    assert len(pyarrow.parquet.read_table(tmp_path / "lancedb")) == 0


def test_a_file_is_never_replaced_and_appears_when_it_is_complete(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.sql").write_text("mine")
    with pytest.raises(ArgumentError, match="already exists"):
        export_index(index, "pgvector", tmp_path / "a.sql")
    with pytest.raises(ArgumentError, match="store='milvus'; choose pgvector, qdrant or lancedb"):
        export_index(index, "milvus", tmp_path / "b")  # type: ignore[arg-type]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploy.search.export._escape", full)
    with pytest.raises(OSError, match="No space left"):
        export_index(index, "pgvector", tmp_path / "b.sql")
    assert [path.name for path in tmp_path.iterdir()] == ["a.sql"]
    assert (tmp_path / "a.sql").read_text() == "mine"


def test_parquet_without_pyarrow(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        export_index(index, "lancedb", tmp_path / "photos.parquet")
    assert list(tmp_path.iterdir()) == []
