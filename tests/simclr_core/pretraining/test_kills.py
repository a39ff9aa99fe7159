"""SIGKILL of a process, both, the launcher, or all: the same command ends with the bytes of a run left alone."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.pipeline import planted_defects
from benchmarks.pipeline.planted_defects import DEFECTS, Defect, DefectError
from benchmarks.simclr_core import pretrain_soak
from benchmarks.simclr_core.pretrain_soak import PLACES, Tally
from simclr_core.launch import PROCESSES
from tests.repetitions import repeated, repetitions

TWELVE = (
    ("lock.held", 1, "first"),
    ("launch.joined", 1, "second"),
    ("dataset.decode", 20, "both"),
    ("pretrain.stepped", 3, "second"),
    ("checkpoint.copied", 2, "launcher"),
    ("pretrain.resumed", 1, "all"),
    ("checkpoint.network", 2, "first"),
    ("artifact.renamed", 2, "both"),
    ("checkpoint.prune", 1, "second"),
    ("pretrain.epoch", 2, "all"),
    ("pretrain.published", 1, "first"),
    ("checkpoint.remove", 1, "launcher"),
)


@repeated
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_change_no_byte(tmp_path: Path) -> None:
    tally = Tally()
    reference = pretrain_soak.live(pretrain_soak.make_workspace(tmp_path / "reference"), tally, "", 1, 0.0, "")
    assert reference is not None, tally
    workspace = pretrain_soak.make_workspace(tmp_path / "killed")
    kills = TWELVE[-repetitions(4, all=12) :]
    for place, turn, victim in kills:
        assert pretrain_soak.live(workspace, tally, place, turn, 0.0, victim) is None, (place, victim)
        assert tally.faults == []
    assert tally.victims.total() == len(kills)
    assert max(tally.ended_after) < pretrain_soak.HANG
    found = pretrain_soak.live(workspace, tally, "", 1, 0.0, "")
    assert found is not None, tally
    pretrain_soak.compare(tally, found, reference)
    assert (tally.faults, tally.with_checkpoint) == ([], 1)
    assert {name.rpartition("/")[2] for name in found} >= {"optimizer.safetensors", "pretrain.csv"}


def test_every_place_of_the_soak_is_a_failpoint_in_the_code() -> None:
    sources = [path for package in ("deploy", "simclr_core") for path in (planted_defects.ROOT / package).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert [place for place in PLACES if f'failpoint("{place}")' not in code] == []
    assert len(PLACES) >= 15
    assert {place for place, _, _ in TWELVE} <= set(PLACES)


def test_the_verdict_of_the_soak_detects_a_changed_byte_and_a_missing_file() -> None:
    reference = {".simclr/runs/key/step-1/network.safetensors": b"1", "reports/pretrain.csv": b"2"}
    tally = Tally(ended_after=[1.0], stepped_after=[2.0])
    pretrain_soak.compare(tally, dict(reference), reference)
    pretrain_soak.compare(tally, {"reports/pretrain.csv": b"2"}, reference)  # its last checkpoint was not looked at
    assert (tally.finished, tally.with_checkpoint, tally.faults) == (2, 1, [])
    assert pretrain_soak.summary([tally])["passed"]
    pretrain_soak.compare(tally, {**reference, "reports/pretrain.csv": b"3"}, reference)
    pretrain_soak.compare(tally, {}, reference)
    assert tally.faults == ["reports/pretrain.csv: differs"] * 2
    assert not pretrain_soak.summary([tally])["passed"]
    assert not pretrain_soak.summary([Tally(ended_after=[1.0], stepped_after=[31.0])])["passed"]


@pytest.mark.slow
def test_a_run_may_resume_with_other_numbers_of_processes(prepared: Path) -> None:
    """1, 2, 1: the order of the images is the same, so are the losses but for the order of sums."""

    def train(processes: int, failpoint: str = "") -> int:
        command = [sys.executable, "-m", "simclr_core", "--workspace", str(prepared), "pretrain"]
        environment = {**os.environ, PROCESSES: str(processes), "SIMCLR_FAILPOINT": failpoint}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    def losses() -> list[float]:
        rows = csv.DictReader((prepared / "reports" / "pretrain.csv").read_text(encoding="utf-8").splitlines())
        return [float(row["loss"]) for row in rows]

    params = yaml.safe_load((prepared / "params.yaml").read_text(encoding="utf-8"))
    params["pretrain"]["checkpoint_every_steps"] = 1
    (prepared / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    assert train(1) == 0
    alone = losses()
    assert train(1, "pretrain.step:kill@5") == -signal.SIGKILL
    assert train(2, "pretrain.step:kill@5") == 128 + signal.SIGKILL
    assert train(1) == 0
    assert losses() == pytest.approx(alone, rel=1e-3)


def test_a_defect_that_no_longer_matches_the_code_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\nb = 1\n")
    for old in ("c = 1", "= 1"):
        with pytest.raises(DefectError, match=r"code\.py has .* times, not once"):
            planted_defects.plant(tmp_path, Defect("one", "code.py", ((old, "d"),), "test.py"))
    planted_defects.plant(tmp_path, Defect("one", "code.py", (("b = 1", "b = 2"),), "test.py"))
    assert (tmp_path / "code.py").read_text() == "a = 1\nb = 2\n"


def test_all_defects_can_be_planted(tmp_path: Path) -> None:
    assert len(DEFECTS) >= 15
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)
    root = planted_defects.copy(tmp_path)
    for defect in DEFECTS:
        before = planted_defects.plant(root, defect)
        changed = (root / defect.file).read_text(encoding="utf-8")
        compile(changed, defect.file, "exec")  # a defect that does not parse would be found by anything
        (root / defect.file).write_text(before, encoding="utf-8")


@repeated
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_planted_defects_turn_the_tests_red() -> None:
    """One that takes a few seconds, or three; ``python -m benchmarks.pipeline.planted_defects`` plants them all."""
    cheap = ("one step late", "rescales the momentum", "sees the next step")[: repetitions(1, all=3)]
    found = planted_defects.measure([defect for defect in DEFECTS if defect.name.endswith(cheap)])
    assert len(found) == len(cheap)
    assert all(found.values()), found
