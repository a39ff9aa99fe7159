"""From decoded pixels of any color type to RGB in sRGB: by the ICC profile of the file, and on a background."""

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import ImageError
from deploy.images.background import paint
from deploy.images.image_faults import PARSER_FAULTS

if TYPE_CHECKING:
    from PIL.Image import Image

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
SRGB_TOLERANCE = 4  # levels of 255; profiles of sRGB by several makers differ by up to 2, one with a gamma of 2.2 by 8
CACHED_PROFILE = 1 << 14  # bytes; those of cameras and displays have 0.5 to 4 kB
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
_OPERATIONS = {"P": "palette_to_rgb", "PA": "palette_to_rgb", "CMYK": "cmyk_to_rgb"}
_OPERATIONS |= dict.fromkeys(("1", "L", "LA", "La"), "gray_to_rgb")


def to_rgb(image: "Image", profile: bytes | None, background: str, operations: list[str]) -> "Image":
    """Convert to RGB without an alpha channel, and add what was done to ``operations``.

    Raises:
        ImageError: ``fully_transparent``.
    """
    from PIL import ImageChops

    color, alpha = _split_alpha(image)
    if image.mode in _OPERATIONS:
        operations.append(_OPERATIONS[image.mode])
    elif image.mode != "RGB" and alpha is None:
        operations.append("to_rgb")
    rgb = _profile_to_srgb(color, profile, operations) if profile else None
    if rgb is not None:
        pass
    elif color.mode == "LAB":
        rgb = _lab_to_rgb(color)
    else:  # neither the given image nor a second copy, which takes 320 MB for the largest image
        rgb = color if color.mode == "RGB" and color is not image else color.convert("RGB")
    if alpha is None:
        return rgb
    operations.append(f"alpha_on_{background}")
    rgb.paste(paint(background, rgb.size, rgb, alpha), mask=ImageChops.invert(alpha))
    return rgb


def _split_alpha(image: "Image") -> tuple["Image", "Image | None"]:
    """Return the colors (gray stays gray, a palette becomes RGB), and the alpha channel if a pixel is not opaque."""
    if image.mode not in ALPHA_MODES and "transparency" not in image.info:
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


def _profile_to_srgb(image: "Image", profile: bytes, operations: list[str]) -> "Image | None":
    """Convert by an ICC profile. Return None if it is sRGB, or ignored: damaged, or for another color space."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower() and _is_srgb(profile):
            return None
        if source.profile.xcolor_space.strip() == _PROFILE_SPACES.get(image.mode):
            rgb = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            operations.append("icc_to_srgb")
            return rgb
    except (ImageCms.PyCMSError, *PARSER_FAULTS):
        pass
    operations.append("icc_ignored")
    return None


def _is_srgb(profile: bytes) -> bool:
    """Return whether a profile converts as sRGB does, whatever its name says."""
    return (_measure_srgb if len(profile) <= CACHED_PROFILE else _measure_srgb.__wrapped__)(profile)


@lru_cache(32)
def _measure_srgb(profile: bytes) -> bool:
    from PIL import Image, ImageCms

    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    if source.profile.xcolor_space.strip() != "RGB":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
    converted = ImageCms.profileToProfile(Image.fromarray(colors), source, srgb, intent, "RGB")
    return int(np.abs(np.asarray(converted).astype(int) - colors).max()) <= SRGB_TOLERANCE


def _lab_to_rgb(image: "Image") -> "Image":
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted
