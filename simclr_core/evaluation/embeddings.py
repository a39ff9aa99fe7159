"""What a served encoder makes of the prepared images: by file, through onnxruntime, a few in memory at a time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.encoder import Encoder
from deploy.errors import ImageError
from simclr_core.data.shards import ShardedImages
from simclr_core.errors import DatasetError, NonFiniteFeaturesError

Positions = Sequence[int] | NDArray[np.int64]

BATCH = 64  # images that onnxruntime gets at a time; only embeddings are kept


def embed(encoder: Encoder, images: ShardedImages, positions: Positions, name: str) -> NDArray[np.float32]:
    """Embeddings of the images at ``positions``: float32 [n, dim], of length 1. ``name`` is the encoder's.

    Raises:
        DatasetError: an image cannot be decoded.
        NonFiniteFeaturesError: the encoder gives infinities or what is not a number.
    """
    vectors = _served(encoder, images, positions, normalize=True)
    if not np.isfinite(vectors).all():
        raise NonFiniteFeaturesError(
            f"{name}: embeddings of the prepared images are not finite; export another encoder"
        )
    return vectors


def raw_features(encoder: Encoder, images: ShardedImages, positions: Positions) -> NDArray[np.float32]:
    """The encoder's output as it is, for a classifier: float32 [n, dim].

    Raises:
        DatasetError: an image cannot be decoded.
    """
    return _served(encoder, images, positions, normalize=False)


def _served(encoder: Encoder, images: ShardedImages, positions: Positions, normalize: bool) -> NDArray[np.float32]:
    files = (images.read(int(position)) for position in positions)
    try:
        parts = [part.vectors for part in encoder.embed_iter(files, BATCH, normalize=normalize)]
    except ImageError as error:
        raise DatasetError(f"prepared images: {error}; restore them with `dvc checkout --force`") from error
    return np.concatenate([np.empty((0, encoder.info["dim"]), np.float32), *parts])
