import pytest

from deploy.plural import counted, listed


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "batch", "1 batch"),
        (2, "batch", "2 batches"),
        (0, "new image", "0 new images"),
        (8724, "file", "8,724 files"),
        (2, "copy", "2 copies"),
        (2, "day", "2 days"),
        (3, "class", "3 classes"),
    ],
)
def test_a_noun_has_the_form_that_its_number_asks_for(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("names", "separator", "text"),
    [
        ([], ", ", ""),
        (["a", "b"], ", ", "a, b"),
        (["a", "b", "c"], ", ", "a, b and 1 more"),
        (["it ends"] * 1202, "; ", "it ends; it ends; and 1,200 more"),
    ],
)
def test_a_long_list_says_how_much_is_left_out(names: list[str], separator: str, text: str) -> None:
    assert listed(names, 2, separator) == text
