"""An export is read back as another store reads it, with every bit of every vector and unusual ids.

PostgreSQL itself loads the SQL script. It does not include the extension pgvector, so a text column replaces the
vectors, and the statements that need the extension are compared as text.
"""

import json
import subprocess
import sys
import tempfile
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
from tests.pipeline.runs.test_postgres import PASSWORD, Database, binary

ENCODER = "a" * 64
IDS = ["späte Ernte/c,\n.webp", "", "caf\udce9.jpg", "日本.png", "tab\tback\\slash\r.gif", "\\.", "quote'\".jpg", "\\N"]


@pytest.fixture
def index() -> Index:
    vectors = np.random.default_rng(0).standard_normal((len(IDS), 5)) * 10.0 ** np.arange(-20, 20, 5)[:, None]
    return Index.build(vectors.astype(np.float32), IDS, ENCODER, "inner_product")


@pytest.fixture
def postgres() -> Iterator[Database]:
    with tempfile.TemporaryDirectory(prefix="simclr-postgres-", ignore_cleanup_errors=True) as folder:
        server = Database(Path(folder))
        server.start()
        yield server
        server.stop()


def readable(ids: list[str]) -> list[str]:
    return [name.replace("\udce9", "\\udce9") for name in ids]


def same(found: Any, expected: NDArray[np.float32]) -> bool:
    return np.array_equal(np.array(found, np.float32), expected)


def test_postgresql_loads_the_script(index: Index, tmp_path: Path, postgres: Database) -> None:
    export_index(index, "pgvector", tmp_path / "my \"photos'.sql")
    script = (tmp_path / "my \"photos'.sql").read_text(encoding="utf-8")
    for only_pgvector, instead in (
        ("CREATE EXTENSION IF NOT EXISTS vector;\n", ""),
        (" embedding vector(5) NOT NULL", " embedding text NOT NULL"),
        ('CREATE INDEX ON "my ""photos\'" USING hnsw (embedding vector_ip_ops);\n', ""),
    ):
        assert script.count(only_pgvector) == 1
        script = script.replace(only_pgvector, instead)
    url = postgres.url.replace("+psycopg2", "")
    command = [binary("psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", "--file=-", url]
    subprocess.run(command, input=script.encode(), check=True, env={"PGPASSWORD": PASSWORD})
    connection = psycopg2.connect(url)
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
def test_the_column_has_a_type_that_hnsw_can_index(
    dim: int, metric: Any, dtype: Any, column: str, operators: str
) -> None:
    index = Index.build(np.ones((1, dim)), ["a"], ENCODER, metric, dtype)
    before, after = pgvector_statements(index, "photos")
    assert f'CREATE TABLE "photos" (id text PRIMARY KEY, embedding {column} NOT NULL);\n' in before
    assert f'\\.\nCREATE INDEX ON "photos" USING hnsw (embedding {operators});\nCOMMIT;\n' == after


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
    with pytest.raises(ArgumentError, match="store='milvus'; choose from pgvector, qdrant, lancedb"):
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
