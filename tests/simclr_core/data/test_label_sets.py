"""Sets of labels as texts: what is written is read back, equal sets are equal texts, and one label is itself."""

import itertools

import numpy as np
import pytest

from simclr_core.data import label_sets

NAMES = ["cat", "dog", "a;b", "x|y", "ü"]


def test_every_set_is_read_back_and_none_looks_like_another() -> None:
    sets = [one for size in range(len(NAMES) + 1) for one in itertools.combinations(NAMES, size)]
    texts = [label_sets.join(reversed(one)) for one in sets]
    assert [set(label_sets.members(text)) for text in texts] == [set(one) for one in sets]
    assert len(set(texts)) == len(sets)
    assert [label_sets.is_set(text) for text in texts] == [len(one) != 1 for one in sets]
    assert [text for text, one in zip(texts, sets, strict=True) if len(one) == 1] == NAMES


def test_what_is_not_said_differs_from_a_set() -> None:
    assert not label_sets.is_set(None)
    assert label_sets.members("") == ()
    assert label_sets.members_of([None, "cat", label_sets.join(["dog", "cat"]), label_sets.NONE_OF_THEM]) == {
        "cat",
        "dog",
    }


def test_people_see_what_they_write() -> None:
    texts = [label_sets.join(one) for one in ([], ["cat"], ["dog", "cat"])]
    assert [label_sets.describe(text) for text in texts] == ["-", "cat", "cat|dog"]
    assert [label_sets.describe(one) for one in ("-", "cat|dog", "it's")] == ["'-'", "'cat|dog'", "it's"]  # classes


def test_the_rarest_class_stands_for_an_image() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]], bool)  # 4, 2 and 1 images
    assert label_sets.rarest(targets).tolist() == [1, 0, 2, 1, 3]
    assert label_sets.rarest(targets[:0]).tolist() == []
    single = np.eye(4, dtype=bool)[[2, 0, 0, 3]]
    assert label_sets.rarest(single).tolist() == [2, 0, 0, 3]  # of one label each it is that label


def test_the_rarest_class_of_counts_is_that_of_the_images() -> None:
    counts = {
        None: 7,
        label_sets.join("ab"): 2,
        "a": 1,
        label_sets.join("ac"): 1,
        label_sets.NONE_OF_THEM: 3,
    }
    assert label_sets.count_members(counts) == {"a": 4, "b": 2, "c": 1}
    assert label_sets.rarest_of(counts) == {"b": 2, "a": 1, "c": 1, "-": 3}


@pytest.mark.parametrize("counts", [{}, {None: 3}, {"cat": 2, None: 1, "dog": 5}])
def test_of_one_label_each_the_numbers_are_those_by_label(counts: dict[str | None, int]) -> None:
    assert label_sets.rarest_of(counts) == {label: count for label, count in counts.items() if label is not None}
