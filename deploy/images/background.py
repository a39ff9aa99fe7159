"""What is behind the transparent parts of an image, and around one that is put into a square."""

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE = "white"
LEVELS = {WHITE: 255, "black": 0, "gray": 128}
CHECKER, MEAN = "checker", "mean"
BACKGROUNDS = (*LEVELS, CHECKER, MEAN)
"""``checker`` is a pattern of squares in two grays, ``mean`` the mean color of what is visible of the image."""

CHECKS = (153, 102)  # the grays in which image editors show transparency
SQUARES = 16  # along the longer side

Paint: TypeAlias = "tuple[int, int, int] | Image"
"""What ``PIL.Image.paste`` takes: a color, or a picture of the same size."""


def paint(background: str, size: tuple[int, int], picture: "Image", visible: "Image | None" = None) -> Paint:
    """Return what to paste where nothing of ``picture`` is seen.

    Args:
        background: one of BACKGROUNDS.
        size: width and height of what is painted, in pixels.
        picture: an RGB image.
        visible: its alpha channel; None: all of it is visible.
    """
    assert background in BACKGROUNDS, background
    if background == CHECKER:
        return _checker(size)
    if background == MEAN:
        return _mean(picture, visible)
    level = LEVELS[background]
    return level, level, level


def letterbox(image: "Image", side: int, background: str) -> "Image":
    """Put all of an RGB image into a square: its longer side becomes at most ``side`` pixels, and it is centered.

    A square image is reduced alone, so that the result of a second call is that of the first.
    """
    from PIL import Image

    longest = max(image.size)
    if longest > side:
        width, height = (max(1, round(length * side / longest)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    width, height = image.size
    longest = max(width, height)
    if width == height:
        return image
    square = Image.new("RGB", (longest, longest))
    square.paste(paint(background, square.size, image), (0, 0, longest, longest))
    square.paste(image, ((longest - width) // 2, (longest - height) // 2))
    return square


def _checker(size: tuple[int, int]) -> "Image":
    from PIL import Image

    square = max(1, max(size) // SQUARES)
    columns, rows = (np.arange(length) // square % 2 for length in size)
    return Image.fromarray(np.array(CHECKS, np.uint8)[rows[:, np.newaxis] ^ columns]).convert("RGB")


def _mean(picture: "Image", visible: "Image | None") -> tuple[int, int, int]:
    from PIL import ImageStat

    red, green, blue = ImageStat.Stat(picture, visible).mean
    return round(red), round(green), round(blue)
