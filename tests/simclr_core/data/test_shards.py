"""Shards read back what was written, image by image, and plain ``tar`` reads them too."""

import hashlib
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simclr_core.data.shard_writing import Shard, write_index, write_shards
from simclr_core.data.shards import (
    INDEX,
    LARGE_INDEX,
    PLACED,
    DatasetCard,
    Sample,
    ShardedImages,
    read_card,
    write_card,
)
from simclr_core.errors import DatasetError


def samples(count: int, first: int = 0) -> list[Sample]:
    contents = [bytes([number % 251]) * (100 + 37 * number) for number in range(first, first + count)]
    return [
        Sample(hashlib.sha256(data).hexdigest(), "png", data, label=number % 3 - 1)
        for number, data in enumerate(contents, first)
    ]


def test_every_image_reads_back_by_position(tmp_path: Path) -> None:
    written = samples(40)
    assert write_shards(tmp_path / "train", [written[:25], written[25:]], max_bytes=10_000) == 40
    images = ShardedImages(tmp_path / "train")
    assert len(images) == 40
    assert [images.read(position) for position in range(40)] == [sample.data for sample in written]
    assert [images.key(position) for position in range(40)] == [sample.key for sample in written]
    assert images.labels.tolist() == [sample.label for sample in written]


def test_index_takes_sixteen_bytes_an_image() -> None:
    assert INDEX.itemsize == 16


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    written = samples(60)
    write_shards(tmp_path / "train", [written], max_bytes=10_000)
    images = ShardedImages(tmp_path / "train")
    positions = np.random.default_rng(0).integers(0, 60, 2000).tolist()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(images.read, positions)) == [written[position].data for position in positions]


def test_a_new_batch_only_adds_shards(tmp_path: Path) -> None:
    old, new = samples(20), samples(10, first=20)
    write_shards(tmp_path / "before", [old], max_bytes=5_000)
    write_shards(tmp_path / "after", [old, new], max_bytes=5_000)
    before = {path.name for path in (tmp_path / "before").glob("*.tar")}
    after = {path.name for path in (tmp_path / "after").glob("*.tar")}
    assert before < after


def test_tar_reads_the_shards_and_they_are_reproducible(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shards(tmp_path / name, [samples(5)], max_bytes=10**6)
    (shard,) = (tmp_path / "one").glob("*.tar")
    assert shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()
    assert hashlib.sha256(shard.read_bytes()).hexdigest().startswith(shard.stem)
    listing = subprocess.run(["tar", "-tf", shard], capture_output=True, text=True, check=True).stdout.split()
    assert listing == [f"{sample.key}.png" for sample in samples(5)]
    with tarfile.open(shard) as tar:
        assert {member.mtime for member in tar} == {0}


def test_an_image_larger_than_a_shard_gets_a_separate_one(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [samples(3)], max_bytes=1)
    assert len(list((tmp_path / "train").glob("*.tar"))) == 3


def test_an_empty_split_has_no_images(tmp_path: Path) -> None:
    assert write_shards(tmp_path / "test", [], max_bytes=1000) == 0
    images = ShardedImages(tmp_path / "test")
    assert (len(images), images.labels.shape, images.keys.shape) == (0, (0,), (0, 32))


def test_more_shards_or_classes_than_two_bytes_count_take_a_wider_index(tmp_path: Path) -> None:
    placed = np.zeros(3, PLACED)
    placed["key"] = [[number] * 32 for number in range(3)]
    labels, none = np.array([0, 32_768, -1]), np.full(3, -1, np.int32)
    for name, last, kind in (("small", 32_767, INDEX), ("classes", 32_768, LARGE_INDEX)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.tar").touch()
        write_index(tmp_path / name, [Shard("one.tar", placed)], labels.clip(max=last), none)
        images = ShardedImages(tmp_path / name)
        assert np.load(tmp_path / name / "index.npy").dtype == kind
        assert images.labels.tolist() == [0, last, -1]
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "one.tar").touch()
    shards = [Shard("one.tar", placed[:0])] * 65_536 + [Shard("one.tar", placed)]
    write_index(tmp_path / "many", shards, labels.clip(max=0), none)
    assert np.load(tmp_path / "many" / "index.npy")["shard"].tolist() == [65_536] * 3


def test_sets_of_labels_are_rows_of_a_table(tmp_path: Path) -> None:
    sets = [(0, 2), None, (), (1,)]
    written = [replace(one, label=-1, labels=labels) for one, labels in zip(samples(4), sets, strict=True)]
    write_shards(tmp_path / "train", [written[:3], written[3:]], max_bytes=10**6, classes=3)
    images = ShardedImages(tmp_path / "train")
    assert images.label_sets is not None
    assert images.label_sets.tolist() == [[1, 0, 1], [-1, -1, -1], [0, 0, 0], [0, 1, 0]]
    assert images.labels.tolist() == [-1] * 4
    np.save(tmp_path / "train" / "labels.npy", images.label_sets[:2])
    with pytest.raises(DatasetError, match=r"index\.npy and labels\.npy do not belong together"):
        ShardedImages(tmp_path / "train")
    np.save(tmp_path / "train" / "labels.npy", np.zeros(4, np.int8))
    with pytest.raises(DatasetError, match=r"labels\.npy is int8 \[4\], not int8 \[images, classes\]"):
        ShardedImages(tmp_path / "train")


def test_one_label_each_leaves_the_bytes_of_earlier_versions(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [samples(4)], max_bytes=10**6)
    assert not (tmp_path / "train" / "labels.npy").exists()
    card = DatasetCard(("a",), (0.5,) * 3, (0.1,) * 3, 8, 8, {"train": 4}, "0" * 64)
    write_card(tmp_path, card)
    assert "multi_label" not in (tmp_path / "dataset.json").read_text()
    write_card(tmp_path, replace(card, multi_label=True))
    assert read_card(tmp_path).multi_label


def test_a_truncated_shard_names_itself_and_the_fix(tmp_path: Path) -> None:
    write_shards(tmp_path / "train", [samples(5)], max_bytes=10**6)
    (shard,) = (tmp_path / "train").glob("*.tar")
    shard.write_bytes(shard.read_bytes()[:3000])
    images = ShardedImages(tmp_path / "train")
    assert images.read(0) == samples(5)[0].data
    with pytest.raises(DatasetError, match=rf"{shard.name}: ends inside image .*dvc checkout"):
        images.read(4)


def test_missing_or_mixed_up_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"shards\.json: does not exist; run `simclr run --select prepare`"):
        ShardedImages(tmp_path)
    with pytest.raises(DatasetError, match=r"dataset\.json: does not exist"):
        read_card(tmp_path)
    write_shards(tmp_path / "train", [samples(5)], max_bytes=10**6)
    np.save(tmp_path / "train" / "keys.npy", np.zeros((4, 32), np.uint8))
    with pytest.raises(DatasetError, match="do not belong together"):
        ShardedImages(tmp_path / "train")


def test_card_round_trip(prepared: Path) -> None:
    card = read_card(prepared / "data" / "prepared")
    assert card.classes == ("circle", "cross", "square", "stripes")
    assert card.images == {"train": 96, "train_labelled": 48, "test": 40}
    assert isinstance(card.mean, tuple)


def test_a_card_has_a_value_for_each_channel_and_one_of_rgb_is_as_before(tmp_path: Path) -> None:
    plain = DatasetCard((), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 8, 9, {}, "digest")
    write_card(tmp_path, plain)
    assert "channels" not in (tmp_path / "dataset.json").read_text(), "the bytes are those of earlier releases"
    assert read_card(tmp_path) == plain
    deep = replace(plain, mean=(0.1,) * 5, std=(0.2,) * 5, channels=5)
    write_card(tmp_path, deep)
    assert read_card(tmp_path) == deep
    write_card(tmp_path, replace(deep, channels=4))
    with pytest.raises(DatasetError, match="5 and 5 values for 4 channels"):
        read_card(tmp_path)
