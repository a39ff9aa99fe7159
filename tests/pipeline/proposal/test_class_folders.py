"""Which folders of unlabeled images are taken for classes."""

import pytest

from pipeline.ingest.layout import Place
from pipeline.proposal.class_folders import look_like_classes
from pipeline.proposal.collection import Collection


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cats", "dogs"], True),
        (["cars", "trains", "planes"], True),
        (["trn", "tst"], False),
        (["fold0", "fold1", "fold2"], False),
        (["query", "gallery"], False),
        (["holdout", "development"], False),
        (["cats", "dogs", "holdout"], False),  # else a test set would become a class
        (["2026-01", "2026-02"], False),
    ],
)
def test_folders_named_by_what_they_are_used_for_are_not_classes(folders: list[str], expected: bool) -> None:
    counts = dict.fromkeys(folders, 40)
    collection = Collection({Place("train", None): sum(counts.values())}, {}, counts, (), 0)
    assert look_like_classes(collection) == expected
