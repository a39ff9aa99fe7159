"""Probe: the bytes of one file → the facts about it. Same bytes, same limits, same Pillow: same facts.

Facts are measurements and, at most, the reason why there are no pixels. Whether the image is wanted is for ``verdict``
to say. Runs inside the workers of ``pool``, because the decoder may crash.
"""

import base64
import hashlib
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from deploy.errors import ImageError
from deploy.image_faults import PARSER_FAULTS
from deploy.preprocess import canonicalise, open_image
from pipeline.validation.container import sniff, trailing_bytes
from pipeline.validation.facts import Facts

PROBE_VERSION = 1
"""Goes up with every change that gives some file another row."""

STATISTICS_SIDE = 256  # pixels; larger images are reduced first, so that the numbers of large and small ones compare
THUMBNAIL_SIDE = 80
GPS_BLOCK = 0x8825  # EXIF 2.32, table 3: where the GPS block is found


def probe(data: bytes, max_megabytes: float = 50.0, max_megapixels: float = 80.0) -> dict[str, Any]:
    """The fields of ``Facts``. Decodes the whole image; raises nothing that Pillow raises about damaged files."""
    known: dict[str, Any] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "container": sniff(data),
        "decodes": False,
    }
    try:
        if len(data) > max_megabytes * 1e6:
            raise ImageError("too_large", f"{len(data) / 1e6:.1f} MB; at most {max_megabytes:g} are read")
        if known["container"] == "git_lfs_pointer":
            raise ImageError(
                "io_error", "a Git LFS pointer lies where the image should; run `git lfs pull` at its source"
            )
        image = open_image(data, int(max_megapixels * 1e6))
        known |= _header(image)
        canonical, operations = canonicalise(image)
        known |= {
            "decodes": True,
            "operations": operations,
            "trailing_bytes": _trailing(image, data, known["container"]),
        }
        known |= _metadata(image)
        known |= {"width": canonical.width, "height": canonical.height, "pixel_hash": pixel_hash(canonical)}
        known |= statistics(canonical)
    except ImageError as error:
        known |= {"decodes": False, "reason": error.reason, "message": str(error)}
    return asdict(Facts(**known))


def pixel_hash(image: Image.Image) -> str:
    """128 bits of an RGB image, hexadecimal: equal for the same pixels in the same shape, however they were stored."""
    shape = f"{image.width}x{image.height}:".encode()
    return hashlib.sha256(shape + image.tobytes()).hexdigest()[:32]


def statistics(image: Image.Image) -> dict[str, float | int]:
    """Brightness, contrast, sharpness and colour of an RGB image, from its exact 8-bit histograms."""
    small = image.copy()
    small.thumbnail((STATISTICS_SIDE, STATISTICS_SIDE), Image.Resampling.BILINEAR)
    luma_image = small.convert("L")
    luma, rgb = np.asarray(luma_image, dtype=np.int16), np.asarray(small, dtype=np.int16)
    histogram = np.array(luma_image.histogram())
    cumulative, share = histogram.cumsum(), histogram[histogram > 0] / luma.size
    percentiles = {
        f"luma_p{percent:02}": int(np.searchsorted(cumulative, luma.size * percent / 100))
        for percent in (1, 5, 50, 95, 99)
    }
    means, stds = _moments(np.array(small.histogram()).reshape(3, 256))
    luma_mean, luma_std = _moments(histogram[np.newaxis])
    differences = [np.abs(np.diff(luma, axis=axis)) for axis in (0, 1)]
    numbers = {
        "luma_mean": luma_mean[0],
        "luma_std": luma_std[0],
        "entropy": -(share * np.log2(share)).sum(),
        "edge_energy": sum(int(each.sum()) for each in differences) / max(1, sum(each.size for each in differences)),
        "saturation": (rgb.max(axis=2) - rgb.min(axis=2)).mean(),
    }
    numbers |= {f"{channel}_mean": value for channel, value in zip(("red", "green", "blue"), means, strict=True)}
    numbers |= {f"{channel}_std": value for channel, value in zip(("red", "green", "blue"), stds, strict=True)}
    return percentiles | {name: round(float(value), 4) + 0.0 for name, value in numbers.items()}  # + 0.0: no -0.0


def thumbnail(data: bytes, max_megapixels: float = 80.0) -> dict[str, Any] | None:
    """Reduced pixels for ``thumbnails.read``; None when there are none. A damaged file shows what it has."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image, _ = canonicalise(open_image(data, int(max_megapixels * 1e6)))
    except ImageError:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    return {"size": image.size, "rgb": base64.b64encode(image.tobytes()).decode()}


def _header(image: Image.Image) -> dict[str, Any]:
    return {
        "format": "JPEG" if image.format == "MPO" else image.format,
        "mode": image.mode,
        "width": image.width,
        "height": image.height,
        "frames": _frames(image),
        "has_alpha": image.has_transparency_data,
        "has_icc_profile": "icc_profile" in image.info,
    }


def _frames(image: Image.Image) -> int:
    if image.format == "MPO":
        return 1  # a phone's JPEG: what follows is a preview or the other eye
    try:
        return int(getattr(image, "n_frames", 1))
    except PARSER_FAULTS:
        return 1  # damaged behind the first frame, which canonicalise will judge


def _metadata(image: Image.Image) -> dict[str, bool]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            has_gps = bool(_exif(image).get_ifd(GPS_BLOCK))
        except PARSER_FAULTS:
            return {"has_gps": False, "exif_unreadable": True}
    return {"has_gps": has_gps, "exif_unreadable": bool(caught)}


def _exif(image: Image.Image) -> Image.Exif:
    """Parsed anew where that is possible, for the warnings: Pillow reads the block of a JPEG while opening it."""
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        return image.getexif()
    exif = Image.Exif()
    exif.load(block)
    return exif


def _trailing(image: Image.Image, data: bytes, container: str) -> int | None:
    return 0 if image.format == "MPO" else trailing_bytes(data, container)


def _moments(histograms: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the levels in each histogram [n, 256]."""
    levels, pixels = np.arange(256), histograms.sum(axis=1)
    means = histograms @ levels / pixels
    variances = histograms @ levels**2 / pixels - means**2
    return means.tolist(), np.sqrt(np.maximum(variances, 0)).tolist()
