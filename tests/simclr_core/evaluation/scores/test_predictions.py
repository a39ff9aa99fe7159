"""Each image with its path: rows, columns as documented, equal bytes, and an image whose path is not known."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.purge.holders import holds
from simclr_core.data.shards import ShardedImages
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.scores import predictions
from simclr_core.evaluation.scores.predictions import save, table

CLASSES = ("circle", "cross", "square", "stripes")


@pytest.fixture
def images(prepared: Path) -> EvaluationImages:
    return EvaluationImages.of(ShardedImages(prepared / "data" / "prepared" / "test"))


def test_each_image_has_its_path_its_class_and_the_answers(images: EvaluationImages, tmp_path: Path) -> None:
    shares = np.eye(4)[images.labels]
    shares[0] = (0.2, 0.5, 0.3, 0.0)
    key = bytes(images.keys[0]).hex()
    save(tmp_path, table("test", images, {key: "test/ö.png"}, {"knn": shares, "probe": shares}, CLASSES))
    first, second = pq.read_table(tmp_path / predictions.FILE).to_pylist()[:2]
    assert {name: first[name] for name in ("path", "sha256", "split", "label", "knn", "probe")} == {
        "path": "test/ö.png",
        "sha256": key,
        "split": "test",
        "label": CLASSES[images.labels[0]],
        "knn": "cross",
        "probe": "cross",
    }
    assert first["probe_answer"] == 0.5
    assert first["knn_label"] == pytest.approx(shares[0, images.labels[0]])
    assert second["path"] is None
    assert (second["probe"], second["probe_label"]) == (second["label"], 1.0)


def test_without_labels_there_are_columns_and_no_rows(images: EvaluationImages) -> None:
    full = table("test", images, {}, dict.fromkeys(("knn", "probe"), np.eye(4)[images.labels]), CLASSES)
    empty = table("test", images, {}, {}, ())
    assert (full.num_rows, empty.num_rows) == (40, 0)
    assert empty.schema == full.schema


def test_every_column_is_documented(images: EvaluationImages) -> None:
    names = table("test", images, {}, {}, ()).column_names
    page = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^    (\w+)  ", predictions.__doc__ or "", re.MULTILINE)) == set(names)
    documented = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert set(names) <= set(re.findall(r"`(\w+)`", " ".join(documented)))


def test_equal_rows_give_equal_bytes_and_a_purge_finds_them(images: EvaluationImages, tmp_path: Path) -> None:
    rows = table("test", images, {}, dict.fromkeys(("knn", "probe"), np.eye(4)[images.labels]), CLASSES)
    written = []
    for _ in range(2):
        save(tmp_path, rows)
        written.append((tmp_path / predictions.FILE).read_bytes())
    assert written[0] == written[1]
    assert holds(io.BytesIO(written[0]), [bytes(images.keys[3]).hex()])
    assert not holds(io.BytesIO(written[0]), ["0" * 64])
