"""Counters of a machine that tells its energy, of one that does not, and what happens when one starts again."""

from pathlib import Path

import pytest

from pipeline.run_report import energy
from pipeline.run_report.energy import Meter, read, subtract


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "NVML", "libnot-there.so")
    return tmp_path


def package(folder: Path, name: str, microjoules: int) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("262143328850\n")


def test_packages_add_up_and_their_parts_do_not(powercap: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        package(powercap, name, 5_000_000)
    before = read()
    assert before.joules == (5.0, 5.0)
    package(powercap, "intel-rapl:0", 9_000_000)
    package(powercap, "intel-rapl:0:0", 8_000_000)
    assert subtract(before, read()) == pytest.approx(4.0)


def test_a_machine_that_tells_nothing_has_not_used_zero(powercap: Path) -> None:
    assert read().joules == ()
    assert subtract(read(), read()) is None


def test_a_counter_that_started_again_is_understood_once() -> None:
    before = Meter((90.0, 5.0), (100.0, float("inf")), at=0.0)
    assert subtract(before, Meter((10.0, 7.0), before.ranges, at=0.1)) == pytest.approx(22.0)
    assert subtract(before, Meter((10.0, 7.0), before.ranges, at=60.0)) is None  # it may have started again twice
    assert subtract(before, Meter((10.0,), (100.0,), at=0.1)) is None  # a counter is gone
