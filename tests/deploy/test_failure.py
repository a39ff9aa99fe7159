"""What a command says when it fails fits on one line and is never empty."""

import pytest

from deploy.failure import fail, killed_by, one_line


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
