import io
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from pipeline.validation.probe.hashes import perceptual_hashes, sketch, sketch_planes
from pipeline.validation.probe.probe import reduced, statistics
from pipeline.validation.verdict.near_duplicates import DHASH_DISTANCE, PAIRS
from pipeline.validation.verdict.structure import DRAWN, Pictures, compare, confirm, show_the_same
from tests.pipeline.validation.probe.test_hashes import CHANGES, HARSH_CHANGES, Change, crops, resized, saved


def facts(images: Sequence[Image.Image]) -> pl.DataFrame:
    """sketch, entropy and luma_std, as the probe measures them."""
    small = [reduced(image) for image in images]
    return pl.DataFrame([{"sketch": sketch(image), **statistics(image, image.convert("L"))} for image in small])


def pictures(images: Sequence[Image.Image]) -> Pictures:
    return compare(facts(images))


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(show_the_same(pictures([one]), pictures([other]))[0])


def icon(draw: Callable[[ImageDraw.ImageDraw], None], color: str = "tan", side: int = 256) -> Image.Image:
    """A folder with something on it, on white."""
    image = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((16, 30, 120, 90), 12, "#806f55")
    pen.rounded_rectangle((16, 60, 240, 216), 12, color)
    draw(pen)
    return image.resize((side, side), Image.Resampling.LANCZOS)


MARK = "#bfa278"
MARKS: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "nothing": lambda pen: None,
    "disk": lambda pen: pen.ellipse((104, 112, 152, 160), MARK),
    "bar": lambda pen: pen.rectangle((120, 104, 134, 176), MARK),
    "corner": lambda pen: pen.polygon([(100, 170), (100, 110), (160, 170)], MARK),
    "hands at three": lambda pen: pen.line([(128, 100), (128, 138), (164, 138)], MARK, 10),
    "hands at nine": lambda pen: pen.line([(128, 100), (128, 138), (92, 138)], MARK, 10),
}


def hash_distance(one: Image.Image, other: Image.Image) -> int:
    first, second = (perceptual_hashes(image.convert("L"), 256) for image in (one, other))
    assert (first["dhash"] ^ second["dhash"]).bit_count() <= DHASH_DISTANCE
    return int((first["phash"] ^ second["phash"]).bit_count())


def test_drawings_on_one_outline_are_distinguished_though_their_hashes_are_near() -> None:
    icons = {name: icon(draw) for name, draw in MARKS.items()}
    names = sorted(icons)
    pairs = [(one, other) for one in names for other in names if one < other]
    assert sum(hash_distance(icons[one], icons[other]) <= 3 for one, other in pairs) >= 5, "the hashes cannot"
    assert not [(one, other) for one, other in pairs if same(icons[one], icons[other])]


@pytest.mark.parametrize("color", ["#8fb9d2", "#e0a0a0"])
def test_drawings_in_other_colors_are_distinguished(color: str) -> None:
    assert not same(icon(MARKS["disk"]), icon(MARKS["disk"], color))


def hand(skin: str) -> Image.Image:
    image = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((70, 110, 190, 230), 40, skin)
    pen.rounded_rectangle((100, 20, 130, 140), 15, skin)
    pen.line([(110, 150), (180, 150)], "#6b4a33", 5)
    return image


def test_a_part_in_another_brightness_on_the_same_ground_makes_another_drawing() -> None:
    """No change of the whole picture leaves white as it is."""
    assert not same(hand("#f3d2a2"), hand("#d5ab88"))
    assert same(hand("#f3d2a2"), saved("JPEG", quality=75)(hand("#f3d2a2")))


def card(frame: bool, ground: int = 40) -> Image.Image:
    """On a ground that grows darker to the right and down, as drawings with a soft light have it: no cell is flat."""
    across, down = np.meshgrid(np.linspace(0, ground, 240), np.linspace(0, ground, 240))
    image = Image.fromarray((255 - across / 2 - down / 2).astype(np.uint8)).convert("RGB")
    pen = ImageDraw.Draw(image)
    pen.ellipse((90, 80, 150, 160), "#c02020")
    pen.polygon([(30, 30), (50, 30), (40, 60)], "#202020")
    if frame:
        pen.rounded_rectangle((60, 50, 180, 190), 12, outline="#5030b0", width=4)
    return image


def test_a_drawing_on_shaded_ground_is_not_a_photograph() -> None:
    assert pictures([card(frame=True)]).negentropy > DRAWN
    assert not same(card(frame=False), card(frame=True))
    assert same(card(frame=True), saved("JPEG", quality=75)(card(frame=True)))


def flag(triangle: str, stripes: str) -> Image.Image:
    """With a shine across the whole, as icons of flags have it."""
    image = Image.new("RGB", (320, 240), "white")
    pen = ImageDraw.Draw(image)
    for top in range(0, 240, 96):
        pen.rectangle((0, top, 320, top + 47), stripes)
    pen.polygon([(0, 0), (0, 240), (160, 120)], triangle)
    shine = np.linspace(0.8, 1, 320) * np.linspace(0.85, 1, 240)[:, np.newaxis]
    return Image.fromarray((np.asarray(image) * shine[..., np.newaxis]).astype(np.uint8))


def test_colors_that_are_exchanged_make_another_picture() -> None:
    """Puerto Rico and Cuba: about as bright everywhere."""
    blue, red = "#2254f4", "#ed3030"
    assert not same(flag(blue, red), flag(red, blue))
    assert same(flag(blue, red), saved("JPEG", quality=75)(flag(blue, red)))


ICON_CHANGES = {name: change for name, change in (CHANGES | HARSH_CHANGES).items() if name != "gray"}


@pytest.mark.parametrize("change", ICON_CHANGES)
@pytest.mark.parametrize("mark", MARKS)
def test_a_drawing_that_was_stored_again_is_the_same(mark: str, change: str) -> None:
    original = icon(MARKS[mark])
    assert same(original, ICON_CHANGES[change](original))
    assert same(original, ICON_CHANGES[change](icon(MARKS[mark], side=160)))


def cropped(left: float, top: float, right: float, bottom: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        return image.crop(
            (round(left * width), round(top * height), width - round(right * width), height - round(bottom * height))
        )

    return change


def watermarked(image: Image.Image) -> Image.Image:
    marked = image.copy()
    pen = ImageDraw.Draw(marked, "RGBA")
    pen.text(
        (image.width // 2, image.height * 7 // 8), "(c) 2026", fill=(255, 255, 255, 140), font_size=image.height // 14
    )
    return marked


PHOTOGRAPH_CHANGES: dict[str, Change] = {
    **CHANGES,
    **HARSH_CHANGES,
    "cropped": cropped(0.01, 0.01, 0.01, 0.01),
    "without its right edge": cropped(0, 0, 0.02, 0),
    "brighter": lambda image: image.point(lambda level: level * 1.1),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "watermark": watermarked,
}


@pytest.mark.seconds
@pytest.mark.parametrize("change", PHOTOGRAPH_CHANGES)
def test_copies_of_photographs_are_the_same(change: str) -> None:
    found = [same(image, PHOTOGRAPH_CHANGES[change](resized(2)(image))) for image in crops()]
    assert sum(found) >= 0.9 * len(found)


def test_one_color_tiny_and_elongated_pictures_have_a_sketch() -> None:
    shapes = [(1, 1), (1, 400), (400, 1), (3, 2)]
    for shape in shapes:
        flat = Image.new("RGB", shape, (200, 10, 30))
        assert [plane.shape[1:] for plane in sketch_planes([sketch(flat)])] == [(16, 16), (8, 8), (8, 8)]
        assert same(flat, flat)
        assert not same(flat, Image.new("RGB", shape, (30, 10, 200)))


def test_a_sketch_is_of_means_of_cells() -> None:
    """Against Pillow's YCbCr of the picture, averaged over each cell."""
    cells = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(cells.repeat(2, axis=0).repeat(2, axis=1))
    luma, blue, red = sketch_planes([sketch(image)])
    expected = np.asarray(image.convert("YCbCr")).astype(float)
    assert np.abs(luma[0] - expected[::2, ::2, 0]).max() == 0
    for plane, channel in ((blue, 1), (red, 2)):
        assert np.abs(plane[0] - expected[..., channel].reshape(8, 4, 8, 4).mean(axis=(1, 3))).max() <= 1


def test_pairs_are_confirmed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"a": icon(MARKS["disk"]), "b": icon(MARKS["bar"]), "c": icon(MARKS["disk"], side=200)}
    table = facts(list(images.values())).with_columns(sha256=pl.Series(list(images)))
    pairs = pl.DataFrame([("a", "b", 0), ("a", "c", 2), ("b", "c", 1)], PAIRS, orient="row")
    assert confirm(pairs, table).rows() == [("a", "c", 2)]
    monkeypatch.setattr("pipeline.validation.verdict.structure.AT_ONCE", 1)
    assert confirm(pairs, table[::-1]).rows() == [("a", "c", 2)]
    assert confirm(PAIRS.to_frame(), table.clear()).equals(PAIRS.to_frame())


def test_the_number_of_pairs_at_once_changes_no_answer() -> None:
    originals, marked = crops(), [watermarked(image) for image in crops()]
    together = show_the_same(pictures(originals), pictures(marked))
    assert together.tolist() == [same(*pair) for pair in zip(originals, marked, strict=True)]


def test_saved_by_another_program_the_sketch_is_the_same() -> None:
    for image in crops()[:4]:
        content = io.BytesIO()
        image.save(content, "PNG")
        assert sketch(Image.open(content)) == sketch(image)
