"""A map of the embeddings: t-SNE (van der Maaten 2014) puts what the encoder finds alike side by side.

Distances are those of kNN: between vectors of length 1 the squared Euclidean distance is 2 (1 - cosine), and a rotation
onto the 50 principal components keeps it. Read islands, not distances between them: t-SNE keeps neighborhoods only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from simclr_core import plots
from simclr_core.data.order import permuted

IMAGES = 2000
MIN_IMAGES = 10
COMPONENTS = 50
PERPLEXITY = 30.0  # of many images; about the number of neighbors that matter to each
ITERATIONS = 500  # half of the library's default, which takes twice as long and parts the demo's classes no better
SPREAD = 1e-6  # below, all vectors are one direction up to rounding
SEED = 0


def save_map(path: Path, features: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Draw ``features`` [n, d] by ``labels`` [n], -1 for none; of many images a fixed sample, of few a note."""
    if len(features) < MIN_IMAGES:
        plots.note(path, f"{len(features)} images are too few for a map; {MIN_IMAGES} or more are needed")
        return
    chosen = np.sort(permuted(SEED, 0, np.arange(min(len(features), IMAGES)), len(features)))
    points = coordinates(features[chosen])
    if points is None:
        plots.note(path, "all embeddings are equal: there is nothing to map")
        return
    title = "Embeddings by t-SNE: islands of one class are good; distances between islands mean nothing"
    plots.scatter(path, points, labels[chosen], classes, title)


def coordinates(features: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """[n, d] to [n, 2], the same for the same input on the same machine; None where all rows have one direction."""
    vectors = features.astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    if vectors.std(axis=0).max() < SPREAD:
        return None
    # Imported here, for it costs every pretraining a second at its start, and most draw no map.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    # Threads would add up in any order. With one, the result does not depend on how many the machine has.
    with threadpool_limits(1):
        components = PCA(min(COMPONENTS, *vectors.shape), svd_solver="full").fit_transform(vectors)
        tsne = TSNE(perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=SEED)
        points: NDArray[np.float32] = tsne.fit_transform(components)
    return points
