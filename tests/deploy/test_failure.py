"""What a command says when it fails fits on one line and is never empty."""

import pytest

from deploy.failure import fail, one_line


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("first\n  second\tthird ")) == "first second third"


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert one_line(TimeoutError()) == "TimeoutError"


def test_a_failure_is_printed_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(ValueError("a\nb"), code=3) == 3
    assert capsys.readouterr().err == "error: a b\n"
