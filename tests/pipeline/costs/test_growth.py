"""The simulation of ten years: what it replays is what the real thing writes, and what it fits is what was put in."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pipeline.command_cost import measure_command
from benchmarks.pipeline.growth import POINTS, QUANTITIES, Observation, fit_all, replay_batch, scaled, sentences
from benchmarks.pipeline.linear_cost import fit
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import batches
from pipeline.workspace import Workspace


@pytest.mark.seconds
def test_a_replayed_batch_is_the_one_that_an_ingest_writes(filled: Workspace, tmp_path: Path) -> None:
    ingest(filled)
    replay_batch(filled)
    again = Workspace(Path(shutil.copytree(filled.root, tmp_path / "again", symlinks=True)))
    shutil.rmtree(again.raw / "0002")
    assert ingest(again).batch == "0002"
    replayed, ingested = (batches(one.raw)[1] for one in (filled, again))
    assert _contents(replayed) == _contents(ingested)
    assert ingest(filled).batch is None, "its files are known"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_fit_finds_the_costs_that_were_put_in() -> None:
    new, old = np.array([10, 100, 400] * 4), np.repeat([0, 1000, 30_000, 9_000_000], 3)
    found = fit([new, old], 0.9 + 4e-4 * new + 2e-7 * old)
    assert [one.value for one in found] == pytest.approx([0.9, 4e-4, 2e-7])
    assert all(one.high - one.low < 1e-9 for one in found)


def test_the_interval_of_a_fit_holds_the_true_cost_nineteen_times_in_twenty() -> None:
    random, trials = np.random.default_rng(0), 2000
    new, old = np.tile([10.0, 100.0, 400.0], 3), np.repeat([100.0, 5000.0, 20_000.0], 3)
    held = np.zeros(3)
    for _ in range(trials):
        found = fit([new, old], 1 + 0.01 * new + 0.0001 * old + random.normal(0, 0.3, 9))
        held += [one.low <= true <= one.high for one, true in zip(found, (1, 0.01, 0.0001), strict=True)]
    assert held / trials == pytest.approx([0.95] * 3, abs=0.02)


@pytest.mark.parametrize(("new", "old"), [([1, 2, 3], [1, 2, 4]), ([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])])
def test_observations_that_do_not_tell_old_from_new_are_refused(new: list[int], old: list[int]) -> None:
    with pytest.raises(ValueError, match="do not determine 3 coefficients"):
        fit([new, old], np.ones(len(new)))


def test_each_stage_has_one_sentence_in_units_that_can_be_read() -> None:
    seen = [
        Observation(
            0, "ingest", {"new image": new, "old image": old}, dict.fromkeys(QUANTITIES, 2 + new / 1e3 + old / 1e7)
        )
        for new in (10, 400)
        for old in (100, 3000, 20_000)
    ]
    (said,) = sentences(fit_all(seen))
    assert said == ("ingest: 1 ms (1 to 1) per new image, 0.1 µs (0.1 to 0.1) per old image, 2 s (2 to 2) always")
    assert scaled(1000) == list(POINTS)
    assert scaled(6)[-1] == (6, 2)


def test_a_command_is_charged_with_what_it_and_its_processes_do(workspace: Workspace) -> None:
    script = """
import subprocess, sys
from pathlib import Path
work = "import time; begin = time.process_time()\\nwhile time.process_time() < begin + 0.1: pass"
for _ in range(2):
    subprocess.run([sys.executable, "-c", work], check=True)
Path("data/more").mkdir(parents=True)
Path("data/more/file").write_bytes(bytes(2_000_000))
print("done")
"""
    cost, printed = measure_command([sys.executable, "-c", script], workspace)
    assert printed == "done\n"
    assert (cost.files, cost.processes) == (1, 2)
    assert cost.megabytes == pytest.approx(2, abs=0.01)
    assert 0.2 < cost.cpu_seconds < 2
    assert 5 < cost.peak_megabytes < 40, "not that of these tests"
    with pytest.raises(RuntimeError, match="failed: no"):
        measure_command([sys.executable, "-c", "raise SystemExit('no')"], workspace)
