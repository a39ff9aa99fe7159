"""What a run shows on a terminal, and what in a pipe."""

import os
import re
import termios

from pipeline.runs.terminal import Terminal
from simclr_core.progress import Tick


def shown(descriptor: int) -> str:
    return os.read(descriptor, 100_000).decode()


def say(terminal: Terminal) -> None:
    terminal.tick("pretrain", Tick(10, 200, "images"))
    terminal.tick("pretrain", Tick(100, 200, "images"))
    terminal.line("pretrain: epoch 1/2")
    terminal.tick("pretrain", None)
    terminal.line("done")


def test_on_a_terminal_lines_stay_and_the_bar_goes() -> None:
    outer, inner = os.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    say(Terminal(inner))
    text = shown(outer)
    assert re.search(r"pretrain:   5%.* 10.0/200 ", text)
    line = text.index("pretrain: epoch 1/2\r\n")
    assert re.search(r"pretrain:  50%.* 100/200 \[.*images/s\]", text[line:]), "the bar is drawn again under the line"
    last = text.rpartition("\r\n")[0].rpartition("\r")[2]
    assert last == "done", "and is gone at the end"


def test_in_a_pipe_there_are_only_lines() -> None:
    reader, writer = os.pipe()
    say(Terminal(writer))
    assert shown(reader) == "pretrain: epoch 1/2\ndone\n"
