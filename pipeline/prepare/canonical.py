"""What an accepted raw file becomes: upright, RGB, 8 bit, short side bounded as serving resizes, no metadata.

With ``prepare.channels`` it becomes that number of channels of 16 bits, stored as an array. Small images are stored as
PNG, so that nothing is lost; larger ones as JPEG without chroma subsampling.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deploy.errors import ImageError
from deploy.images.background import letterbox
from deploy.images.full_depth import Samples, open_full_depth
from deploy.images.npy import array_bytes
from deploy.images.preprocess import LOSSES, MOST_PIXELS, canonicalize, open_image, reduce, reduce_samples
from pipeline.config import PrepareConfig
from pipeline.errors import GateError
from simclr_core.data.shard_writing import portions
from simclr_core.data.shards import Sample

LOSSLESS_UP_TO = 128  # pixels of the longer side; below it PNG costs little, and 8-pixel JPEG blocks would be large
DECODE_BYTES = 64_000_000  # raw bytes handed to the threads at a time; bounds memory
RESTORE = "restore it with `dvc checkout data/raw.dvc`, or validate again with `simclr quarantine rescan --all`"


@dataclass(frozen=True)
class StoredForm:
    """What decides the stored bytes besides those of the file: parameters, and the shorter side in pixels."""

    params: PrepareConfig
    short_side: int

    @property
    def facts(self) -> dict[str, object]:
        """By name, for a digest."""
        names = ("background", "letterbox", "channels", "jpeg_quality", "shard_megabytes")
        return {name: getattr(self.params, name) for name in names} | {"short_side": self.short_side}


def convert(
    contents: Iterable[tuple[str, bytes]], operations: Mapping[str, Sequence[str]], form: StoredForm
) -> Iterator[tuple[Sample, Samples]]:
    """Decode and encode contents (SHA-256, bytes) in their order, on all cores.

    Args:
        operations: SHA-256 → what validation has recorded that is done to the content.

    Returns:
        Each as it is stored, and its pixels [height, width, channels] before they were coded.

    Raises:
        GateError: a content is not what was validated.
    """

    def one(item: tuple[str, bytes]) -> tuple[Sample, Samples]:
        sha256, data = item
        image = _replay(sha256, data, operations[sha256], form.params)
        extension, encoded, pixels = store(image, form.short_side, form.params)
        return Sample(sha256, extension, encoded), pixels

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # Pillow's codecs release the GIL
        for portion in portions(contents, DECODE_BYTES, size=lambda item: len(item[1])):
            yield from threads.map(one, portion)


def canonical(data: bytes, params: PrepareConfig) -> tuple[Image.Image | Samples, list[str]]:
    """An RGB image, or the samples of one with a number of channels, uint16 [height, width, channels]; and what was
    done to those of the file. How large is too large was decided by validate.

    Raises:
        ImageError: the file cannot be decoded.
    """
    if params.channels is not None:
        return open_full_depth(data, params.channels, MOST_PIXELS).read()
    return canonicalize(open_image(data, MOST_PIXELS), params.background)


def store(image: Image.Image | Samples, short_side: int, params: PrepareConfig) -> tuple[str, bytes, Samples]:
    """How a canonical image is stored: the extension of its file, the bytes, and the pixels in them before coding."""
    if not isinstance(image, Image.Image):
        samples = reduce_samples(image.astype(np.uint16, copy=False), short_side)
        return "npy", array_bytes(samples), samples
    small = resize(image, short_side, params)
    return *encode(small, params.jpeg_quality), np.asarray(small)


def resize(image: Image.Image, short_side: int, params: PrepareConfig) -> Image.Image:
    """Bound the sides of a canonical image as ``Preprocessing`` does before it crops."""
    return letterbox(image, short_side, params.background) if params.letterbox else reduce(image, short_side)


def encode(image: Image.Image, quality: int) -> tuple[str, bytes]:
    """The extension of an image's file, and its bytes."""
    content = io.BytesIO()
    if max(image.size) <= LOSSLESS_UP_TO:
        image.save(content, "PNG", compress_level=6)
        return "png", content.getvalue()
    image.save(content, "JPEG", quality=quality, subsampling="4:4:4")
    return "jpg", content.getvalue()


def require_ingested(sha256: str, data: bytes) -> None:
    """Raise GateError if the bytes in data/raw are not those that were ingested."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise GateError(f"data/raw: {sha256[:12]} differs from the bytes that were ingested; {RESTORE}")


def _replay(sha256: str, data: bytes, operations: Sequence[str], params: PrepareConfig) -> Image.Image | Samples:
    """The canonical image, made by the operations that validation has recorded for these very bytes."""
    require_ingested(sha256, data)
    try:
        image, done = canonical(data, params)
    except ImageError as error:
        raise GateError(
            f"{sha256[:12]}: was validated as {_named(operations)}, and is refused now: {error}; {RESTORE}"
        ) from error
    if _changes(done) != _changes(operations):
        raise GateError(f"{sha256[:12]}: was validated as {_named(operations)}, is read as {_named(done)}; {RESTORE}")
    return image


def _named(operations: Sequence[str]) -> str:
    return ", ".join(operations) or "the pixels as they are"


def _changes(operations: Sequence[str]) -> list[str]:
    return [operation for operation in operations if operation not in LOSSES]
