"""From the bytes of an image file to the uint8 pixels that an encoder sees.

The single copy of decoding, orientation, color conversion and resizing: validation, `prepare`, evaluation and serving
all call it, so training and serving cannot diverge.

Examples:
    >>> from pathlib import Path
    >>> pixels = Preprocessing(size=224, resize=256).apply(decode(Path("cat.jpg").read_bytes()))
    >>> pixels.shape, pixels.dtype
    ((224, 224, 3), dtype('uint8'))
"""

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError, ImageError
from deploy.images.image_faults import FORMATS, PARSER_FAULTS, naming_faults
from deploy.images.jpeg_scans import check_scans
from deploy.moved import renamed

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 80_000_000
"""Largest width times height that is decoded: 240 MB as RGB. Just below Pillow's own limit of 89,478,485."""

_TRANSPOSE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation (the sides of row 0 and column 0; TIFF 6.0, tag 274) → the PIL.Image.Transpose that undoes it."""

_OPERATIONS = {"P": "palette_to_rgb", "PA": "palette_to_rgb", "CMYK": "cmyk_to_rgb"}
_OPERATIONS |= dict.fromkeys(("1", "L", "LA", "La"), "gray_to_rgb")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> "Image":
    """Read the header of an image file without decoding any pixel.

    Args:
        data: the bytes of the file.
        max_pixels: largest width times height; Pillow's own ``PIL.Image.MAX_IMAGE_PIXELS`` applies as well.

    Raises:
        ImageError: ``empty_file``, ``not_an_image``, ``unsupported_format``, ``truncated``, ``corrupt``, ``bomb``,
            ``metadata_bomb``.
    """
    from PIL import Image

    if not data:
        raise ImageError("empty_file", "the file has no bytes; copy it again from its source")
    check_scans(data)
    with naming_faults(data):
        image = Image.open(BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise ImageError("bomb", f"{image.width} x {image.height} is over {max_pixels:,} pixels; make it smaller")
    return image


def canonicalize(image: "Image") -> tuple["Image", list[str]]:
    """Decode all pixels and convert to an upright 8-bit sRGB image on white, without any metadata.

    Returns:
        The RGB image, and the operations applied to it, out of ``first_frame``, ``uint16_to_uint8``,
        ``palette_to_rgb``, ``cmyk_to_rgb``, ``icc_to_srgb``, ``gray_to_rgb``, ``to_rgb``, ``alpha_on_white``,
        ``exif_transpose``.

    Raises:
        ImageError: ``truncated``, ``corrupt``, ``metadata_bomb``, ``unsupported_depth``, ``fully_transparent``.
    """
    file = getattr(image, "fp", None)
    with naming_faults(file.getvalue() if isinstance(file, BytesIO) else b""):
        # The second picture of an MPO file, a phone's JPEG, is a preview or the other eye, not a later frame.
        operations = ["first_frame"] if getattr(image, "is_animated", False) and image.format != "MPO" else []
        rawmode = str(getattr(image, "tile", ""))
        is_tiff = image.format == "TIFF"
        # Pillow rotates a TIFF while loading it and then drops the tag; a PNG may have its EXIF block after the pixels.
        orientation = _orientation(image) if is_tiff else 1
        image.load()
        orientation = orientation if is_tiff else _orientation(image)
        profile = image.info.get("icc_profile")
        image = _to_8_bit(image, rawmode, operations)
        image = _to_rgb(image, profile, operations)
        if orientation != 1:
            operations.append("exif_transpose")
            image = image if is_tiff else image.transpose(_transpose(orientation))
    image.info = {}  # an ICC or EXIF block left here would be written into every file saved from this image
    return image, operations


if not TYPE_CHECKING:
    __getattr__ = renamed("deploy.images.preprocess", {"canonicalise": "canonicalize"})


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file to uint8 [height, width, 3]: upright, sRGB, on white.

    Raises:
        ImageError: the file cannot be read, or has more than ``max_pixels`` pixels.

    Examples:
        >>> from pathlib import Path
        >>> decode(Path("cat.jpg").read_bytes()).dtype
        dtype('uint8')
    """
    image, _ = canonicalize(open_image(data, max_pixels))
    return np.array(image)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to ``resize`` pixels, then keep the central ``size`` x ``size`` square.

    Raises:
        ArgumentError: not 1 <= size <= resize.

    Examples:
        >>> Preprocessing(size=224, resize=256).apply(np.zeros((480, 640, 3), np.uint8)).shape
        (224, 224, 3)
    """

    size: int
    resize: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ArgumentError(f"preprocessing: size {self.size}, resize {self.resize}; needs 1 <= size <= resize")

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop: uint8 [height, width, 3] → uint8 [size, size, 3].

        Bilinear with antialiasing, in Pillow's arithmetic on uint8. An image that already has the right size is
        returned unchanged.
        """
        from PIL import Image

        height, width = image.shape[:2]
        if height == width == self.size == self.resize:
            return image
        # Resizing only the part that the crop keeps equals "resize, then crop" to within one of 255 levels, and a strip
        # of 1 x 1,000,000 never becomes 256 x 256,000,000. Sides and offsets are rounded as in torchvision.
        short = min(height, width)
        resized_height, resized_width = self.resize * height // short, self.resize * width // short
        top, left = round((resized_height - self.size) / 2), round((resized_width - self.size) / 2)
        y, x = height / resized_height, width / resized_width
        box = (left * x, top * y, min((left + self.size) * x, width), min((top + self.size) * y, height))
        return np.array(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Preprocessing":
        if set(fields) != {"size", "resize"} or not all(type(value) is int for value in fields.values()):
            raise ArgumentError(f"preprocessing: {fields!r}; needs the integers size and resize, and nothing else")
        return cls(**fields)


def _to_8_bit(image: "Image", rawmode: str, operations: list[str]) -> "Image":
    from PIL import Image

    if image.mode in ("I", "F") or "I;12" in rawmode:
        raise ImageError("unsupported_depth", f"pixels of type {image.mode} have an unknown range; store 8 or 16 bits")
    is_gray16 = image.mode.startswith("I;16")
    if is_gray16 or (";16" in rawmode and "BGR;16" not in rawmode):  # BGR;16 is a BMP with 5, 6 and 5 bits
        operations.append("uint16_to_uint8")
    if not is_gray16:
        return image  # of 16-bit color, Pillow has kept the high bytes
    # Pillow's conversion of 16-bit gray clips at 255, which makes it white. 65535 / 255 = 257.
    return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))


def _to_rgb(image: "Image", profile: bytes | None, operations: list[str]) -> "Image":
    from PIL import ImageChops

    color, alpha = _split_alpha(image)
    if image.mode in _OPERATIONS:
        operations.append(_OPERATIONS[image.mode])
    elif image.mode != "RGB" and alpha is None:
        operations.append("to_rgb")
    rgb = _profile_to_srgb(color, profile) if profile else None
    if rgb is not None:
        operations.append("icc_to_srgb")
    elif color.mode == "LAB":
        rgb = _lab_to_rgb(color)
    else:  # neither the given image nor a second copy, which takes 320 MB for the largest image
        rgb = color if color.mode == "RGB" and color is not image else color.convert("RGB")
    if alpha is None:
        return rgb
    operations.append("alpha_on_white")
    rgb.paste("white", mask=ImageChops.invert(alpha))
    return rgb


def _split_alpha(image: "Image") -> tuple["Image", "Image | None"]:
    """Return the colors (gray stays gray, a palette becomes RGB), and the alpha channel if a pixel is not opaque."""
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        simple = {"P": "RGB", "1": "L"}.get(image.mode)
        return image.convert(simple) if simple else image, None
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight if straight.mode == "RGBA" else straight.convert("RGBA")
    alpha = rgba.getchannel("A")
    lowest, highest = alpha.getextrema()
    if highest == 0:
        raise ImageError("fully_transparent", "every pixel is fully transparent; store it on a visible background")
    color = rgba.getchannel("R") if straight.mode in ("1", "L", "LA") else rgba.convert("RGB")
    return color, None if lowest == 255 else alpha


def _profile_to_srgb(image: "Image", profile: bytes) -> "Image | None":
    """Convert by an ICC profile. Return None, to ignore it, if it is sRGB, damaged, or for another color space."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        is_srgb = "srgb" in ImageCms.getProfileDescription(source).lower()
        if is_srgb or source.profile.xcolor_space.strip() != _PROFILE_SPACES.get(image.mode):
            return None
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *PARSER_FAULTS):
        return None


def _lab_to_rgb(image: "Image") -> "Image":
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted


def _orientation(image: "Image") -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is absent or the EXIF block is damaged."""
    try:
        orientation = image.getexif().get(274, 1)
    except PARSER_FAULTS:
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _transpose(orientation: int) -> Any:
    from PIL.Image import Transpose

    return Transpose(_TRANSPOSE[orientation])
