"""Probe: the bytes of one file → the facts about it. Same bytes, same limits, same Pillow: same facts.

Facts are measurements and, at most, the reason why there are no pixels. Whether the image is wanted is for ``verdict``
to say. Runs inside the workers of ``pool``, because the decoder may crash.
"""

import base64
import hashlib
import warnings
from bisect import bisect_left
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFile, TiffImagePlugin

from deploy.errors import ImageError
from deploy.images import heif, tiff_channels
from deploy.images.background import WHITE
from deploy.images.full_depth import open_full_depth, read_full_depth, resize_samples
from deploy.images.image_faults import PARSER_FAULTS, naming_faults
from deploy.images.preprocess import MOST_PIXELS, canonicalize, open_image
from deploy.images.preview import preview, summary
from deploy.images.tiff_layout import has_pages
from deploy.moved import keep_callable
from pipeline.validation.probe.checksums import check
from pipeline.validation.probe.container import sniff, trailing_bytes
from pipeline.validation.probe.facts import Facts
from pipeline.validation.probe.hashes import perceptual_hashes, pixel_hash, sample_hash, sketch
from pipeline.validation.probe.jpeg_stream import stream_fault

keep_callable(__name__)

PROBE_VERSION = 6
"""Goes up with every change that gives some file another row."""

FULL_DEPTH_VERSION = 2
"""Goes up as PROBE_VERSION does, of images with a number of channels alone."""

STATISTICS_SIDE = 256  # pixels; larger images are reduced first, so that the numbers of large and small ones compare
PERCENTILES = np.array([1, 5, 50, 95, 99])
THUMBNAIL_SIDE = 80
MID_GRAY, GRAY_TOLERANCE = 128, 2  # levels: what libjpeg fills missing blocks with, and what saving it again may change
ORIENTATION, BITS_PER_SAMPLE = 274, 258  # TIFF 6.0
GPS_BLOCK = 0x8825  # EXIF 2.32, table 3: where the GPS block is found


def probe(
    data: bytes,
    max_megabytes: float = 50.0,
    max_megapixels: float = 80.0,
    background: str = WHITE,
    channels: int | None = None,
) -> dict[str, Any]:
    """The fields of ``Facts``. Decodes the whole image; no damage to a file makes it raise, only a lack of memory."""
    known: dict[str, Any] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "container": "unknown" if channels is None and sniff(data) == "npy" else sniff(data),
        "decodes": False,
    }
    try:
        if len(data) > max_megabytes * 1e6:
            raise ImageError("too_large", f"{len(data) / 1e6:.1f} MB; at most {max_megabytes:g} are read")
        if known["container"] == "git_lfs_pointer":
            raise ImageError("io_error", "a Git LFS pointer is in place of the image; run `git lfs pull` at its source")
        if channels is not None:
            return dict(vars(Facts(**(known | _full_depth(data, channels, int(max_megapixels * 1e6))))))
        image = open_image(data, int(max_megapixels * 1e6))
        with naming_faults(data):
            known |= _header(image, data)
        canonical, operations = canonicalize(image, background)
        check(image, data)
        known |= {
            "decodes": True,
            "operations": operations,
            "trailing_bytes": _trailing(image, data, known["container"]),
            "stream_fault": stream_fault(data) if known["container"] == "jpeg" else None,
        }
        known = _metadata(image, data) | known  # of a TIFF, the orientation is known already
        known |= _measurements(canonical)
    except ImageError as error:
        message = str(error)
        if error.reason == "bomb" and "over the limit of" in message:
            if error.__cause__ is None:
                message += (
                    f", or raise validate.max_megapixels from {max_megapixels:g} to at most {MOST_PIXELS / 1e6:g}"
                )
            else:  # Pillow's own limit
                message += f"; no setting of validate.max_megapixels reads more than {MOST_PIXELS / 1e6:g}"
        if message in (heif.ADVICE, tiff_channels.ADVICE):
            message += "; then `simclr quarantine rescan`"
        known |= {"decodes": False, "reason": error.reason, "message": message}
    return dict(vars(Facts(**known)))


def reduced(image: Image.Image) -> Image.Image:
    """The image at no more than 256 pixels a side."""
    small = image.copy()
    small.thumbnail((STATISTICS_SIDE, STATISTICS_SIDE), Image.Resampling.BILINEAR)
    return small


def statistics(image: Image.Image, luma: Image.Image) -> dict[str, float | int]:
    """Brightness, contrast, sharpness and color of an RGB image and its gray one, from exact 8-bit histograms."""
    histogram, pixels = np.array(luma.histogram()), luma.width * luma.height
    share = histogram[histogram > 0] / pixels
    percentiles = np.searchsorted(histogram.cumsum(), pixels * PERCENTILES / 100).tolist()
    means, stds = _moments(np.array(image.histogram()).reshape(3, 256))
    luma_mean, luma_std = _moments(histogram[np.newaxis])
    red, green, blue = image.split()
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    smallest = ImageChops.darker(ImageChops.darker(red, green), blue)
    numbers = {
        "luma_mean": luma_mean[0],
        "luma_std": luma_std[0],
        "entropy": -(share * np.log2(share)).sum(),
        "edge_energy": _edge_energy(luma),
        "saturation": np.asarray(ImageChops.subtract(largest, smallest)).mean(),
    }
    numbers |= {f"{channel}_mean": value for channel, value in zip(("red", "green", "blue"), means, strict=True)}
    numbers |= {f"{channel}_std": value for channel, value in zip(("red", "green", "blue"), stds, strict=True)}
    levels = {f"luma_p{percent:02}": level for percent, level in zip(PERCENTILES, percentiles, strict=True)}
    return levels | {name: round(float(value), 4) + 0.0 for name, value in numbers.items()}  # + 0.0: no -0.0


def flat_tail(image: Image.Image) -> float:
    """The share of an RGB image's height, from below, of which every pixel is mid gray; 0 if there is nothing else."""
    width, height = image.size

    def is_gray(rows: int) -> bool:
        extrema = image.crop((0, height - rows, width, height)).getextrema()
        return all(MID_GRAY - GRAY_TOLERANCE <= level <= MID_GRAY + GRAY_TOLERANCE for level in np.ravel(extrema))

    if not is_gray(1):
        return 0.0
    rows = bisect_left(range(1, height + 1), True, key=lambda rows: not is_gray(rows))
    return rows / height if rows < height else 0.0


def thumbnail(
    data: bytes, max_megapixels: float = 80.0, background: str = WHITE, channels: int | None = None
) -> dict[str, Any] | None:
    """Reduced pixels for ``thumbnails.read``; None when there are none. A damaged file shows what it has."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        if channels is not None:
            image = Image.fromarray(preview(read_full_depth(data, channels, int(max_megapixels * 1e6))))
        else:
            image, _ = canonicalize(open_image(data, int(max_megapixels * 1e6)), background)
    except ImageError:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    return {"size": image.size, "rgb": base64.b64encode(image.tobytes()).decode()}


def _full_depth(data: bytes, channels: int, max_pixels: int) -> dict[str, Any]:
    """What the facts say of an image at full depth; statistics are those of its ``summary``, an RGB image."""
    opened = open_full_depth(data, channels, max_pixels)
    samples, operations = opened.read()
    if opened.picture:
        check(opened.picture, data)
    container = sniff(data)
    height, width = samples.shape[:2]
    scale = min(1.0, STATISTICS_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(summary(samples if scale == 1 else resize_samples(samples, size)))
    return {
        "decodes": True,
        "format": opened.format,
        "mode": opened.mode,
        "bit_depth": opened.bits,
        "frames": opened.frames,
        "has_alpha": False,
        "has_icc_profile": "icc_ignored" in operations,
        "operations": operations,
        "trailing_bytes": trailing_bytes(data, container) if opened.picture else 0,
        "stream_fault": stream_fault(data) if container == "jpeg" else None,
        "has_gps": False,
        "exif_unreadable": False,
        "exif_orientation": 1,
        **(_metadata(opened.picture, data) if opened.picture else {}),
        "width": width,
        "height": height,
        "flat_tail": 0.0,
        "pixel_hash": sample_hash(samples),
        **_looks(small, min(height, width)),
    }


def _header(image: Image.Image, data: bytes) -> dict[str, Any]:
    known = {
        "format": "JPEG" if image.format == "MPO" else image.format,
        "mode": image.mode,
        "bit_depth": _bit_depth(image, data),
        "width": image.width,
        "height": image.height,
        "frames": _frames(image, data),
        "has_alpha": image.has_transparency_data,
        "has_icc_profile": "icc_profile" in image.info,
    }
    # Pillow turns a TIFF while loading it and then forgets the tag; of a PNG, asking now would decode it.
    return known | ({"exif_orientation": _orientation(image)} if image.format == "TIFF" else {})


def _bit_depth(image: Image.Image, data: bytes) -> int:
    """Of one channel, or of an index into a palette."""
    match image.format:
        case "PNG":
            return data[data.index(b"IHDR") + 12]
        case "TIFF":
            assert isinstance(image, TiffImagePlugin.TiffImageFile)
            return int(image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0])  # Pillow opens none whose channels differ
        case "BMP":
            old = int.from_bytes(data[14:18], "little") == 12  # BITMAPCOREHEADER
            pixel = int.from_bytes(data[24:26] if old else data[28:30], "little")
            return 5 if pixel == 16 else min(pixel, 8)
        case "AVIF" | "HEIF":
            return heif.bit_depth(data)
    return 8  # GIF and WebP always; of JPEG, Pillow opens nothing else


def _frames(image: Image.Image, data: bytes) -> int:
    if image.format == "MPO":
        return 1  # a phone's JPEG: what follows is a preview or the other eye
    if image.format == "TIFF" and not has_pages(BytesIO(data)):
        return 1  # what follows are reduced copies: overviews, previews
    with warnings.catch_warnings(action="ignore"):
        try:
            return int(getattr(image, "n_frames", 1))
        except PARSER_FAULTS:
            return 1  # damaged behind the first frame, which canonicalize will judge


def _metadata(image: Image.Image, data: bytes) -> dict[str, bool | int]:
    known: dict[str, bool | int] = {"exif_orientation": _orientation(image)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            has_gps = bool(_exif(image, data).get_ifd(GPS_BLOCK))
        except PARSER_FAULTS:
            return known | {"has_gps": False, "exif_unreadable": True}
    return known | {"has_gps": has_gps, "exif_unreadable": bool(caught)}


def _orientation(image: Image.Image) -> int:
    with warnings.catch_warnings(action="ignore"):
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
        except PARSER_FAULTS:
            return 1
    return orientation if orientation in range(1, 9) else 1


def _exif(image: Image.Image, data: bytes) -> Image.Exif:
    """Parsed again where that is possible, for the warnings: Pillow reads that of a JPEG or TIFF while opening it."""
    if image.format == "TIFF":
        fresh = TiffImagePlugin.TiffImageFile(BytesIO(data))
        fresh.seek(fresh.n_frames - 1)  # through the directories of all pages; a torn one leads to nowhere
        fresh.seek(0)
        return fresh.getexif()
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        return image.getexif()
    exif = Image.Exif()
    exif.load(block)
    return exif


def _trailing(image: Image.Image, data: bytes, container: str) -> int | None:
    return 0 if image.format == "MPO" else trailing_bytes(data, container)


def _measurements(image: Image.Image) -> dict[str, Any]:
    small = reduced(image)
    return {
        "width": image.width,
        "height": image.height,
        "flat_tail": round(flat_tail(image), 4),
        "pixel_hash": pixel_hash(image),
        **_looks(small, min(image.size)),
    }


def _looks(small: Image.Image, short_side: int) -> dict[str, Any]:
    """Of an RGB image, reduced from one of this shorter side."""
    luma = small.convert("L")
    return {"sketch": sketch(small), **perceptual_hashes(luma, short_side), **statistics(small, luma)}


def _edge_energy(luma: Image.Image) -> float:
    levels = np.asarray(luma, dtype=np.int16)
    differences = [np.abs(np.diff(levels, axis=axis)) for axis in (0, 1)]
    return sum(int(each.sum()) for each in differences) / max(1, sum(each.size for each in differences))


def _moments(histograms: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the levels in each histogram [n, 256]."""
    levels, pixels = np.arange(256), histograms.sum(axis=1)
    means = histograms @ levels / pixels
    variances = histograms @ levels**2 / pixels - means**2
    return means.tolist(), np.sqrt(np.maximum(variances, 0)).tolist()
