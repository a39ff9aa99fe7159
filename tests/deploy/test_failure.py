"""What a command says when it fails fits on one line and is never empty."""

import pytest

from deploy.failure import fail, killed_by, one_line, printable


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("first\n  second\tthird ")) == "first second third"


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert one_line(TimeoutError()) == "TimeoutError"


def test_a_failure_is_printed_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(ValueError("a\nb"), code=3) == 3
    assert capsys.readouterr().err == "error: a b\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "was killed by SIGKILL, most often by the kernel when memory runs out"),
        (-11, "was killed by SIGSEGV"),
        (0, ""),
        (2, ""),
        (129, ""),  # a usage error of Git
    ],
)
def test_the_signal_that_ended_a_process_is_named(code: int, said: str) -> None:
    assert killed_by(code) == said


def test_names_stay_readable_and_short() -> None:
    assert printable("bücher/bild – ähm 日本.png") == "bücher/bild – ähm 日本.png"
    assert printable("a\nb\u202ec\\d") == "a\\nb\\u202ec\\d"
    assert printable("x" * 500) == "x" * 200 + "…"
    assert len(printable("\U000e0041" * 200)) == 201
    assert printable("x" * 500 + "\udcff", None) == "x" * 500 + "\\udcff"
