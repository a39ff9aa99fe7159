"""The order of the batches is that of their numbers, wherever a table is sorted by them or asked for the newest."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.config import EmbeddingDriftConfig
from pipeline.embedding_drift import choose
from pipeline.ingest import raw
from pipeline.validation import manifest
from pipeline.validation.drift.drift import judge
from pipeline.validation.evaluate import tables
from pipeline.validation.report.charts import distributions
from pipeline.validation.report.report import gallery
from pipeline.validation.tables import age, newest
from tests.pipeline.validation.corpus.manifests import row, table

NAMES = ["x", "0001", "0002-new", "0002-newer", "0010", "9998", "9999", "10000", "10001-x", "100000"]


def test_ages_are_those_of_the_raw_batches() -> None:
    assert sorted(set(NAMES), key=raw.age) == NAMES
    names = pl.DataFrame({"ingest_batch": NAMES[::-1]})
    assert names.sort(age())["ingest_batch"].to_list() == NAMES
    assert newest(names) == "100000"


@pytest.fixture
def long_history() -> pl.DataFrame:
    """One bad image and some good ones in each batch; more of them in the newest."""
    names = ["9996", "9997", "9998", "9999", "10000"]
    rows = [
        row(f"{name}/{number}.jpg", *(["corrupt"] if number == 0 else []), batch=name, ingest_batch=name)
        for name in names
        for number in range(20 if name == "10000" else 4)
    ]
    return table(rows).sort(age(), "path", "file_id")


def test_the_newest_of_more_than_9999_batches_is_found(long_history: pl.DataFrame, tmp_path: Path) -> None:
    found = judge(long_history, enabled=True, min_images=10, distance=1.0, auroc=0.9, accepted=[])
    assert (found.batch, found.batch_images, found.reference_images) == ("10000", 19, 12)
    assert tables(long_history, found)["batches"].collect()["times_usual"].to_list() == [5.0]
    assert gallery(long_history)["corrupt"][0]["ingest_batch"] == "10000"
    assert {len(one.outlines) for one in distributions(long_history)} == {2}
    manifest.write(tmp_path, [long_history])
    assert manifest.read(tmp_path).equals(long_history)
    accepted = pl.read_parquet(tmp_path / "accepted.parquet")["batch"].unique(maintain_order=True)
    assert accepted.to_list() == ["9996", "9997", "9998", "9999", "10000"]
    sample = choose(tmp_path, EmbeddingDriftConfig())
    assert (sample.batch, len(sample.new), len(sample.reference)) == ("10000", 19, 12)
