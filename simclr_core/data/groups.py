"""Groups: images of one thing, such as a patient, a part or a video, which are positives of each other.

Multi-instance contrastive learning (MICLe: Azizi et al. 2021, "Big self-supervised models advance medical image
classification", arXiv 2101.05224): the second view is of another image of the group, so that the features keep what
these images share, and lose what tells them apart. An image without a group counts as a group of one.

Which image that is, is a function of seed, epoch and image, as every other draw is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.plural import counted
from simclr_core.data.order import uniform

UNGROUPED = -1
PARTNER_VIEW = 2**32 + 1  # no view of an image has this number: the partners have their own draws


class Groups:
    """Groups of the images of a split: ``numbers`` int32 [images], UNGROUPED where an image has none.

    Examples:
        >>> groups = Groups(np.array([0, 1, 0, -1], np.int32))
        >>> groups.partners(seed=0, epoch=0, positions=np.arange(4)).tolist()  # image 1 is alone in its group
        [2, 1, 0, 3]
        >>> groups.identities(np.arange(4)).tolist()
        [0, 1, 0, -4]
        >>> str(groups)
        '2 images of 1 group'
    """

    def __init__(self, numbers: NDArray[np.int32]) -> None:
        self._identities = np.where(numbers == UNGROUPED, -1 - np.arange(len(numbers)), numbers)
        self._members = np.argsort(self._identities, kind="stable")  # group by group
        _, first, group, sizes = np.unique(
            self._identities[self._members], return_index=True, return_inverse=True, return_counts=True
        )
        self._places = np.argsort(self._members)  # of each image among the members
        self._starts = first[group][self._places]  # of its group
        self._sizes = sizes[group][self._places]

    def __str__(self) -> str:
        grouped = self._sizes > 1
        groups = len(np.unique(self._identities[grouped]))
        return f"{counted(int(grouped.sum()), 'image')} of {counted(groups, 'group')}"

    @property
    def largest(self) -> int:
        """Images of the largest group."""
        return int(self._sizes.max(initial=0))

    def identities(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: equal where images are of one group; that of an image without one is negative, and its alone."""
        return self._identities[positions]

    def partners(self, seed: int, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each image another one of its group, all of them equally likely; itself where there is no other."""
        starts, others = self._starts[positions], self._sizes[positions] - 1
        draws = uniform(seed, epoch, positions, PARTNER_VIEW, 1)[:, 0]
        ahead = np.where(others > 0, 1 + (draws * others).astype(np.int64), 0)
        return self._members[starts + (self._places[positions] - starts + ahead) % (others + 1)]


def representatives(keys: NDArray[np.uint8], groupings: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """For each of ``keys`` [n, 32] the position of the smallest key among all that it is joined with: int64 [n].

    Of each grouping, int64 [n], equal numbers join; so two images are also joined over others.
    """
    order = np.lexsort(keys.T[::-1])
    smallest, before = np.argsort(order), None
    while before is None or (smallest != before).any():
        before = smallest
        for numbers in groupings:
            _, group = np.unique(numbers, return_inverse=True)
            least = np.full(len(keys), len(keys))
            np.minimum.at(least, group, smallest)
            smallest = least[group]
    return order[smallest]


def number_near(keys: NDArray[np.uint8], near: Mapping[str, str]) -> NDArray[np.int64]:
    """Equal for near copies of each other: int64 [n], of ``keys`` [n, 32]; ``near`` has the name of
    the group of near copies by SHA-256, for images that are in one."""
    names = [bytes(key).hex() for key in keys]
    numbers: NDArray[np.int64] = np.unique([near.get(name, name) for name in names], return_inverse=True)[1]
    return numbers
