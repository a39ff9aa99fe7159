"""Thumbnails for the reports. Workers send bare pixels: no codec of the parent ever reads what a file made of them."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from deploy.images.full_depth import Samples
from deploy.images.preview import preview
from pipeline.validation.probe.probe import THUMBNAIL_SIDE

COLUMNS, ROWS = 4, 3
SHOWN = COLUMNS * ROWS
TILE, CAPTION, MARGIN = 112, 16, 8  # pixels
PAPER, INK, BLANK, FAINT = (255, 255, 255), (28, 39, 51), (225, 229, 234), (102, 117, 138)


def read(answer: object) -> Image.Image | None:
    """The RGB image that ``probe.thumbnail`` sent; None when there is none, or when it makes no sense."""
    match answer:
        case {"size": [int(width), int(height)], "rgb": str(text)} if min(width, height) > 0:
            try:
                pixels = base64.b64decode(text)
            except ValueError:
                return None
            if max(width, height) <= THUMBNAIL_SIDE and len(pixels) == 3 * width * height:
                return Image.frombytes("RGB", (width, height), pixels)
    return None


def jpeg(image: Image.Image) -> str:
    """A JPEG in base64."""
    content = BytesIO()
    image.save(content, "JPEG", quality=75, optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def choose(
    groups: Mapping[str, Sequence[str]], thumbnails: Mapping[str, Image.Image | None]
) -> list[tuple[str, Image.Image | None]]:
    """At most ``SHOWN`` pairs of reason and picture: one of every reason before a second of any, pictures first."""
    turns = [(turn, reason, thumbnails.get(sha256)) for reason in groups for turn, sha256 in enumerate(groups[reason])]
    turns.sort(key=lambda one: (one[0], one[2] is None))
    return [(reason, picture) for _, reason, picture in turns[:SHOWN]]


def shrink(pixels: Samples) -> Image.Image:
    """A prepared image as people see it, no larger than a tile."""
    image = Image.fromarray(preview(pixels))
    image.thumbnail((TILE, TILE))
    return image


def contact_sheet(title: str, tiles: Sequence[tuple[str, Image.Image | None]], columns: int = COLUMNS) -> bytes:
    """A PNG of captioned thumbnails, a blank tile for each that is missing; 256 colors keep a report's below 200 kB."""
    cell_width, cell_height = TILE + MARGIN, TILE + CAPTION + MARGIN
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, 2 * MARGIN + CAPTION + rows * cell_height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((MARGIN, MARGIN), title, INK, font)
    for index, (caption, image) in enumerate(tiles):
        left, top = MARGIN + index % columns * cell_width, 2 * MARGIN + CAPTION + index // columns * cell_height
        center = (left + TILE // 2, top + TILE // 2)
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), BLANK)
        if image is None:
            draw.text(center, "no picture", FAINT, font, anchor="mm")
        else:
            shown = _enlarged(image)
            sheet.paste(shown, (center[0] - shown.width // 2, center[1] - shown.height // 2))
        draw.text((left, top + TILE + 2), caption.replace("_", " "), INK, font)
    content = BytesIO()
    sheet.quantize(256).save(content, "PNG", optimize=True)
    return content.getvalue()


def _enlarged(image: Image.Image) -> Image.Image:
    """Small images by a whole factor, so that their pixels stay what they are."""
    factor = TILE // max(image.size)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
