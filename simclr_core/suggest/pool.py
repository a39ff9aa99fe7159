"""The images that can be chosen, distances between their features, and the rule of one image of each group."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.groups import UNGROUPED, Groups, number_near, representatives
from simclr_core.data.shards import UNLABELED, ShardedImages
from simclr_core.evaluation.images import EvaluationImages

BLOCK = 4096  # rows that are computed on at a time

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """The images that are looked at, and which of them have a label: bool [n]. ``groups`` [n] are equal where images
    show one thing."""

    images: EvaluationImages
    labeled: NDArray[np.bool_]
    groups: NDArray[np.int64]


def open_pool(train: ShardedImages, near: Mapping[str, str]) -> Pool:
    """The labeled images, and of each set of near copies without a label the one with the smallest SHA-256.

    Args:
        near: by SHA-256, the name of the group of near copies, for images that are in one.
    """
    has_label = has_labels(train)
    keys = np.asarray(train.keys)
    first = representatives(keys, [number_near(keys, near)])
    known = np.zeros(len(keys), bool)
    known[first[has_label]] = True  # a copy of it has a label
    alone = (first == np.arange(len(keys))) & ~known
    positions = np.flatnonzero(has_label | alone)
    numbers = np.full(len(train), UNGROUPED, np.int32) if train.groups is None else train.groups
    groups = Groups(numbers).identities(positions)
    labels = train.labels[positions].astype(np.int64)
    images = EvaluationImages(train, positions, labels, keys[positions], groups)
    return Pool(images, has_label[positions], groups)


def has_labels(train: ShardedImages) -> NDArray[np.bool_]:
    """Which images a person has said a label of, or that they have none of the classes: bool [n]."""
    sets = train.label_sets
    found: NDArray[np.bool_] = (
        train.labels != UNLABELED if sets is None else (np.asarray(sets) != UNLABELED).all(axis=1)
    )
    return found


def scale_rows(features: Features) -> Features:
    """Scale each row of ``features`` [n, d] to length 1, in place; a row of zeros stays. Returns them."""
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK]
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        block /= np.where(lengths > 0, lengths, 1)
    return features


def cosine_distances(features: Features, other: Features) -> NDArray[np.float32]:
    """1 - cosine of rows of length 1, [n, d], to a row of length 1, [d]: [n]."""
    return np.concatenate(
        [1 - features[start : start + BLOCK] @ other for start in range(0, max(len(features), 1), BLOCK)]
    )


def first_of_each(ranked: Iterable[int], groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The first ``count`` positions of ``ranked``, of each group one.

    Examples:
        >>> first_of_each([3, 1, 0, 2], np.array([7, 7, 8, 9]), 3).tolist()  # 1 and 0 show one thing
        [3, 1, 2]
    """
    taken, found = set[int](), list[int]()
    for position in ranked:
        if len(found) == count:
            break
        if (group := int(groups[position])) not in taken:
            taken.add(group)
            found.append(int(position))
    return np.array(found, np.int64)
