"""Is the representation worth anything? Numbers that need no label, two that need some, and the judgment "collapsed".

None of them sees the test split: the labels are those of training images, and no weight ever depends on one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize, pdist

from deploy.images.full_depth import Samples
from deploy.images.preprocess import Preprocessing
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.order import permuted
from simclr_core.data.shards import DatasetCard, ShardedImages
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.evaluation.features import evaluating, extract
from simclr_core.evaluation.knn import knn_accuracy
from simclr_core.evaluation.logistic_regression import regularization_path, standardization

# A collapsed network maps every image to one direction. An untrained one has a spread of 0.1 and more, and an effective
# rank of several; below these the average cosine between two images is over 0.9999, or one direction is all there is.
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5

KNN_NEIGHBORS = 20  # few, since only half of the labeled images answer; 200 in Wu et al. 2018
KNN_TEMPERATURE = 0.1
PROBE_L2 = 0.1  # of standardized features; the sweep of linear_eval picks about as much for a thousand labels


class Measured(TypedDict):
    """What ``Monitor.measure`` gives, in this order."""

    knn_top1: float | None
    probe_top1: float | None
    effective_rank: float
    feature_std: float
    effective_rank_z: float
    feature_std_z: float
    alignment: float
    uniformity: float


MEASURED = tuple(Measured.__annotations__)


class Record(Measured):
    """One epoch, a row of reports/pretrain.csv: a plain object of JSON, as checkpoints hold it."""

    epoch: int
    loss: float
    learning_rate: float
    learning_rate_scale: float
    gradient_norm: float


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the two views of an image on the unit sphere, 0..4 (Wang & Isola 2020, alpha = 2)."""
    return float((normalize(first) - normalize(second)).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean Gaussian potential exp(-2 d²) of all pairs (Wang & Isola 2020, t = 2): -8..0, low is uniform."""
    distances = pdist(normalize(features))
    return float(distances.square().mul(-2).exp().mean().log())


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the singular values, 1..min(n, d), of [n, d].

    Examples:
        >>> round(effective_rank(torch.eye(3)), 2)  # three directions, all alike
        3.0
        >>> round(effective_rank(torch.ones(3, 3)), 2)  # every image gives the same features
        1.0
    """
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())


def feature_std(features: Tensor) -> float:
    """Spread on the unit sphere: mean over dimensions of the standard deviation, times sqrt(d). 0: one direction;
    1: spread evenly (after Chen & He 2021, figure 2)."""
    normalized = normalize(features.double())
    return float(normalized.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5)


def collapsed(effective_rank: float, feature_std: float) -> bool:
    """Whether these numbers, of h or of z, are those of a network that tells no two images apart."""
    return effective_rank < COLLAPSED_RANK or feature_std < COLLAPSED_STD


def spread(record: Record) -> dict[str, float]:
    """The numbers that ``is_collapsed`` looks at."""
    return {
        "effective_rank": record["effective_rank"],
        "feature_std": record["feature_std"],
        "effective_rank_z": record["effective_rank_z"],
        "feature_std_z": record["feature_std_z"],
    }


def is_collapsed(record: Record) -> bool:
    """Whether h or z had collapsed at the end of this epoch."""
    rank, std, rank_z, std_z = spread(record).values()
    return collapsed(rank, std) or collapsed(rank_z, std_z)


@dataclass(frozen=True)
class Monitor:
    """Fixed training images on which every epoch is judged, without touching a weight or a random generator.

    ``images`` [m, s, s, channels] as the encoder is served with them, ``labels`` [m] of ``classes`` with -1 for none,
    ``mean`` and ``std`` as for ``features.extract``.
    """

    images: Samples
    labels: NDArray[np.integer]
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]

    def measure(self, encoder: nn.Module, head: nn.Module, first: Tensor, second: Tensor) -> Measured:
        """What watches an epoch.

        ``knn_top1`` and ``probe_top1`` in percent: half of the labeled images are asked about, the other half answers,
        as neighbors or by training a linear classifier; None with fewer than two. Effective rank and spread are those
        of h over ``images``, and of z, h through ``head``. Alignment and uniformity are those of z over the last
        batch: ``first`` and ``second`` [n, d].

        Raises:
            NonFiniteFeaturesError: the weights have run away.
        """
        features = self.features(encoder)
        accuracies = self.accuracies(features)
        h, z = torch.from_numpy(features), _projected(head, features)
        return {
            "knn_top1": accuracies["knn_top1"],
            "probe_top1": accuracies["probe_top1"],
            "effective_rank": effective_rank(h),
            "feature_std": feature_std(h),
            "effective_rank_z": effective_rank(z),
            "feature_std_z": feature_std(z),
            "alignment": alignment(first.float(), second.float()),
            "uniformity": uniformity(first.float()),
        }

    @property
    def judged(self) -> int:
        """How many labeled images are asked about."""
        return len(self._halves()[1])

    def accuracies(self, features: NDArray[np.float32]) -> dict[str, float | None]:
        """Of kNN and a linear classifier on h, as in ``measure``."""
        return {"knn_top1": self._knn_top1(features), "probe_top1": self._probe_top1(torch.from_numpy(features))}

    def features(self, encoder: nn.Module) -> NDArray[np.float32]:
        """h of ``images``: float32 [m, d].

        Raises:
            NonFiniteFeaturesError: the weights have run away.
        """
        features = extract(encoder, self.images, self.mean, self.std)
        if not np.isfinite(features).all():
            raise NonFiniteFeaturesError(
                "the encoder's output has become infinite or not a number; lower pretrain.learning_rate"
            )
        return features

    def _knn_top1(self, features: NDArray[np.float32]) -> float | None:
        bank, queries = self._halves()
        if not len(queries):
            return None
        accuracy = knn_accuracy(
            bank=features[bank],
            bank_labels=self.labels[bank],
            queries=features[queries],
            query_labels=self.labels[queries],
            classes=int(self.labels.max()) + 1,
            neighbors=KNN_NEIGHBORS,
            temperature=KNN_TEMPERATURE,
        )
        return round(accuracy, 3)

    def _probe_top1(self, h: Tensor) -> float | None:
        fitted, judged = self._halves()
        if not len(judged):
            return None
        mean, std = standardization(h)
        inputs, labels = ((h - mean) / std).float(), torch.from_numpy(self.labels.astype(np.int64))
        classes = int(self.labels.max()) + 1
        (classifier,) = regularization_path(inputs[fitted], labels[fitted], classes, [PROBE_L2])
        predicted = classifier.logits(inputs[judged]).argmax(dim=1)
        return round(100 * float((predicted == labels[judged]).double().mean()), 3)

    def _halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labeled images that answer, and those that are asked about."""
        rows = np.flatnonzero(self.labels >= 0)
        return rows[::2], rows[1::2]


def _projected(head: nn.Module, features: NDArray[np.float32]) -> Tensor:
    """z of h [m, d] in evaluation mode, on the CPU. A head without weights is the identity, wherever it is."""
    device = next((parameter.device for parameter in head.parameters()), torch.device("cpu"))
    with evaluating(head):
        z: Tensor = head(torch.from_numpy(features).to(device)).float().cpu()
    return z


def choose_monitor(
    images: ShardedImages, card: DatasetCard, preprocessing: Preprocessing, count: int, seed: int
) -> Monitor:
    """A monitor of up to ``count`` images: labeled ones first, then others, both chosen by the seed."""
    labels = images.labels
    chosen: list[int] = []
    for pool in (np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)):
        slots = np.arange(min(count - len(chosen), len(pool)))
        chosen += pool[permuted(seed, 0, slots, len(pool))].tolist()
    squares = evaluation_images(images, chosen, preprocessing)
    return Monitor(squares, labels[chosen], card.mean, card.std, card.classes)
