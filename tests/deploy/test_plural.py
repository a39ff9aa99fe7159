import pytest

from deploy.plural import align, counted, duration, listed


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
        (2, "warm-up epoch", "2 warm-up epochs"),
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.43, "0.43 s"),
        (45.1, "45 s"),
        (90, "2 min"),
        (1800, "30 min"),
        (5400, "1.5 h"),
        (90_000, "25.0 h"),
    ],
)
def test_a_duration_has_two_digits_or_so(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [["", "time"], ["pretrain", "9 s"], ["export", ""]]
    assert align(rows) == ["          time", "pretrain  9 s", "export"]
    assert align(rows, numbers=True) == ["          time", "pretrain   9 s", "export"]
    assert align([]) == []
