"""Partners: another image of the group, all equally likely, as a function of seed, epoch and image."""

from collections import Counter

import numpy as np
import pytest

from simclr_core.data.groups import UNGROUPED, Groups, representatives

NUMBERS = np.array([2, 0, 0, UNGROUPED, 2, 2, 1, UNGROUPED, 0, 2], np.int32)
ALL = np.arange(len(NUMBERS))


def test_a_partner_is_another_image_of_the_group() -> None:
    groups = Groups(NUMBERS)
    for epoch in range(50):
        partners = groups.partners(0, epoch, ALL)
        for position, partner in zip(ALL, partners, strict=True):
            alone = NUMBERS[position] == UNGROUPED or (NUMBERS[position] == NUMBERS).sum() == 1
            assert (partner == position) == alone
            assert NUMBERS[partner] == NUMBERS[position]


@pytest.mark.seconds
def test_all_others_are_equally_likely() -> None:
    """Chi-square over the three partners of an image in a group of four: 13.8 has a probability of 0.001."""
    groups, epochs = Groups(NUMBERS), 3000
    for position in (0, 4, 5, 9):
        drawn = Counter(int(groups.partners(7, epoch, np.array([position]))[0]) for epoch in range(epochs))
        assert len(drawn) == 3
        assert sum((count - epochs / 3) ** 2 / (epochs / 3) for count in drawn.values()) < 13.8


def test_a_partner_depends_on_seed_epoch_and_image_alone() -> None:
    numbers = np.arange(400, dtype=np.int32) // 8
    groups, everyone = Groups(numbers), np.arange(400)
    whole = groups.partners(3, 5, everyone)
    some = np.array([17, 3, 399, 17])
    np.testing.assert_array_equal(groups.partners(3, 5, some), whole[some])
    assert (groups.partners(3, 6, everyone) != whole).mean() > 0.5
    assert (groups.partners(4, 5, everyone) != whole).mean() > 0.5


def test_identities_are_equal_within_a_group_alone() -> None:
    identities = Groups(NUMBERS).identities(ALL)
    for one in ALL:
        for other in ALL:
            together = one == other or (NUMBERS[one] != UNGROUPED and NUMBERS[one] == NUMBERS[other])
            assert (identities[one] == identities[other]) == together


def test_the_largest_group_and_the_sum_of_all() -> None:
    assert Groups(NUMBERS).largest == 4
    assert str(Groups(NUMBERS)) == "7 images of 2 groups"
    assert Groups(np.full(3, UNGROUPED, np.int32)).largest == 1


@pytest.mark.parametrize(
    ("groupings", "expected"),
    [
        ([[0, 1, 2, 3]], [0, 1, 2, 3]),
        ([[0, 0, 2, 3], [0, 1, 1, 3]], [2, 2, 2, 3]),
        ([[0, 0, 2, 2], [5, 1, 1, 9]], [2, 2, 2, 2]),
        ([[7, 1, 2, 7]], [3, 1, 2, 3]),
    ],
)
def test_the_smallest_key_stands_for_all_that_are_joined(groupings: list[list[int]], expected: list[int]) -> None:
    keys = np.zeros((4, 32), np.uint8)
    keys[:, 0], keys[:, 31] = [9, 9, 1, 2], [1, 0, 0, 0]
    assert representatives(keys, [np.array(one) for one in groupings]).tolist() == expected
