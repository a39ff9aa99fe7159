"""Sheets of thumbnails: ``sprites/00000.jpg`` and so on, each with 16 rows of 16 pictures of 64 pixels.

Pictures come in order of ingestion, so a new batch fills the last sheet and adds more; the earlier ones stay as they
are, for DVC and for browsers.
"""

from collections.abc import Iterable
from io import BytesIO
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from deploy.images.full_depth import Samples
from deploy.images.preview import preview

SIDE = 64  # pixels of a thumbnail
ACROSS = 16  # thumbnails in a row, and rows of a sheet
ON_SHEET = ACROSS * ACROSS
GROUND = (127, 127, 127)
QUALITY = 80


def write_sprites(folder: Path, images: Iterable[Samples]) -> None:
    """Write the thumbnails of ``images``, each as it is stored, into a new folder. One sheet is in memory at a time."""
    folder.mkdir()
    waiting = iter(images)
    for number in count():
        if not (pictures := list(islice(waiting, ON_SHEET))):
            return
        (folder / sheet_name(number)).write_bytes(sheet(pictures))


def sheet_name(number: int) -> str:
    return f"{number:05d}.jpg"


def sheet(images: Iterable[Samples]) -> bytes:
    """A JPEG of at most ``ON_SHEET`` pictures; its last row need not be full."""
    tiles = [tile(image) for image in images]
    drawn = Image.new("RGB", (ACROSS * SIDE, -(-len(tiles) // ACROSS) * SIDE), GROUND)
    for cell, picture in enumerate(tiles):
        drawn.paste(picture, (cell % ACROSS * SIDE, cell // ACROSS * SIDE))
    content = BytesIO()
    drawn.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def tile(image: Samples) -> Image.Image:
    """The whole image in a square. One that is small is enlarged by a whole factor, so that its pixels stay."""
    picture = Image.fromarray(np.ascontiguousarray(preview(image)))
    longest = max(picture.size)
    if longest > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    elif (factor := SIDE // longest) > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    square = Image.new("RGB", (SIDE, SIDE), GROUND)
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square
