"""Is the representation worth anything? Numbers that need no label, two that need some, and the judgment "collapsed".

None of them sees the test split: the labels are those of training images, and no weight ever depends on one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize, pdist

from deploy.images.full_depth import Samples
from deploy.images.preprocess import Preprocessing
from deploy.images.preview import preview
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.label_sets import describe, join
from simclr_core.data.order import permuted
from simclr_core.data.shards import UNLABELED, DatasetCard, ShardedImages
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.evaluation.features import encode, evaluating, gather_rows, own_rows
from simclr_core.evaluation.knn import knn_accuracy
from simclr_core.evaluation.logistic_regression import CHOOSING_TOLERANCE, regularization_path
from simclr_core.evaluation.multi_label.classifiers import vote
from simclr_core.evaluation.multi_label.precision import exact_precision
from simclr_core.evaluation.regression.standardized import standardization
from simclr_core.launch import Member

# A collapsed network maps every image to one direction. An untrained one has a spread of 0.1 and more, and an effective
# rank of several; below these the average cosine between two images is over 0.9999, or one direction is all there is.
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5

KNN_NEIGHBORS = 20  # few, since only half of the labeled images answer; 200 in Wu et al. 2018
KNN_TEMPERATURE = 0.1
THUMBNAIL_SIDE = 32  # pixels: 2,000 images are a picture of 45 x 45; browsers take 8,192 pixels a side
ALONE = Member(0, 1, torch.device("cpu"))
NO_LABEL = "no label"
PROBE_L2 = 0.1  # of standardized features; the sweep of linear_eval picks about as much for a thousand labels
PROBE_TOLERANCE = CHOOSING_TOLERANCE  # near enough to watch: a look at a thousand classes takes half the passes


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
    """The epochs from one look at the features to the next, a row of reports/pretrain.csv: a plain object of JSON, as
    checkpoints hold it. ``epoch`` is the last of them."""

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

    They are the roots of the eigenvalues of the smaller Gram matrix, in float64; those that rounding alone could give
    are zero.

    Examples:
        >>> round(effective_rank(torch.eye(3)), 2)  # three directions, all alike
        3.0
        >>> round(effective_rank(torch.ones(3, 3)), 2)  # every image gives the same features
        1.0
    """
    rows = features.double()
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram)
    noise = values[-1] * max(rows.shape) * torch.finfo(torch.float64).eps
    singular = torch.where(values > noise, values, 0).sqrt()
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
    """Fixed training images by which the features are judged, without touching a weight or a random generator.

    ``labels`` [m] are of ``classes``, with -1 for none; ``images`` [n, s, s, channels] those of them that this process
    looks at (``own_rows``), as the encoder is served with them; ``mean`` and ``std`` as for ``features.encode``.
    ``pictures`` are small ones of all, for people, where the images are shared among processes. Where an image may have
    several labels, ``sets`` int8 [m, classes] has them, with -1 in the rows of unlabeled images, and ``labels`` none.
    ``of_head``: whether z is judged as well; logits of two classes differ in one direction, and have not collapsed.
    """

    images: Samples
    labels: NDArray[np.integer]
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]
    member: Member = ALONE
    pictures: NDArray[np.uint8] | None = None
    sets: NDArray[np.int8] | None = None
    of_head: bool = True

    def measure(self, h: Tensor, head: nn.Module, first: Tensor, second: Tensor) -> Measured:
        """What a look at the features tells; ``h`` [m, d] are the features of all images; it is computed on
        their device.

        ``knn_top1`` and ``probe_top1`` in percent: half of the labeled images are asked about, the other half answers,
        as neighbors or by training a linear classifier; None with fewer than two. Where an image may have several
        labels, both are mean average precisions. Effective rank and spread are those of h, and of z, h through
        ``head``, or of h again without ``of_head``. Alignment and uniformity are those of z over this process's part of
        the last batch: ``first`` and ``second`` [n, d].
        """
        accuracies, z = self.accuracies(h), _projected(head, h) if self.of_head else h
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
    def names(self) -> list[str]:
        """The label of each image, or its labels, for people."""
        if self.sets is None:
            return [self.classes[label] if label >= 0 else NO_LABEL for label in self.labels.tolist()]
        named = (
            None if UNLABELED in row else join(name for name, has in zip(self.classes, row, strict=True) if has)
            for row in self.sets.tolist()
        )
        return [NO_LABEL if one is None else describe(one) for one in named]

    @property
    def judged(self) -> int:
        """How many labeled images are asked about."""
        return len(self._halves()[1])

    def accuracies(self, h: Tensor) -> dict[str, float | None]:
        """Of kNN and a linear classifier on h, as in ``measure``."""
        if self.sets is not None:
            return self._precisions(h, self.sets == 1)
        return {"knn_top1": self._knn_top1(h), "probe_top1": self._probe_top1(h)}

    def features(self, encoder: nn.Module) -> Tensor:
        """h of all images, float32 [m, d] on the encoder's device; every process calls this at once.

        Raises:
            NonFiniteFeaturesError: the weights have run away; on every process.
        """
        features = gather_rows(encode(encoder, self.images, self.mean, self.std), len(self.labels), self.member)
        if not features.isfinite().all():
            raise NonFiniteFeaturesError(
                "the encoder's output has become infinite or not a number; lower pretrain.learning_rate"
            )
        return features

    def _knn_top1(self, h: Tensor) -> float | None:
        bank, queries = self._halves()
        if not len(queries):
            return None
        accuracy = knn_accuracy(
            bank=h[bank],
            bank_labels=self.labels[bank],
            queries=h[queries],
            query_labels=self.labels[queries],
            classes=int(self.labels.max()) + 1,
            neighbors=KNN_NEIGHBORS,
            temperature=KNN_TEMPERATURE,
        )
        return round(accuracy, 3)

    def _probe_top1(self, h: Tensor) -> float | None:
        judged = self._halves()[1]
        if not len(judged):
            return None
        labels = torch.from_numpy(self.labels.astype(np.int64)).to(h.device)
        predicted = self._probe_logits(h, labels, int(self.labels.max()) + 1).argmax(dim=1)
        return round(100 * float((predicted == labels[judged]).double().mean()), 3)

    def _precisions(self, h: Tensor, sets: NDArray[np.bool_]) -> dict[str, float | None]:
        bank, queries = self._halves()
        if not sets[queries].any():
            return {"knn_top1": None, "probe_top1": None}
        features = h.cpu().numpy()
        votes = vote(features[bank], sets[bank], features[queries], KNN_NEIGHBORS, KNN_TEMPERATURE)
        logits = self._probe_logits(h, torch.from_numpy(sets).to(h.device), sets.shape[1]).cpu().numpy()
        knn, probe = (round(100 * exact_precision(one, sets[queries]), 3) for one in (votes, logits))
        return {"knn_top1": knn, "probe_top1": probe}

    def _probe_logits(self, h: Tensor, labels: Tensor, classes: int) -> Tensor:
        """What a linear classifier says of the images that are asked about: [q, classes]."""
        fitted, judged = self._halves()
        mean, std = standardization(h)
        inputs = ((h - mean) / std).float()
        (classifier,) = regularization_path(inputs[fitted], labels[fitted], classes, [PROBE_L2], PROBE_TOLERANCE)
        return classifier.logits(inputs[judged])

    def _halves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labeled images that answer, and those that are asked about."""
        known = self.labels >= 0 if self.sets is None else (self.sets >= 0).all(axis=1)
        rows = np.flatnonzero(known)
        return rows[::2], rows[1::2]


def _projected(head: nn.Module, h: Tensor) -> Tensor:
    """z of h [m, d] in evaluation mode."""
    with evaluating(head):
        z: Tensor = head(h).float()
    return z


def choose_monitor(
    images: ShardedImages,
    card: DatasetCard,
    preprocessing: Preprocessing,
    count: int,
    seed: int,
    member: Member = ALONE,
) -> Monitor:
    """A monitor of up to ``count`` images: labeled ones first, then others, both chosen by the seed. Every process of a
    group decodes and keeps its own; all of them call this at once."""
    labels, sets = images.labels, images.label_sets
    known = labels >= 0 if sets is None else (sets >= 0).all(axis=1)
    chosen: list[int] = []
    for pool in (np.flatnonzero(known), np.flatnonzero(~known)):
        slots = np.arange(min(count - len(chosen), len(pool)))
        chosen += pool[permuted(seed, 0, slots, len(pool))].tolist()
    squares = evaluation_images(images, np.array(chosen, np.int64)[own_rows(len(chosen), member)], preprocessing)
    pictures = None if member.size == 1 else _gather_pictures(squares, len(chosen), member)
    known_sets = None if sets is None else sets[chosen]
    return Monitor(squares, labels[chosen], card.mean, card.std, card.classes, member, pictures, known_sets)


def _gather_pictures(images: Samples, count: int, member: Member) -> NDArray[np.uint8]:
    own = torch.from_numpy(thumbnails(images)).to(member.device)
    return gather_rows(own, count, member).cpu().numpy()


def thumbnails(images: Samples) -> NDArray[np.uint8]:
    """Pictures for people of [n, s, s, channels]: [n, t, t, 3], t = min(s, 32)."""
    side = min(THUMBNAIL_SIDE, images.shape[1])
    shown = np.empty((len(images), side, side, 3), np.uint8)
    for tile, image in zip(shown, images, strict=True):
        tile[:] = Image.fromarray(preview(image)).resize((side, side), Image.Resampling.BOX)
    return shown
