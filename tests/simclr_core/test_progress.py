"""How far a stage is, for the process that watches it."""

from pathlib import Path

import pytest

from simclr_core import progress
from simclr_core.progress import Bar, Tick, read_tick
from simclr_core.reporter import EVENTS


def test_a_stage_says_how_far_it_is_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, clock = tmp_path / "pretrain.jsonl", [0.0]
    monkeypatch.setenv(EVENTS, str(events))
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    seen = []
    with Bar(100, "images", done=40) as bar:
        for clock[0] in (0.5, 1.0, 1.5, 2.0):
            bar.update(10)
            seen.append(read_tick(events))
    assert seen == [None, Tick(60, 100, "images"), Tick(60, 100, "images"), Tick(80, 100, "images")]


def test_nothing_is_written_where_no_one_watches_or_another_process_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.delenv(EVENTS, raising=False)
    Bar(2, "images").update()
    monkeypatch.setenv(EVENTS, str(tmp_path / "pretrain.jsonl"))
    Bar(2, "images", quiet=True).update()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"done": 1}'])
def test_a_file_that_is_not_a_tick_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "pretrain.tick").write_text(text)
    assert read_tick(tmp_path / "pretrain.jsonl") is None
