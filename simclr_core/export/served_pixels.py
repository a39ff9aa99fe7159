"""Whether what is served from the files themselves is what was trained on: their embeddings are compared.

Training sees an image as ``prepare`` has stored it, a server sees the file. Both go through the same code, so that only
the rounding of the stored image and a store at another size can make a difference.
"""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.shards import ShardedImages
from simclr_core.reports import ServedPixels


def compare_served(embed: Callable[[list[bytes]], NDArray[np.float32]], prepared: Path) -> ServedPixels | None:
    """Embed each file in ``originals`` and its stored image; None if there is no such file.

    Args:
        embed: encoded images to vectors [n, d] of length 1, as they are served.

    Raises:
        ImageError: a file cannot be decoded.
        DatasetError: a stored image cannot be read.
    """
    originals = _read_originals(prepared / "originals")
    stored: dict[str, bytes] = {}
    for split in ("train", "test"):
        images = ShardedImages(prepared / split)
        keys = [bytes.fromhex(sha256) for sha256 in originals]
        found = np.flatnonzero(np.isin(np.ascontiguousarray(images.keys).view("V32").ravel(), np.array(keys, "V32")))
        stored |= {images.key(int(position)): images.read(int(position)) for position in found}
    names = sorted(stored)
    if not names:
        return None
    served = embed([originals[name] for name in names])
    trained = embed([stored[name] for name in names])
    cosines = (served * trained).sum(axis=1)
    return ServedPixels(
        images=len(names),
        cosine_median=round(float(np.median(cosines)), 6),
        cosine_min=round(float(cosines.min()), 6),
        worst=names[int(cosines.argmin())],
    )


def _read_originals(folder: Path) -> dict[str, bytes]:
    """SHA-256 → bytes."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None, f"{path}: {member.name} is not a file"
                found[member.name] = file.read()
    return found
