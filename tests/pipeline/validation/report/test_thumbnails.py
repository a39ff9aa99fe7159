import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.validation.probe.probe import THUMBNAIL_SIDE, thumbnail
from pipeline.validation.reasons import REASONS
from pipeline.validation.report.thumbnails import BLANK, COLUMNS, SHOWN, choose, contact_sheet, jpeg, read
from tests.pipeline.validation.corpus.corpus import encoded, picture


def sheet(*tiles: tuple[str, Image.Image | None], title: str = "title") -> Image.Image:
    return Image.open(io.BytesIO(contact_sheet(title, tiles))).convert("RGB")


def pixels(size: Any, count: int) -> dict[str, Any]:
    return {"size": size, "rgb": base64.b64encode(bytes(count)).decode()}


def test_thumbnails_arrive_unchanged() -> None:
    image = read(thumbnail(encoded(picture(1, 40, 30), "PNG")) | {"size": [40, 30]})
    assert image is not None
    assert image.tobytes() == picture(1, 40, 30).tobytes()
    drawn = Image.open(io.BytesIO(base64.b64decode(jpeg(image))))
    assert (drawn.format, drawn.size) == ("JPEG", (40, 30))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        {},
        {"size": [2, 2]},
        {"size": [2, 2], "rgb": 3},
        {"size": [2, 2], "rgb": "~"},
        {"size": [2, 2], "rgb": "ä"},
        pixels([2, 2], 11),
        pixels([0, 0], 0),
        pixels([-2, -2], 12),
        pixels(["2", 2], 12),
        pixels([2], 6),
        pixels([THUMBNAIL_SIDE + 1, 1], 3 * THUMBNAIL_SIDE + 3),
    ],
)
def test_a_nonsensical_answer_is_not_a_picture(answer: object) -> None:
    assert read(answer) is None


def test_every_reason_is_shown_once_before_any_twice_and_pictures_first() -> None:
    shown = {"a1": picture(1), "c1": None, "b1": picture(2), "b2": picture(3)}
    groups = {"corrupt": ["c1", "c2"], "animated": ["a1"], "exact_duplicate": ["b1", "b2"]}
    order = [reason for reason, _ in choose(groups, shown)]
    assert order == ["animated", "exact_duplicate", "corrupt", "exact_duplicate", "corrupt"]
    many = {reason: [reason] * 3 for reason in REASONS}
    assert len({reason for reason, _ in choose(many, {})}) == SHOWN == len(choose(many, {}))
    assert choose({}, {}) == []


def test_a_picture_or_a_gray_tile_with_its_reason() -> None:
    red = Image.new("RGB", (80, 80), (200, 30, 30))
    both = sheet(("corrupt", red), ("empty_file", None))
    colors = {both.getpixel((60, 70)), both.getpixel((140, 40))}
    assert colors == {(200, 30, 30), BLANK}
    assert sheet(("corrupt", red)).tobytes() != sheet(("truncated", red)).tobytes()


def test_small_images_grow_by_whole_factors() -> None:
    pixel = np.array(sheet(("too_small", Image.new("RGB", (1, 1), (1, 2, 200)))))
    assert (pixel == (1, 2, 200)).all(axis=-1).sum() == 112 * 112


def test_an_empty_quarantine_is_a_small_picture_with_a_note() -> None:
    nothing = sheet(title="None of 5 files is quarantined.")
    assert nothing.height < 50
    assert len(np.unique(np.array(nothing))) > 2  # there is text
    assert nothing.width == sheet(*[("corrupt", None)] * COLUMNS).width


@pytest.mark.seconds
def test_the_largest_sheet_is_small_and_always_the_same() -> None:
    noise = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 80, 3), np.uint8)) for seed in range(12)]
    tiles = [(reason, image) for reason, image in zip(REASONS, noise, strict=False)]
    content = contact_sheet("title", tiles)
    assert len(content) < 200_000
    assert contact_sheet("title", tiles) == content


def test_captions_fit_into_their_tiles() -> None:
    """Between the columns nothing is written."""
    for start in range(0, len(REASONS), COLUMNS):
        drawn = np.array(sheet(*[(reason, None) for reason in list(REASONS)[start : start + COLUMNS]], title=""))
        gaps = [8 + 120 * column + offset for column in range(COLUMNS) for offset in range(113, 119)]
        assert (drawn[:, [gap for gap in gaps if gap < drawn.shape[1]]] == 255).all()
