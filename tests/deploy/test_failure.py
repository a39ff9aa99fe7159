"""What a command says when it fails fits on one line and is never empty."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from deploy.failure import Outlet, fail, killed_by, one_line, print_error, printable


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


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that is full, since it is not read: its ends for reading, which does not wait, and for writing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            pass
    os.set_blocking(writing, True)
    os.set_blocking(reading, False)
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


def empty(reading: int) -> None:
    with suppress(BlockingIOError):
        while os.read(reading, 65536):
            pass


@pytest.mark.timeout(20)
def test_what_is_not_taken_is_dropped_until_it_is_read_again(full_pipe: tuple[int, int]) -> None:
    reading, writing = full_pipe
    outlet = Outlet(writing, patience=0.01)
    for _ in range(3):
        outlet.write(b"lost\n" * 2000)
    empty(reading)
    outlet.write(b"read\n")
    assert os.read(reading, 65536) == b"read\n"
    os.close(reading)
    outlet.write(b"the reader is gone\n")


@pytest.mark.timeout(20)
def test_a_log_that_is_not_read_holds_up_once(full_pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = full_pipe
    monkeypatch.setattr(sys, "stderr", os.fdopen(writing, "w", closefd=False))
    began = time.monotonic()
    for number in range(1000):
        print_error(f"line {number}")
    assert time.monotonic() - began < 5
    empty(reading)
    print_error("is read")
    assert os.read(reading, 65536) == b"is read\n"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    print_error("no file")
    assert sys.stderr.getvalue() == "no file\n"
