"""Decisions of people survive every spelling, expire by the day, and a damaged file is named line by line."""

from datetime import date
from pathlib import Path

import pytest

from pipeline.errors import OverridesError
from pipeline.validation.verdict.overrides import (
    COLUMNS,
    Override,
    decide,
    find_allowed,
    find_denied,
    read,
    settle,
    write,
)

HEADER = ",".join(COLUMNS)
ONE, TWO, THREE = "1" * 64, "2" * 64, "a" * 64
TODAY = date(2026, 11, 22)


def override(sha256: str, action: str = "allow", why: str = "because", expires: date | None = None) -> Override:
    return Override(sha256, action, "ada", why, TODAY, expires)


@pytest.mark.parametrize("why", ['quotes " and, commas', "two\nlines", "ümläut – 漢字", "=1+1", "<script>"])
def test_written_rows_are_read_back(tmp_path: Path, why: str) -> None:
    path = tmp_path / "overrides.csv"
    decisions = (override(ONE, why=why), override(TWO, "deny", expires=date(2027, 1, 31)))
    write(path, decisions)
    assert read(path) == decisions
    assert (find_allowed(decisions), find_denied(decisions)) == ({ONE}, {TWO: "refused by ada: because"})


def test_a_missing_file_means_no_decisions(tmp_path: Path) -> None:
    assert read(tmp_path / "overrides.csv") == ()


def test_the_later_decision_about_a_content_counts(tmp_path: Path) -> None:
    path = tmp_path / "overrides.csv"
    decide(path, [override(ONE), override(TWO)])
    decide(path, [override(ONE, "deny", "on second thoughts")])
    assert read(path) == (override(ONE, "deny", "on second thoughts"), override(TWO))


def test_the_last_day_still_counts_and_the_next_does_not(tmp_path: Path) -> None:
    path = tmp_path / "overrides.csv"
    ends_today, for_good = override(ONE, expires=TODAY), override(TWO)
    decide(path, [ends_today, for_good])
    written = path.read_bytes()
    assert settle(path, TODAY) == []
    assert path.read_bytes() == written
    assert settle(path, date(2026, 11, 23)) == [ends_today]
    assert read(path) == (for_good,)


def test_a_run_restores_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "overrides.csv"
    assert settle(path, TODAY) == []
    assert path.read_text() == f"{HEADER}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{ONE[:12]},allow,ada,why,2026-11-22,", "line 2: sha256 is '111111111111'; must be 64 of 0-9 and a-f"),
        (f"{THREE.upper()},allow,ada,why,2026-11-22,", "line 2: sha256 is 'A"),
        (f"{ONE},accept,ada,why,2026-11-22,", "line 2: action is 'accept'; allowed: allow, deny"),
        (f"{ONE},allow,,,2026-11-22,", "line 2: who is empty; say who; line 2: why is empty; say why"),
        (f"{ONE},allow,ada,why,22.11.2026,", "line 2: added is '22.11.2026'; must be a day such as 2026-11-22"),
        (f"{ONE},allow,ada,why,2026-11-22,soon", "line 2: expires is 'soon'; must be a day"),
        (f"{ONE},allow,ada,why,2026-11-22,,more", "line 2: has another number of columns"),
        (f"{ONE},allow,ada", "line 2: has another number of columns"),
        (f'{ONE},allow,ada,"open,2026-11-22,', "unexpected end of data"),
        (f"{ONE},allow,a,b,2026-11-22,\n{ONE},deny,a,b,2026-11-22,", "line 3: 111111111111 is decided twice"),
    ],
)
def test_every_fault_is_reported_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "overrides.csv"
    path.write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(OverridesError) as caught:
        read(path)
    assert str(caught.value).startswith("overrides.csv: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"sha,who\n", b"", b"\xff\xfe\0"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "overrides.csv"
    path.write_bytes(content)
    with pytest.raises(OverridesError, match=r"first line must be|not UTF-8"):
        read(path)
    assert path.read_bytes() == content
