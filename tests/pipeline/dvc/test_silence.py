"""A stage that hangs is stopped; one that is slow is not."""

from pathlib import Path

import pytest

from pipeline.dvc import silence
from pipeline.dvc.silence import Silence
from pipeline.errors import StageFailedError


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(silence.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def execution(root: Path, clock: Clock, *silences: float, stage: str = "pretrain") -> None:
    """A stage that reports after each of these seconds and succeeds."""
    one = Silence(root, stage)
    for seconds in silences:
        clock.now += seconds
        one.check()
        one.broken()
    one.keep()


def test_the_limit_is_ten_times_the_longest_silence_with_the_same_parameters(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "params.yaml").write_text("pretrain: {epochs: 1}")
    assert Silence(tmp_path, "pretrain").limit == 6 * 3600
    execution(tmp_path, clock, 5, 400, 20)
    execution(tmp_path, clock, 300)
    execution(tmp_path, clock, 7, stage="export")
    assert Silence(tmp_path, "pretrain").limit == 4000
    assert Silence(tmp_path, "export").limit == 1800  # at least
    for _ in range(silence.KEPT - 1):
        execution(tmp_path, clock, 200)
    assert Silence(tmp_path, "pretrain").limit == 3000  # the first one is forgotten
    (tmp_path / "params.yaml").write_text("pretrain: {epochs: 100}")
    assert Silence(tmp_path, "pretrain").limit == 6 * 3600


def test_what_is_silent_for_longer_is_refused_with_what_to_do(tmp_path: Path, clock: Clock) -> None:
    one = Silence(tmp_path, "pretrain")
    clock.now += 6 * 3600
    one.check()
    clock.now += 1
    with pytest.raises(StageFailedError, match=r"stage pretrain: has reported nothing for 6\.0 h \(its first run\)"):
        one.check()
    execution(tmp_path, clock, 30)
    again = Silence(tmp_path, "pretrain")
    clock.now += 1801
    with pytest.raises(StageFailedError, match=r"nothing for 30 min \(longest so far: 30 s\)"):
        again.check()
    again.broken()
    again.check()


@pytest.mark.parametrize("content", ["", "[", "null", "[]", '{"pretrain": 3}'])
def test_damaged_records_count_as_none(tmp_path: Path, clock: Clock, content: str) -> None:
    (tmp_path / ".simclr").mkdir()
    (tmp_path / silence.FILE).write_text(content)
    assert Silence(tmp_path, "pretrain").limit == 6 * 3600
    execution(tmp_path, clock, 1000)
    assert Silence(tmp_path, "pretrain").limit == 10_000


def test_a_person_can_set_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(silence.HOURS, "0.5")
    assert Silence(tmp_path, "pretrain").limit == 1800


@pytest.mark.parametrize("given", ["soon", "", "nan", "inf", "-inf", "-2", "0", "1e-9", "1e300", "0x2"])
def test_a_limit_that_would_stop_no_stage_or_every_one_is_refused(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(silence.HOURS, given)
    with pytest.raises(StageFailedError, match=r"SIMCLR_SILENT_HOURS='.*'; give a number of hours, such as 2 or 0\.5"):
        Silence(tmp_path, "pretrain")
