"""Is the representation worth anything? Numbers that need no label, and the decision that a run has collapsed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize, pdist

from deploy.preprocess import Preprocessing
from simclr_core.dataset import evaluation_images
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.features import extract
from simclr_core.knn import knn_accuracy
from simclr_core.order import permuted
from simclr_core.shards import DatasetCard, ShardedImages

# A collapsed network maps every image to one direction. An untrained one has a spread of 0.1 and more, and an effective
# rank of several; below these the average cosine between two images is over 0.9999, or one direction is all there is.
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5

MEASURED = ("knn_top1", "effective_rank", "feature_std", "alignment", "uniformity")
KNN_NEIGHBOURS = 20  # few, since only half of the labelled images answer; 200 in Wu et al. 2018
KNN_TEMPERATURE = 0.1


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the two views of an image on the unit sphere, 0..4 (Wang & Isola 2020, alpha = 2)."""
    return float((normalize(first) - normalize(second)).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean Gaussian potential exp(-2 d²) of all pairs (Wang & Isola 2020, t = 2): -8..0, low is uniform."""
    distances = pdist(normalize(features))
    return float(distances.square().mul(-2).exp().mean().log())


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the singular values, 1..min(n, d), of [n, d]."""
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())


def feature_std(features: Tensor) -> float:
    """Spread on the unit sphere: mean over dimensions of the standard deviation, times sqrt(d). 0: one direction;
    1: spread evenly (after Chen & He 2021, figure 2)."""
    normalised = normalize(features.double())
    return float(normalised.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def collapsed(effective_rank: float, feature_std: float) -> bool:
    """Whether these numbers, of h, are those of a network that tells no two images apart."""
    return effective_rank < COLLAPSED_RANK or feature_std < COLLAPSED_STD


@dataclass(frozen=True)
class Monitor:
    """Fixed training images on which every epoch is judged, without touching a weight or a random generator.

    ``images`` uint8 [m, s, s, 3], ``labels`` [m] with -1 for none, ``mean`` and ``std`` as for ``features.extract``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer]
    mean: Sequence[float]
    std: Sequence[float]

    def measure(self, encoder: nn.Module, first: Tensor, second: Tensor) -> dict[str, float | None]:
        """The numbers named MEASURED.

        ``knn_top1`` in percent: half of the labelled images ask, half answer; None with fewer than two. Effective rank
        and spread are those of h over ``images``, alignment and uniformity of z: ``first`` and ``second`` [n, d].

        Raises:
            NonFiniteFeaturesError: the weights have run away.
        """
        features = extract(encoder, self.images, self.mean, self.std)
        if not np.isfinite(features).all():
            raise NonFiniteFeaturesError(
                "the encoder's output has become infinite or not a number; lower pretrain.learning_rate"
            )
        h = torch.from_numpy(features)
        return {
            "knn_top1": self._knn_top1(features),
            "effective_rank": effective_rank(h),
            "feature_std": feature_std(h),
            "alignment": alignment(first.float(), second.float()),
            "uniformity": uniformity(first.float()),
        }

    def _knn_top1(self, features: NDArray[np.float32]) -> float | None:
        rows = np.flatnonzero(self.labels >= 0)
        bank, queries = rows[::2], rows[1::2]
        if not len(queries):
            return None
        classes = int(self.labels.max()) + 1
        votes = (features[bank], self.labels[bank], features[queries], self.labels[queries], classes)
        return round(knn_accuracy(*votes, neighbours=KNN_NEIGHBOURS, temperature=KNN_TEMPERATURE), 3)


def choose_monitor(
    images: ShardedImages, card: DatasetCard, preprocessing: Preprocessing, count: int, seed: int
) -> Monitor:
    """A monitor of up to ``count`` images: labelled ones first, then others, both chosen by the seed."""
    labels = images.labels
    chosen: list[int] = []
    for pool in (np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)):
        slots = np.arange(min(count - len(chosen), len(pool)))
        chosen += pool[permuted(seed, 0, slots, len(pool))].tolist()
    return Monitor(evaluation_images(images, chosen, preprocessing), labels[chosen], card.mean, card.std)
