"""Which of two encoders is better, without any label: do the neighbors of an image stay when it is augmented?

Two mild views of an image show the same thing. In a good representation both have the same other images around them, in
one that follows brightness or position they do not. Among trained encoders this follows accuracy as well as any number
that needs no label does, and unlike a loss it needs neither the projection head nor a temperature; unlike RankMe it is
known for each image, so that a difference has a standard error (``benchmarks.accuracy.label_free``).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.encoder import Encoder
from deploy.images.full_depth import Samples
from simclr_core.augmentation.augmentations import Augmentation, as_pixels
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.shards import ShardedImages
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.evaluation.knn import nearest
from simclr_core.evaluation_reports import LabelFree

Embeddings = NDArray[np.float32]

MOST_IMAGES = 2000  # a bound on the time: two views each, through both encoders
FEWEST_IMAGES = 50  # of fewer, most are neighbors of each other in any case
NEIGHBORS = 20
CHUNK = 64  # images in memory at a time, as two views each
# The same whatever either encoder was trained with: the one that was trained on weaker views would have it easier.
MILD: dict[str, Any] = {"crop_scale": (0.5, 1.0), "jitter_strength": 0.4, "grayscale": 0.0, "blur": 0.0}


def compare_without_labels(
    encoders: Mapping[str, Encoder], images: ShardedImages, positions: NDArray[np.int64], split: str
) -> LabelFree | None:
    """Both encoders, ``candidate`` and ``champion``, on the images at ``positions``; None if these are fewer than 50.

    Raises:
        DatasetError: an image cannot be decoded.
        NonFiniteFeaturesError: an encoder gives infinities or what is not a number.
    """
    if len(positions) < FEWEST_IMAGES:
        return None
    side = max(encoder.info["preprocessing"]["resize"] for encoder in encoders.values())
    parts: dict[str, list[list[Embeddings]]] = {name: [[], []] for name in encoders}
    for views in draw_views(images, positions, Augmentation(side, **MILD), seed=0):
        for name, encoder in encoders.items():
            for view, vectors in zip(views, parts[name], strict=True):
                vectors.append(encoder.embed(view, batch_size=CHUNK).vectors)
    kept: dict[str, NDArray[np.float64]] = {}
    for name, embedded in parts.items():
        first, second = map(np.concatenate, embedded)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise NonFiniteFeaturesError(f"{name}: embeddings of augmented images are not finite; export another one")
        kept[name] = 100 * kept_neighbors(first, second, NEIGHBORS)
    gains = kept["candidate"] - kept["champion"]
    return LabelFree(
        images=len(positions),
        split=split,
        candidate=round(float(kept["candidate"].mean()), 3),
        champion=round(float(kept["champion"].mean()), 3),
        difference=round(float(gains.mean()), 4),
        standard_error=round(float(gains.std(ddof=1)) / math.sqrt(len(gains)), 4),
    )


def draw_views(
    images: ShardedImages, positions: NDArray[np.int64], augmentation: Augmentation, seed: int
) -> Iterator[tuple[Samples, Samples]]:
    """Two views of each image, [up to 64, s, s, channels] at a time, as deep as the images; the same ones for the same
    seed and positions."""
    source = TrainingImages(images, cache_bytes=0)
    for start in range(0, len(positions), CHUNK):
        chunk = positions[start : start + CHUNK]
        batch = source.batch(chunk)
        views = [ViewDraws(0, augmentation.draws(batch.sizes, seed, 0, chunk, number)) for number in range(2)]
        first, second = (as_pixels(augmentation.ragged_view(batch, view), batch.samples.dtype) for view in views)
        yield first, second


def kept_neighbors(first: Embeddings, second: Embeddings, count: int) -> NDArray[np.float64]:
    """The share of the ``count`` nearest other images that both views of an image have in common: [n], 0..1.

    ``first`` and ``second`` [n, d] are the embeddings of either view; neighbors are found among views of the same kind.
    """
    ours, theirs = (_others(views, count) for views in (first, second))
    shared: NDArray[np.float64] = (ours[:, :, None] == theirs[:, None, :]).any(axis=2).mean(axis=1)
    return shared


def _others(views: Embeddings, count: int) -> NDArray[np.int64]:
    """Positions of the nearest, without the image itself, which need not be the first where there are exact copies."""
    found = nearest(views, views, count + 1)[1].numpy()
    itself = found == np.arange(len(views))[:, None]
    order = np.argsort(itself, axis=1, kind="stable")
    others: NDArray[np.int64] = np.take_along_axis(found, order, axis=1)[:, :count]
    return others
