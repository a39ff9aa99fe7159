"""A glance at one image: what decides how large, in which colors and with which augmentations it is trained on.

Runs inside the confined workers of ``pipeline.validation.probe.pool``: the files come from anywhere.
"""

from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any, get_origin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from deploy.errors import ImageError
from deploy.images.background import LEVELS, WHITE
from deploy.images.full_depth import MOST_CHANNELS, open_full_depth
from deploy.images.preprocess import MOST_PIXELS, canonicalize, open_image
from deploy.images.preview import summary
from deploy.images.signatures import sniff
from deploy.images.tiff_layout import has_pages

SIDES = (28, 32, 48, 64, 96, 128, 160, 224)
"""The resolutions that are compared, in pixels of the shorter side."""

REFERENCE_SIDE = 256  # pixels: larger images are reduced to it first, so that sensor noise does not count as detail
GIST_SIDE = 16
GRAY_SATURATION = (
    6.0  # of 255, mean distance between the largest and the smallest channel; JPEGs of gray scans have 0-2
)


@dataclass(frozen=True)
class Glance:
    """``lost`` is the share of the brightness' variance that a reduction to each of SIDES removes; ``gist`` the image
    as 16 x 16 levels of brightness."""

    width: int
    height: int
    has_color: bool
    has_alpha: bool
    deep: bool  # more than 8 bits in a channel
    frames: int
    deviations: dict[str, float]  # on each of LEVELS, of the most varied channel, 0 to 255: of one color below about 2
    lost: list[float]
    gist: list[int]
    channels: int = 0  # with which it can be read at full depth; 0: with none
    needs_depth: bool = False  # as 8-bit RGB it would lose depth or channels, or cannot be read

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)


def glance(data: bytes) -> dict[str, Any] | None:
    """The fields of ``Glance``; None if the bytes are not an image that can be decoded."""
    channels, needs_depth = find_channels(data)
    if needs_depth:
        return _glance_deep(data, channels)
    try:
        image = open_image(data, MOST_PIXELS)
        has_alpha, frames = image.has_transparency_data, getattr(image, "n_frames", 1)
        canonical, operations = canonicalize(image)
        on_white = _deviation(canonical)
        deviations = dict.fromkeys(LEVELS, on_white)
        for background in LEVELS.keys() - {WHITE} if has_alpha else ():
            deviations[background] = _deviation(canonicalize(open_image(data, MOST_PIXELS), background)[0])
    except ImageError:
        return None
    deep = any(operation.startswith("uint") for operation in operations)
    return _describe(canonical, has_alpha=has_alpha, deep=deep, frames=frames, deviations=deviations, channels=channels)


def _glance_deep(data: bytes, channels: int) -> dict[str, Any] | None:
    """At what a person would see of all channels."""
    try:
        opened = open_full_depth(data, channels, MOST_PIXELS)
        picture = Image.fromarray(summary(opened.read()[0]))
    except ImageError:
        return None
    return _describe(
        picture,
        has_alpha=False,
        deep=opened.bits > 8,
        frames=opened.frames,
        deviations=dict.fromkeys(LEVELS, _deviation(picture)),
        channels=channels,
        needs_depth=True,
    )


def _describe(picture: Image.Image, **known: Any) -> dict[str, Any]:
    """The fields of a Glance: those that its pixels show, and those that are ``known``."""
    luma = picture.convert("L")
    return vars(
        Glance(
            width=picture.width,
            height=picture.height,
            has_color=_saturation(picture) > GRAY_SATURATION,
            lost=measure_lost(luma),
            gist=_gist(luma),
            **known,
        )
    )


def find_channels(data: bytes) -> tuple[int, bool]:
    """How many channels a file has at full depth, 0 if it cannot be read so; and whether 8-bit RGB would lose some of
    its depth or channels. Pages of a TIFF may be anything, and do not count."""
    if sniff(data) == "tiff" and has_pages(BytesIO(data)):
        return 0, False
    for channels in range(1, MOST_CHANNELS + 1):
        try:
            opened = open_full_depth(data, channels, MOST_PIXELS)
        except ImageError as error:
            if error.reason != "wrong_channels":
                return 0, False
            continue
        beyond = opened.format == "NPY" or (opened.picture is None and channels not in (3, 4))
        return channels, beyond or opened.bits > 8
    return 0, False


def _gist(luma: Image.Image) -> list[int]:
    levels: list[int] = np.asarray(luma.resize((GIST_SIDE, GIST_SIDE), Image.Resampling.BOX)).ravel().tolist()
    return levels


def measure_lost(luma: Image.Image) -> list[float]:
    """For each of SIDES, the share of the variance of the center square that is gone when its side is reduced to it.

    0 where the image is not larger. An image of one color loses nothing.
    """
    square = _center_square(luma)
    pixels = np.asarray(square, np.float64)
    variance = pixels.var()
    if variance == 0:
        return [0.0] * len(SIDES)
    return [round(min(1.0, _residue(square, pixels, side) / variance), 4) for side in SIDES]


def read_glance(answer: object) -> Glance | None:
    """What a worker said, as a Glance; None where it saw no image.

    Raises:
        ValueError: it is nothing that a Glance could hold.
    """
    if answer is None:
        return None
    types = {one.name: get_origin(one.type) or one.type for one in fields(Glance)}
    if not isinstance(answer, dict) or {name: type(value) for name, value in answer.items()} != types:
        raise ValueError("not the fields of a Glance")
    found = Glance(**answer)
    whole = all(isinstance(level, int) for level in found.gist) and all(
        isinstance(x, float) for x in (*found.lost, *found.deviations.values())
    )
    if (
        found.deviations.keys() != LEVELS.keys()
        or not whole
        or len(found.lost) != len(SIDES)
        or len(found.gist) != GIST_SIDE**2
        or found.short_side < 1
    ):
        raise ValueError("impossible values in a Glance")
    return found


def _deviation(image: Image.Image) -> float:
    return round(max(ImageStat.Stat(image).stddev), 2)


def _saturation(image: Image.Image) -> float:
    small = np.asarray(image.resize((64, 64), Image.Resampling.BOX), np.int16)
    return float((small.max(axis=2) - small.min(axis=2)).mean())


def _center_square(luma: Image.Image) -> Image.Image:
    side = min(luma.size)
    left, top = (luma.width - side) // 2, (luma.height - side) // 2
    target = min(side, REFERENCE_SIDE)
    return luma.resize((target, target), Image.Resampling.BOX, box=(left, top, left + side, top + side))


def _residue(square: Image.Image, pixels: NDArray[np.float64], side: int) -> float:
    """Mean squared difference between the square and what is left of it after a reduction to ``side``."""
    if side >= square.width:
        return 0.0
    reduced = square.resize((side, side), Image.Resampling.BICUBIC).resize(square.size, Image.Resampling.BICUBIC)
    return float(((np.asarray(reduced, np.float64) - pixels) ** 2).mean())
