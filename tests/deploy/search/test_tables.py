"""A column of a CSV file is of numbers only if the numbers say all that its texts say."""

from pathlib import Path

import pytest

from deploy.errors import ArgumentError
from deploy.search.tables import read_table


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["2025", "-3", ""], [2025, -3, None]),
        ([" 5", "+6 "], [5, 6]),
        (["0.5", "2", "1e3", ".5", "1."], [0.5, 2.0, 1000.0, 0.5, 1.0]),
        (["TRUE", "false"], [True, False]),
        (["9223372036854775807", "0"], [2**63 - 1, 0]),
        (["007", "010"], ["007", "010"]),
        (["2024_01", "2024_02"], ["2024_01", "2024_02"]),
        (["12345678901234567890", "2"], ["12345678901234567890", "2"]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["12345678901234567890", "0.5"], ["12345678901234567890", "0.5"]),
        (["nan", "1.5"], ["nan", "1.5"]),
        (["inf", "1e999"], ["inf", "1e999"]),
        (["٣", "4"], ["٣", "4"]),
        (["9" * 5000, "1"], ["9" * 5000, "1"]),
    ],
)
def test_no_value_loses_what_its_text_says(texts: list[str], values: list[object], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,x\n" + "".join(f"{number}.png,{text}\n" for number, text in enumerate(texts)))
    assert [*read_table(table)["x"].values()] == values


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("nan", "numbers"),
        (f"{2**53 + 1}", "numbers"),
        ("1" * 20, "whole numbers"),
        ("x", "numbers"),
        ("1", "true and false"),
    ],
)
def test_what_the_column_of_an_index_cannot_hold_is_refused_while_it_is_read(
    text: str, known: str, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"path,x\na.png,{text}\n")
    with pytest.raises(ArgumentError, match=f"column 'x' holds {known} in the index"):
        read_table(table, {"x": known})
