"""What was prepared is not prepared again, and what is taken instead equals what preparing from nothing gives."""

import os
from pathlib import Path

import pytest
import yaml

from pipeline.dvc import cache
from pipeline.ingest.ingest import ingest
from pipeline.prepare import kept_parts, parts, prepare
from pipeline.workspace import Workspace
from simclr_core.data.shards import ShardedImages
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.prepare.test_prepare import COLUMNS, accept, write_accepted


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The contents that were decoded."""
    seen: list[str] = []
    convert = parts.convert

    def watched(contents: object, operations: object, recipe: object) -> object:
        for sample, pixels in convert(contents, operations, recipe):
            seen.append(sample.key)
            yield sample, pixels

    monkeypatch.setattr(parts, "convert", watched)
    return seen


def prepared(workspace: Workspace) -> dict[Path, bytes]:
    """What is prepared, and has come into DVC's cache."""
    prepare.run(workspace)
    files = {path.relative_to(workspace.prepared): path for path in workspace.prepared.rglob("*") if path.is_file()}
    for path in files.values():
        md5 = cache.digest(cache.read(path))
        cache.link(path, objects(workspace) / md5[:2] / md5[2:])
    return {name: path.read_bytes() for name, path in files.items()}


def objects(workspace: Workspace) -> Path:
    return workspace.root / ".dvc" / "cache" / "files" / "md5"


def largest_shard(workspace: Workspace) -> Path:
    """In the cache: the one of 32 training images."""
    [shard] = (workspace.prepared / "train").glob("*.tar")
    return next(path for path in objects(workspace).rglob("*") if path.is_file() and path.samefile(shard))


def from_nothing(workspace: Workspace) -> dict[Path, bytes]:
    (workspace.scratch / "prepared").rename(workspace.scratch / "aside")
    try:
        return prepared(workspace)
    finally:
        (workspace.scratch / "aside").rename(workspace.scratch / "prepared.before")


def add_batch(workspace: Workspace) -> None:
    put(workspace, "unlabeled/more/0.png", encode(draw(0, 900)))
    put(workspace, "test/cross/more.png", encode(draw(1, 901)))
    ingest(workspace)
    accept(workspace)


def test_only_a_new_batch_is_decoded(filled: Workspace, decoded: list[str]) -> None:
    ingest(filled)
    accept(filled)
    prepared(filled)
    assert len(decoded) == 40
    assert prepared(filled)
    assert len(decoded) == 40
    add_batch(filled)
    after = prepared(filled)
    assert len(decoded) == 42
    assert after == from_nothing(filled)
    assert len(decoded) == 84


def test_other_labels_need_no_pixel(filled: Workspace, decoded: list[str]) -> None:
    ingest(filled)
    rows = accept(filled)
    before = prepared(filled)
    given = next(row for row in rows if row["split"] == "train" and row["label"] is None)
    given["label"] = "cross"
    write_accepted(filled, [{name: row[name] for name in COLUMNS} for row in rows])
    after = prepared(filled)
    changed = {path.name for path in after if after[path] != before[path]}
    assert changed == {"index.npy", "dataset.json", "MANIFEST.sha256"}
    assert len(decoded) == 40
    assert after == from_nothing(filled)


def test_what_is_refused_now_leaves_its_shard(filled: Workspace, decoded: list[str]) -> None:
    ingest(filled)
    accept(filled)
    prepared(filled)
    accept(filled, without={"unlabeled/camera 0/000.png"})
    after = prepared(filled)
    assert len(decoded) == 40 + 31
    assert after == from_nothing(filled)


@pytest.mark.parametrize(("name", "value"), [("short_side", 20), ("jpeg_quality", 60), ("shard_megabytes", 2)])
def test_other_parameters_prepare_everything_again(
    filled: Workspace, decoded: list[str], name: str, value: int
) -> None:
    ingest(filled)
    accept(filled)
    prepared(filled)
    params = yaml.safe_load(filled.params.read_text())
    params["prepare"] |= {name: value, "max_enlarged": 1.0}
    filled.params.write_text(yaml.safe_dump(params))
    after = prepared(filled)
    assert len(decoded) == 80
    assert after == from_nothing(filled)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "describe"])
def test_a_damaged_part_is_made_again(filled: Workspace, decoded: list[str], damage: str) -> None:
    ingest(filled)
    accept(filled)
    before = prepared(filled)
    shard = largest_shard(filled)
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    if damage == "describe":
        for path in (filled.scratch / "prepared").glob("*/part.json"):
            path.write_text(path.read_text().replace('"sums"', '"sum"'))
    else:
        shard.unlink()
    if damage in ("flip", "cut"):
        shard.write_bytes(data if damage == "flip" else data[:-512])
    assert prepared(filled) == before
    assert len(decoded) == 40 + (40 if damage == "describe" else 32)


def test_an_object_is_read_once_to_be_trusted(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    sha256 = kept_parts.sha256
    monkeypatch.setattr(kept_parts, "sha256", lambda path: read.append(path) or sha256(path))
    ingest(filled)
    accept(filled)
    before = prepared(filled)
    for reads in (2, 2):
        assert prepared(filled) == before
        assert len(read) == reads
    os.utime(largest_shard(filled), (0, 0))
    assert prepared(filled) == before
    assert len(read) == 3


def test_shards_are_on_the_disk_once_and_what_is_unused_is_forgotten(filled: Workspace) -> None:
    ingest(filled)
    accept(filled)
    prepared(filled)
    shard = largest_shard(filled)
    prepared(filled)
    assert (filled.prepared / "train" / next((filled.prepared / "train").glob("*.tar"))).samefile(shard)
    add_batch(filled)
    prepared(filled)
    assert len(list((filled.scratch / "prepared").iterdir())) == 4
    accept(filled, without={"unlabeled/more/0.png"})
    prepared(filled)
    assert len(list((filled.scratch / "prepared").iterdir())) == 3


def test_bytes_that_a_later_batch_holds_are_found(filled: Workspace) -> None:
    """As after the removal of the batch that held them first, while another one still tells of them."""
    ingest(filled)
    rows = accept(filled)
    add_batch(filled)
    moved = accept(filled)
    later = {row["sha256"] for row in moved} - {row["sha256"] for row in rows}
    first = rows[0]["batch"]
    for row in moved:
        row["batch"] = first if row["sha256"] in later else row["batch"]
    write_accepted(filled, [{name: row[name] for name in COLUMNS} for row in moved])
    prepare.run(filled)
    assert sorted(key for split in ("train", "test") for key in keys(filled, split)) == sorted(
        row["sha256"] for row in moved
    )


def keys(workspace: Workspace, split: str) -> list[str]:
    images = ShardedImages(workspace.prepared / split)
    return [images.key(position) for position in range(len(images))]
