"""Progress shows rate and time left, at intervals that suit a terminal or a log file."""

import io

import pytest

from deploy.folders.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_ten_times_a_second_and_at_the_end() -> None:
    now, terminal = 0.0, Terminal()
    progress = Progress(10_000, terminal, lambda: now)
    progress(0)
    for done, now in ((1000, 10.0), (1001, 10.05), (2000, 20.0), (10_000, 20.01)):  # noqa: B007  the clock reads it
        progress(done)
    shown = terminal.getvalue().split("\r")[1:]
    assert shown == [
        "1,000/10,000 images  100/s  0:01:30 left ",
        "2,000/10,000 images  100/s  0:01:20 left ",
        "10,000/10,000 images  500/s  0:00:00 left \n",
    ]


def test_a_file_gets_a_line_every_thirty_seconds() -> None:
    now, log = 0.0, io.StringIO()
    progress = Progress(100_000, log, lambda: now)
    progress(0)
    for now in range(1, 100):
        progress(5 * now)
    assert log.getvalue().splitlines() == [
        "150/100,000 images  5.0/s  5:32:50 left",
        "300/100,000 images  5.0/s  5:32:20 left",
        "450/100,000 images  5.0/s  5:31:50 left",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_was_done_before_does_not_count_for_the_rate(stream: type[io.StringIO]) -> None:
    now, shown = 100.0, stream()
    progress = Progress(1000, shown, lambda: now)
    progress(900)
    now = 150.0
    progress(950)
    assert "950/1,000 images  1.0/s  0:00:50 left" in shown.getvalue()
