"""From the bytes of an image file to the uint8 pixels that an encoder sees.

The single copy of decoding, orientation, color conversion and resizing: validation, `prepare`, evaluation and serving
all call it, so training and serving cannot diverge.

Examples:
    >>> from pathlib import Path
    >>> pixels = Preprocessing(size=224, resize=256).apply(decode(Path("cat.jpg").read_bytes()))
    >>> pixels.shape, pixels.dtype
    ((224, 224, 3), dtype('uint8'))
"""

from dataclasses import dataclass, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError, ImageError
from deploy.images import heif
from deploy.images.background import BACKGROUNDS, WHITE, letterbox
from deploy.images.bit_depth import to_8_bits
from deploy.images.color_space import ignores_color_space
from deploy.images.full_depth import FULL, MOST_CHANNELS, Samples, read_full_depth, resize_samples
from deploy.images.image_faults import naming_faults
from deploy.images.opening import MAX_PIXELS as MAX_PIXELS
from deploy.images.opening import MOST_PIXELS as MOST_PIXELS
from deploy.images.opening import open_image as open_image
from deploy.images.opening import orientation_of, transposition
from deploy.images.srgb import to_rgb
from deploy.images.tiff_layout import PREVIEW, SUBFILE, Tags, check_layout, drops_bands, first, has_pages
from deploy.moved import renamed

if TYPE_CHECKING:
    from PIL.Image import Image

LOSSES = ("bands_dropped", "color_space_ignored", "icc_ignored", "uses_12_of_16_bits", "uses_14_of_16_bits")
"""Of the operations, those that change no pixel, but say what of the file is not in them."""


def canonicalize(image: "Image", background: str = WHITE) -> tuple["Image", list[str]]:
    """Decode all pixels and convert to an upright 8-bit sRGB image on a background, without any metadata.

    Returns:
        The RGB image, and the operations applied to it, out of ``first_frame``, ``bands_dropped``,
        ``color_space_ignored``, ``uint9_to_uint8``, ``uint10_to_uint8``, ``uint11_to_uint8``, ``uint12_to_uint8``,
        ``uint13_to_uint8``, ``uint14_to_uint8``, ``uint15_to_uint8``, ``uint16_to_uint8``, ``uses_14_of_16_bits``,
        ``uses_12_of_16_bits``, ``palette_to_rgb``, ``cmyk_to_rgb``, ``icc_to_srgb``,
        ``icc_ignored``, ``gray_to_rgb``, ``to_rgb``, ``alpha_on_white`` or another of BACKGROUNDS, ``exif_transpose``;
        those of LOSSES change no pixel.

    Raises:
        ImageError: ``truncated``, ``corrupt``, ``metadata_bomb``, ``unsupported_depth``, ``unsupported_layout``,
            ``fully_transparent``.
    """
    file = getattr(image, "fp", None)
    data = file.getvalue() if isinstance(file, BytesIO) else b""
    with naming_faults(data):
        is_tiff = image.format == "TIFF"
        tags: Tags = getattr(image, "tag_v2", {}) if is_tiff else {}
        check_layout(tags)
        if first(tags, SUBFILE, 0) & PREVIEW and has_pages(BytesIO(data)):
            raise ImageError(
                "unsupported_layout", "its first page is a reduced copy of a later one; store the full picture first"
            )
        operations = ["first_frame"] if _has_frames(image) else []
        if drops_bands(tags):
            operations.append("bands_dropped")
        if ignores_color_space(image, data):
            operations.append("color_space_ignored")
        rawmode = str(getattr(image, "tile", ""))
        bits = heif.bit_depth(data) if image.format in ("AVIF", "HEIF") else 8
        # Pillow rotates a TIFF while loading it and then drops the tag; a PNG may have its EXIF block after the pixels.
        orientation = orientation_of(image) if is_tiff else 1
        image.load()
        orientation = orientation if is_tiff else orientation_of(image)
        profile = image.info.get("icc_profile")
        image = to_8_bits(image, rawmode, tags, bits, operations)
        image = to_rgb(image, profile, background, operations)
        if orientation != 1:
            operations.append("exif_transpose")
            image = image if is_tiff else image.transpose(transposition(orientation))
    image.info = {}  # an ICC or EXIF block left here would be written into every file saved from this image
    return image, operations


if not TYPE_CHECKING:
    __getattr__ = renamed("deploy.images.preprocess", {"canonicalise": "canonicalize"})


def decode(data: bytes, max_pixels: int = MAX_PIXELS, background: str = WHITE) -> NDArray[np.uint8]:
    """Decode an image file to uint8 [height, width, 3]: upright, sRGB, on ``background``.

    Raises:
        ImageError: the file cannot be read, or has more than ``max_pixels`` pixels.

    Examples:
        >>> from pathlib import Path
        >>> decode(Path("cat.jpg").read_bytes()).dtype
        dtype('uint8')
    """
    image, _ = canonicalize(open_image(data, max_pixels), background)
    return np.array(image)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to ``resize`` pixels, then keep the central ``size`` x ``size`` square.

    With ``letterbox``, the image is first put into a square as it is, on ``background``, so that nothing of a long one
    is cut off. A background is also what transparent parts of a file are seen on: one of
    ``deploy.images.background.BACKGROUNDS``.

    With ``channels``, images have this number of channels at full depth (``deploy.images.full_depth``): their pixels
    are uint16 [height, width, channels], where those of others are uint8 RGB, and nothing is put behind them.

    Raises:
        ArgumentError: not 1 <= size <= resize, an unknown background, or channels out of range or with a letterbox.

    Examples:
        >>> Preprocessing(size=224, resize=256).apply(np.zeros((480, 640, 3), np.uint8)).shape
        (224, 224, 3)
    """

    size: int
    resize: int
    background: str = WHITE
    letterbox: bool = False
    channels: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ArgumentError(f"preprocessing: size {self.size}, resize {self.resize}; needs 1 <= size <= resize")
        if self.background not in BACKGROUNDS:
            known = ", ".join(BACKGROUNDS)
            raise ArgumentError(f"preprocessing: background {self.background!r}; give one of {known}")
        if self.channels is not None and not (1 <= self.channels <= MOST_CHANNELS and not self.letterbox):
            given = f"channels {self.channels}, letterbox {self.letterbox}"
            raise ArgumentError(f"preprocessing: {given}; needs 1 to {MOST_CHANNELS} channels and no letterbox")

    @property
    def bands(self) -> int:
        """Channels of the pixels: 3, unless images have a number of channels."""
        return self.channels or 3

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Type of the pixels: uint8, or uint16 at full depth."""
        return np.uint16 if self.channels else np.uint8

    @property
    def full(self) -> int:
        """The value of a pixel that counts as 1.0."""
        return FULL if self.channels else 255

    @property
    def described(self) -> str:
        """What an image is, as in ``uint8 RGB``."""
        return f"uint16 of {self.channels} channel{'s' * (self.channels > 1)}" if self.channels else "uint8 RGB"

    def read(self, data: bytes, max_pixels: int = MAX_PIXELS) -> Samples:
        """Decode an image file, resize and crop: uint8 [size, size, 3], or uint16 [size, size, channels].

        Raises:
            ImageError: the file cannot be read, or has more than ``max_pixels`` pixels.
        """
        if self.channels:
            return self.apply(read_full_depth(data, self.channels, max_pixels))
        image, _ = canonicalize(open_image(data, max_pixels), self.background)
        return self.apply_to_picture(image)

    def decode(self, data: bytes, max_pixels: int = MAX_PIXELS) -> Samples:
        """Decode an image file in its own size: uint8 [height, width, 3], or uint16 [height, width, channels].

        Raises:
            ImageError: the file cannot be read, or has more than ``max_pixels`` pixels.
        """
        if self.channels:
            return read_full_depth(data, self.channels, max_pixels)
        return decode(data, max_pixels, self.background)

    def apply(self, image: Samples) -> Samples:
        """Resize and crop: [height, width, 3 or channels] → [size, size, 3 or channels].

        Bilinear with antialiasing, in Pillow's arithmetic on uint8, or on float for full depth. An image that already
        has the right size is returned unchanged.
        """
        from PIL import Image

        if image.shape[:2] == (self.resize, self.resize) == (self.size, self.size):
            return image
        if self.channels:
            height, width = image.shape[:2]
            samples = np.asarray(image, np.uint16)
            return resize_samples(samples, (self.size, self.size), self._box(width, height))
        return self.apply_to_picture(Image.fromarray(image))

    def apply_to_picture(self, image: "Image") -> NDArray[np.uint8]:
        """Resize and crop an RGB picture as ``apply`` does, without a copy of all of its pixels as an array."""
        from PIL import Image

        if self.letterbox:
            image = letterbox(image, self.resize, self.background)
        width, height = image.size
        if height == width == self.size == self.resize:
            return np.array(image)
        box = self._box(width, height)
        return np.array(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image that is kept: left, top, right, bottom."""
        # Resizing only the part that the crop keeps equals "resize, then crop" to within one of 255 levels, and a strip
        # of 1 x 1,000,000 never becomes 256 x 256,000,000. Sides and offsets are rounded as in torchvision.
        resized_width, resized_height = resized((width, height), self.resize)
        top, left = round((resized_height - self.size) / 2), round((resized_width - self.size) / 2)
        y, x = height / resized_height, width / resized_width
        return left * x, top * y, min((left + self.size) * x, width), min((top + self.size) * y, height)

    def to_json(self) -> dict[str, Any]:
        """The fields, without those at their defaults, which earlier releases do not know."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Preprocessing":
        types = {"size": int, "resize": int, "background": str, "letterbox": bool, "channels": int}
        known = all(type(value) is types.get(name) for name, value in given.items())
        if not known or not {"size", "resize"} <= given.keys():
            raise ArgumentError(
                f"preprocessing: {given!r}; needs the integers size and resize, and may have background, letterbox and "
                "channels; an encoder with other fields needs a newer release of this package"
            )
        return cls(**given)


def resized(sides: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return the sides of an image whose shorter one becomes ``short_side``, rounded as in torchvision."""
    short = min(sides)
    return short_side * sides[0] // short, short_side * sides[1] // short


def reduce(image: "Image", short_side: int) -> "Image":
    """Reduce the shorter side to ``short_side`` as ``Preprocessing`` does before it crops; a smaller image stays.

    What is stored for training so gives the pixels, to within one of 255 levels, that the file itself gives when it is
    served with ``resize`` equal to ``short_side``.
    """
    from PIL import Image

    if min(image.size) <= short_side:
        return image
    return image.resize(resized(image.size, short_side), Image.Resampling.BILINEAR)


def reduce_samples(samples: NDArray[np.uint16], short_side: int) -> NDArray[np.uint16]:
    """Reduce the shorter side of an image at full depth as ``reduce`` does; a smaller image stays."""
    height, width = samples.shape[:2]
    if min(height, width) <= short_side:
        return samples
    return resize_samples(samples, resized((width, height), short_side))


def _has_frames(image: "Image") -> bool:
    # The second picture of an MPO file, a phone's JPEG, is a preview or the other eye, not a later frame.
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return False
    file = getattr(image, "fp", None)
    return image.format != "TIFF" or file is None or has_pages(file)
