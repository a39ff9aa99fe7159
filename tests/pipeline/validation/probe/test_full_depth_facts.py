"""The facts about an image with a number of channels, and what people see of it."""

import io
import json
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from deploy.images import tiff_channels
from deploy.images.full_depth import resize_samples
from deploy.images.preview import preview, summary
from pipeline.validation.probe import facts_cache
from pipeline.validation.probe.facts import Facts, read_facts
from pipeline.validation.probe.probe import probe, statistics, thumbnail
from pipeline.validation.probe.scan import Limits
from pipeline.validation.reasons import REASONS
from pipeline.validation.report.report import CONVERSIONS
from pipeline.validation.report.thumbnails import read as read_thumbnail

y, x = np.mgrid[:90, :120]
CELLS = np.stack([1000 + 10 * x, 2000 + 10 * y, 500 + x * y // 20, 9 * x, 9 * y], axis=2).astype(np.uint16)


def saved(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def facts_of(array: NDArray[Any], channels: int = 5, **options: Any) -> Facts:
    return read_facts(json.loads(json.dumps(probe(saved(array), channels=channels, **options))))


def test_an_array_has_the_facts_of_an_image() -> None:
    facts = facts_of(CELLS)
    assert (facts.decodes, facts.reason, facts.container, facts.format, facts.mode) == (
        True,
        None,
        "npy",
        "NPY",
        "uint16",
    )
    assert (facts.width, facts.height, facts.bit_depth, facts.frames, facts.trailing_bytes) == (120, 90, 16, 1, 0)
    assert facts.operations == []
    unknown = {name for name, value in vars(facts).items() if value is None}
    assert unknown == {"reason", "stream_fault"}


def test_statistics_are_those_of_the_summary_of_all_channels() -> None:
    picture = Image.fromarray(summary(CELLS))
    expected = statistics(picture, picture.convert("L"))
    facts = facts_of(CELLS)
    assert {name: getattr(facts, name) for name in expected} == expected
    large = np.kron(CELLS, np.ones((5, 5, 1), np.uint16))
    reduced = Image.fromarray(summary(resize_samples(large, (256, 192))))
    assert facts_of(large).luma_mean == statistics(reduced, reduced.convert("L"))["luma_mean"]


def test_the_same_pixels_are_the_same_however_they_are_stored() -> None:
    content = io.BytesIO()
    tifffile.imwrite(content, np.moveaxis(CELLS, 2, 0), photometric="minisblack", planarconfig="separate")
    tiff = Facts(**probe(content.getvalue(), channels=5))
    others = [facts_of(np.moveaxis(CELLS, 2, 0)), facts_of(CELLS[np.newaxis]), tiff]
    assert {one.pixel_hash for one in others} == {facts_of(CELLS).pixel_hash}
    assert facts_of(CELLS ^ np.uint16(1)).pixel_hash != facts_of(CELLS).pixel_hash, "the low byte counts"
    assert facts_of(CELLS.reshape(120, 90, 5)).pixel_hash != facts_of(CELLS).pixel_hash


@pytest.mark.parametrize("channel", range(5))
def test_an_image_is_blank_only_if_every_channel_is(channel: int) -> None:
    flat = np.full((64, 64, 5), 700, np.uint16)
    facts = facts_of(flat)
    assert (facts.red_std, facts.green_std, facts.blue_std) == (0, 0, 0)
    flat[10:30, 20:40, channel] = 703  # three of 65,536 levels
    facts = facts_of(flat)
    assert max(facts.red_std or 0, facts.green_std or 0, facts.blue_std or 0) > 20


def test_perceptual_hashes_see_the_later_channels() -> None:
    other = CELLS.copy()
    other[:, :, 3:] = np.kron(np.random.default_rng(0).integers(0, 60_000, (9, 12, 2)), np.ones((10, 10, 1)))
    assert facts_of(other).phash != facts_of(CELLS).phash
    assert facts_of(other).sketch != facts_of(CELLS).sketch
    assert facts_of(CELLS).hash_trusted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(CELLS[:, :, :3]), "wrong_channels"),
        (saved(CELLS.astype(np.float64)), "unsupported_depth"),
        (saved(CELLS)[:-1], "truncated"),
        (b"\x93NUMPY", "corrupt"),
        (b"", "empty_file"),
        (b"<html>", "not_an_image"),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    facts = Facts(**probe(data, channels=5))
    assert (facts.decodes, facts.reason) == (False, reason)
    assert reason in REASONS
    assert facts.message


def test_without_channels_an_array_has_the_facts_that_it_had() -> None:
    facts = Facts(**probe(saved(CELLS)))
    assert (facts.reason, facts.container) == ("not_an_image", "unknown")


def test_the_missing_extra_leads_to_a_rescan_and_other_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    tifffile.imwrite(content, CELLS, photometric="minisblack", planarconfig="contig")
    limits = Limits(50, 80, 2048, 20, channels=5)
    before = facts_cache.versions(limits.probed)
    monkeypatch.setattr(tiff_channels, "is_installed", lambda: False)
    assert Facts(**probe(content.getvalue(), channels=5)).message.endswith("; then `simclr quarantine rescan`")
    assert facts_cache.versions(limits.probed) != before
    plain = Limits(50, 80, 2048, 20).probed
    assert "channels" not in plain
    assert "tifffile" not in facts_cache.versions(plain), "the facts of earlier releases are still known"


def test_a_damaged_png_of_16_bits_is_found() -> None:
    content = io.BytesIO()
    Image.fromarray(CELLS[:, :, 0]).save(content, "PNG")
    data = bytearray(content.getvalue())
    assert Facts(**probe(bytes(data), channels=1)).operations == []
    data[data.index(b"IDAT") + 40] ^= 1
    assert Facts(**probe(bytes(data), channels=1)).reason in ("corrupt", "truncated")


def test_bytes_become_samples_by_an_operation_that_the_report_explains() -> None:
    facts = facts_of((CELLS >> 8).astype(np.uint8))
    assert (facts.operations, facts.mode, facts.bit_depth) == (["uint8_to_uint16"], "uint8", 8)
    assert "uint8_to_uint16" in CONVERSIONS


def test_a_thumbnail_is_a_preview() -> None:
    picture = read_thumbnail(thumbnail(saved(CELLS), channels=5))
    assert picture is not None
    assert picture.size == (80, 60)
    expected = Image.fromarray(preview(CELLS))
    expected.thumbnail((80, 80), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert thumbnail(saved(CELLS), channels=4) is None
