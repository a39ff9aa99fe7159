"""Prepare turns exactly the accepted images into canonical shards, and refuses data that broke the contract."""

import hashlib
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from deploy.images.preprocess import LOSSES, Preprocessing, canonicalize, decode, open_image
from pipeline.config import PrepareConfig
from pipeline.errors import GateError
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import batches, read_bytes, read_occurrences, read_tar
from pipeline.prepare import parts, prepare
from pipeline.prepare.canonical import StoredForm
from pipeline.reports import Outcome
from pipeline.validation.groups import write as write_groups
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data import label_sets
from simclr_core.data.shards import ShardedImages, read_card, stored_pixels
from tests.conftest import CLASSES, draw, encode
from tests.pipeline.conftest import put
from tests.reports import VALIDATION

COLUMNS = ("sha256", "batch", "path", "split", "label", "operations", "width", "height")


def accept(
    workspace: Workspace, passed: bool = True, without: set[str] = frozenset(), background: str = "white"
) -> list[dict[str, Any]]:
    """What validate would have written, had it accepted everything but the paths in ``without``."""
    seen = {
        sha256: first for batch in batches(workspace.raw) for sha256, (first, *_) in read_occurrences(batch).items()
    }
    rows = []
    for batch, sha256, data in read_bytes(workspace.raw):
        if seen[sha256].path not in without:
            image, operations = canonicalize(open_image(data), background)
            facts = {"operations": operations, "width": image.width, "height": image.height}
            rows.append({"sha256": sha256, "batch": batch, **asdict(seen[sha256]), **facts})
    write_accepted(workspace, rows)
    workspace.reports.mkdir(exist_ok=True)
    check = Outcome("decode_ok", "files", "critical", passed, 0.5, "0.99", None, [], None)
    reports.write(workspace.root, replace(VALIDATION, passed=passed, expectations=(check,)))
    return rows


def write_accepted(workspace: Workspace, rows: list[dict[str, Any]]) -> None:
    workspace.manifest.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()) for name in ("sha256", "batch", "path", "split", "label")])
    schema = schema.append(pa.field("operations", pa.list_(pa.string())))
    for name in ("width", "height"):
        schema = schema.append(pa.field(name, pa.int32()))
    pq.write_table(pa.Table.from_pylist(rows, schema), workspace.manifest / "accepted.parquet")
    pq.write_table(pa.Table.from_pylist([], schema), workspace.manifest / "quarantine.parquet")


def test_small_images_keep_every_pixel_and_their_label(filled: Workspace) -> None:
    ingest(filled)
    rows = {row["sha256"]: row for row in accept(filled)}
    prepare.run(filled)
    raw = {sha256: data for _, sha256, data in read_bytes(filled.raw)}
    seen = set()
    for split in ("train", "test"):
        images = ShardedImages(filled.prepared / split)
        for position in range(len(images)):
            row = rows[images.key(position)]
            label = -1 if row["label"] is None else CLASSES.index(row["label"])
            assert (row["split"], label) == (split, images.labels[position])
            np.testing.assert_array_equal(decode(images.read(position)), decode(raw[images.key(position)]))
            seen.add(images.key(position))
    assert seen == rows.keys()
    card = read_card(filled.prepared)
    assert card.images == {"train": 32, "train_labelled": 8, "test": 8}
    assert (card.classes, card.min_side, card.max_side, card.short_side) == (CLASSES, 16, 16, 256)


def test_groups_are_numbered_among_the_training_images(filled: Workspace) -> None:
    """By name; what has no other image of its group there has none, and test images have none at all."""
    ingest(filled)
    rows = accept(filled)
    prepare.run(filled)
    without = {path.relative_to(filled.prepared): path.read_bytes() for path in filled.prepared.rglob("*.*")}
    train, test = ([row["sha256"] for row in rows if row["split"] == split] for split in ("train", "test"))
    groups = {train[0]: "b", train[1]: "a", train[2]: "b", train[3]: "a", train[4]: "alone", train[5]: "torn"}
    table = pl.DataFrame({"sha256": [*groups, test[0]], "group": [*groups.values(), "torn"]})
    write_groups(filled.manifest, table)
    digest = read_card(filled.prepared).digest
    prepare.run(filled)
    images = ShardedImages(filled.prepared / "train")
    assert images.groups is not None
    numbers = {images.key(position): number for position, number in enumerate(images.groups.tolist()) if number >= 0}
    assert numbers == {train[0]: 1, train[1]: 0, train[2]: 1, train[3]: 0}
    assert ShardedImages(filled.prepared / "test").groups is None
    assert read_card(filled.prepared).digest != digest
    (filled.manifest / "groups.parquet").unlink()
    prepare.run(filled)
    assert without == {path.relative_to(filled.prepared): path.read_bytes() for path in filled.prepared.rglob("*.*")}


def test_an_image_may_have_several_labels_one_or_none_of_the_classes(filled: Workspace) -> None:
    ingest(filled)
    rows = accept(filled)
    prepare.run(filled)
    digest = read_card(filled.prepared).digest
    train = [row for row in rows if row["split"] == "train" and row["label"] is not None]
    sets = [["cross", "circle"], ["stripes"], []]
    for row, labels in zip(train, sets, strict=False):
        row["label"] = label_sets.join(labels)
    write_accepted(filled, [{name: value for name, value in row.items() if name in COLUMNS} for row in rows])
    prepare.run(filled)
    card = read_card(filled.prepared)
    assert (card.multi_label, card.classes, card.images["train_labelled"]) == (True, CLASSES, 8)
    assert card.digest != digest
    for split in ("train", "test"):
        images = ShardedImages(filled.prepared / split)
        assert images.label_sets is not None
        assert set(images.labels.tolist()) == {-1}
        by_key = {row["sha256"]: row["label"] for row in rows}
        for position, found in enumerate(images.label_sets.tolist()):
            label = by_key[images.key(position)]
            names = None if label is None else set(label_sets.members(label))
            assert found == ([-1] * 4 if names is None else [int(name in names) for name in CLASSES])


def test_labels_of_which_none_names_a_class_leave_all_images_unlabeled(filled: Workspace) -> None:
    ingest(filled)
    rows = accept(filled)
    said = [row | {"label": row["label"] and label_sets.NONE_OF_THEM} for row in rows]
    write_accepted(filled, [{name: value for name, value in row.items() if name in COLUMNS} for row in said])
    prepare.run(filled)
    card = read_card(filled.prepared)
    assert (card.multi_label, card.classes) == (False, ())


def test_mean_and_deviation_are_those_of_the_training_pixels(filled: Workspace) -> None:
    ingest(filled)
    accept(filled)
    prepare.run(filled)
    images = ShardedImages(filled.prepared / "train")
    pixels = np.stack([decode(images.read(position)) for position in range(len(images))]).reshape(-1, 3) / 255
    card = read_card(filled.prepared)
    np.testing.assert_allclose(card.mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(card.std, pixels.std(axis=0), atol=1e-6)


def test_large_images_are_turned_upright_and_bounded(workspace: Workspace) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.kron(np.asarray(draw(2, 1, side=32)), np.ones((20, 30, 1), np.uint8)))  # 960 x 640
    put(workspace, "unlabeled/photo.jpg", encode(photo, "JPEG", exif=exif, quality=95))
    ingest(workspace)
    accept(workspace)
    prepare.run(workspace)
    image = Image.open(io.BytesIO(ShardedImages(workspace.prepared / "train").read(0)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 384))
    assert not image.getexif()
    expected = np.asarray(photo.rotate(-90, expand=True).resize((256, 384)), np.float64)
    assert np.abs(np.asarray(image, np.float64) - expected).mean() < 6


def set_prepare(workspace: Workspace, **values: object) -> None:
    params = yaml.safe_load(workspace.params.read_text())
    params["prepare"] |= values
    workspace.params.write_text(yaml.safe_dump(params))


def test_a_long_transparent_drawing_is_stored_whole_on_the_background(workspace: Workspace) -> None:
    drawing = Image.new("RGBA", (60, 20))
    drawing.paste("red", (0, 0, 60, 10))
    put(workspace, "unlabeled/drawing.png", encode(drawing))
    ingest(workspace)
    accept(workspace, background="black")
    set_prepare(workspace, background="black", letterbox=True, short_side=32)
    prepare.run(workspace)
    pixels = decode(ShardedImages(workspace.prepared / "train").read(0))
    assert pixels.shape == (32, 32, 3)
    assert pixels[11:15].tolist() == [[[255, 0, 0]] * 32] * 4  # of 60 x 20 pixels 32 x 11 are left, below 10 rows
    assert not pixels[:10].any()
    assert not pixels[18:].any()
    card = read_card(workspace.prepared)
    assert (card.background, card.letterbox) == ("black", True)
    assert card.mean[0] == pytest.approx(pixels[..., 0].mean() / 255, abs=1e-6)


def test_another_background_is_another_data_set(workspace: Workspace) -> None:
    put(workspace, "unlabeled/opaque.png", encode(draw(0, 0)))
    ingest(workspace)
    accept(workspace)
    digests = set()
    for values in ({"background": "white", "letterbox": False}, {"letterbox": True}, {"background": "mean"}):
        set_prepare(workspace, **values)
        prepare.run(workspace)
        digests.add(read_card(workspace.prepared).digest)
    assert len(digests) == 3


def test_images_that_were_judged_on_another_background_are_refused(workspace: Workspace) -> None:
    drawing = Image.new("RGBA", (60, 20))
    drawing.paste("red", (0, 0, 60, 10))
    put(workspace, "unlabeled/drawing.png", encode(drawing))
    ingest(workspace)
    accept(workspace)
    set_prepare(workspace, background="black")
    with pytest.raises(GateError, match="was validated as alpha_on_white, is read as alpha_on_black; restore"):
        prepare.run(workspace)


def test_a_letterbox_counts_the_longer_side_as_large_enough(workspace: Workspace) -> None:
    put(workspace, "unlabeled/long.png", encode(Image.effect_noise((60, 20), 50).convert("RGB")))
    ingest(workspace)
    accept(workspace)
    params = yaml.safe_load(workspace.params.read_text())
    params["pretrain"]["image_size"] = 40
    workspace.params.write_text(yaml.safe_dump(params))
    with pytest.raises(GateError, match="fewer than 40 pixels on their shorter side"):
        prepare.run(workspace)
    set_prepare(workspace, letterbox=True)
    prepare.run(workspace)


def test_some_files_are_kept_as_they_came(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(filled)
    rows = accept(filled)
    raw = {sha256: data for _, sha256, data in read_bytes(filled.raw)}
    prepare.run(filled)
    expected = {row["sha256"] for row in rows if row["split"] == "test"}
    expected |= {*sorted(row["sha256"] for row in rows if row["split"] == "train")[:16]}
    kept = {sha256: data for path in (filled.prepared / "originals").glob("*.tar") for sha256, data in read_tar(path)}
    assert kept == {sha256: raw[sha256] for sha256 in expected}
    monkeypatch.setattr(parts, "ORIGINAL_BYTES", 2 * 1500)
    prepare.run(filled)
    kept = {sha256: data for path in (filled.prepared / "originals").glob("*.tar") for sha256, data in read_tar(path)}
    assert kept
    assert sum(map(len, kept.values())) <= 3000


@pytest.mark.parametrize(("size", "most", "refused"), [(16, 0.0, False), (17, 0.5, True), (17, 1.0, False)])
def test_images_that_would_be_enlarged_stop_the_preparation(
    filled: Workspace, size: int, most: float, refused: bool
) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["prepare"]["max_enlarged"] = most
    params["pretrain"]["image_size"] = size
    filled.params.write_text(yaml.safe_dump(params))
    ingest(filled)
    accept(filled)
    if not refused:
        prepare.run(filled)
        return
    with pytest.raises(
        GateError, match=r"32 of 32 training images .* fewer than 17 .* set pretrain.image_size to 16 or"
    ):
        prepare.run(filled)
    assert not filled.prepared.exists()


def test_quarantined_images_stay_out(filled: Workspace) -> None:
    ingest(filled)
    accept(filled, without={"unlabeled/camera 0/000.png"})
    prepare.run(filled)
    images = ShardedImages(filled.prepared / "train")
    data = (filled.inbox / "unlabeled" / "camera 0" / "000.png").read_bytes()
    assert len(images) == 31
    assert hashlib.sha256(data).hexdigest() not in {images.key(position) for position in range(31)}


def test_running_twice_gives_the_same_bytes(filled: Workspace) -> None:
    ingest(filled)
    accept(filled)

    def written() -> dict[Path, bytes]:
        prepare.run(filled)
        return {path: path.read_bytes() for path in filled.prepared.rglob("*") if path.is_file()}

    assert written() == written()


def test_a_broken_contract_stops_the_preparation(filled: Workspace) -> None:
    ingest(filled)
    with pytest.raises(GateError, match=r"validation\.json does not exist; .*`simclr run --select validate` writes it"):
        prepare.run(filled)
    accept(filled, passed=False)
    with pytest.raises(
        GateError,
        match=r'"decode_ok" does not hold: found 0.5, required: 0.99; look at reports/validation.html; correct',
    ):
        prepare.run(filled)
    assert not filled.prepared.exists()


def test_without_a_training_image_nothing_is_written(workspace: Workspace) -> None:
    put(workspace, "test/circle/1.png", encode(draw(0, 1)))
    ingest(workspace)
    accept(workspace)
    with pytest.raises(GateError, match="no training image was accepted"):
        prepare.run(workspace)
    assert not workspace.prepared.exists()


def test_losses_that_an_older_validation_did_not_note_change_nothing(workspace: Workspace) -> None:
    gray = np.asarray(draw(0, 1).convert("L"))
    deep, damaged = io.BytesIO(), io.BytesIO()
    Image.fromarray(gray.astype(np.uint16) * 16).save(deep, "TIFF")
    draw(0, 2).save(damaged, "PNG", icc_profile=b"nonsense")
    put(workspace, "unlabeled/deep.tif", deep.getvalue())
    put(workspace, "unlabeled/damaged.png", damaged.getvalue())
    ingest(workspace)
    rows = accept(workspace)
    assert {name for row in rows for name in row["operations"]} >= {"uses_12_of_16_bits", "icc_ignored"}
    older = [{**row, "operations": [name for name in row["operations"] if name not in LOSSES]} for row in rows]
    write_accepted(workspace, older)
    prepare.run(workspace)
    assert read_card(workspace.prepared).images["train"] == 2


@pytest.mark.seconds
def test_what_is_refused_since_it_was_validated_says_what_to_do(workspace: Workspace) -> None:
    signed = io.BytesIO()
    Image.fromarray(np.asarray(draw(0, 1).convert("L"))).save(signed, "TIFF", tiffinfo={339: 2})
    put(workspace, "unlabeled/0.png", encode(draw(0, 2)))
    ingest(workspace)
    rows = accept(workspace)
    put(workspace, "unlabeled/signed.tif", signed.getvalue())
    ingest(workspace)
    ((batch, sha256, _),) = [one for one in read_bytes(workspace.raw) if one[1] != rows[0]["sha256"]]
    write_accepted(workspace, [*rows, {**rows[0], "sha256": sha256, "batch": batch, "operations": ["gray_to_rgb"]}])
    with pytest.raises(
        GateError, match=r"is refused now: a TIFF of signed samples of 8 bits is not supported; .*restore"
    ):
        prepare.run(workspace)


def test_only_what_was_validated_is_prepared(filled: Workspace) -> None:
    ingest(filled)
    rows = accept(filled)
    write_accepted(filled, [{**row, "operations": ["gray_to_rgb"]} for row in rows])
    with pytest.raises(GateError, match="was validated as gray_to_rgb, is read as the pixels as they are; restore it"):
        prepare.run(filled)
    write_accepted(filled, [*rows, {**rows[0], "sha256": "0" * 64}])
    with pytest.raises(GateError, match="data/raw lacks 1 accepted train image; restore it"):
        prepare.run(filled)
    write_accepted(filled, rows)
    tar = next(filled.raw.glob("*/*.tar"))
    damaged = bytearray(tar.read_bytes())
    damaged[512 + 60] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(damaged)
    with pytest.raises(GateError, match="differs from the bytes that were ingested"):
        prepare.run(filled)
    assert not filled.prepared.exists()


DEEP = [np.random.default_rng(i).integers(300, 4000, (40, 50 + i, 5), np.uint16) for i in range(4)]


def put_deep(workspace: Workspace) -> None:
    for number, pixels in enumerate(DEEP):
        content = io.BytesIO()
        np.save(content, pixels if number % 2 else np.moveaxis(pixels, 2, 0))
        put(workspace, f"{'test/circle' if number == 3 else 'unlabeled'}/{number}.npy", content.getvalue())


def accept_deep(workspace: Workspace) -> None:
    seen = {
        sha256: first for batch in batches(workspace.raw) for sha256, (first, *_) in read_occurrences(batch).items()
    }
    facts = {"operations": [], "width": 50, "height": 40}
    rows = [
        {"sha256": sha256, "batch": batch, **asdict(seen[sha256]), **facts}
        for batch, sha256, _ in read_bytes(workspace.raw)
    ]
    write_accepted(workspace, rows)
    workspace.reports.mkdir(exist_ok=True)
    reports.write(workspace.root, VALIDATION)


def test_images_with_channels_are_stored_whole_and_measured_by_channel(workspace: Workspace) -> None:
    set_prepare(workspace, channels=5, short_side=40, max_enlarged=1.0)
    put_deep(workspace)
    ingest(workspace)
    accept_deep(workspace)
    prepare.run(workspace)
    stored = [
        stored_pixels(ShardedImages(workspace.prepared / split), position)
        for split in ("train", "test")
        for position in range(len(ShardedImages(workspace.prepared / split)))
    ]
    assert sorted(one.tobytes() for one in stored) == sorted(one.tobytes() for one in DEEP)
    pixels = np.concatenate([one.reshape(-1, 5) for one in DEEP[:3]]) / 65_535
    card = read_card(workspace.prepared)
    assert (card.channels, card.min_side, card.max_side) == (5, 40, 52)
    np.testing.assert_allclose(card.mean, pixels.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(card.std, pixels.std(axis=0), atol=1e-9)


def test_larger_images_with_channels_are_reduced_as_serving_does(workspace: Workspace) -> None:
    set_prepare(workspace, channels=5, short_side=32, max_enlarged=1.0)
    put_deep(workspace)
    ingest(workspace)
    accept_deep(workspace)
    prepare.run(workspace)
    preprocessing = Preprocessing(32, 32, channels=5)
    images = ShardedImages(workspace.prepared / "test")
    found = preprocessing.apply(stored_pixels(images, 0)).astype(int)
    assert np.abs(found - preprocessing.apply(DEEP[3])).max() <= 2


def test_a_number_of_channels_changes_the_digest_and_none_does_not() -> None:
    none, five = (
        prepare.digest([("a", "train", None)], {}, StoredForm(PrepareConfig(channels=channels), 32))
        for channels in (None, 5)
    )
    assert none == hashlib.sha256(b"a train null\n32 bilinear 95\n").hexdigest(), "as in earlier releases"
    assert none != five
    with pytest.raises(ValueError, match="set letterbox to false"):
        PrepareConfig(channels=5, letterbox=True)
