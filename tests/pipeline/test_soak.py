"""A small soak, and that its verdict can fail."""

from pathlib import Path

import dagster as dg
import pytest

from benchmarks.pipeline import soak
from tests.repetitions import repeated, repetitions


@repeated
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_neither_lose_nor_repeat_a_training(tmp_path: Path) -> None:
    summary = soak.soak(
        tmp_path.resolve(), kills=(kills := repetitions(1, all=3)), versions=1, seed=3, targets=("worker", "all")
    )
    assert summary["passed"], summary
    assert sum(summary["killed"].values()) == kills


def test_the_verdict_detects_lost_doubled_and_unfinished_runs(tmp_path: Path) -> None:
    soak.make_workspace(tmp_path)
    job = soak.defs.resolve_job_def("train")
    expected = "\n".join(str(step) for step in range(soak.STEPS))

    def verdict(*statuses: dg.DagsterRunStatus, steps: str = expected) -> dict[str, object]:
        (tmp_path / "steps" / "one").write_text(steps)
        with dg.DagsterInstance.ephemeral() as instance:
            for status in statuses:
                instance.create_run_for_job(job, status=status, tags={soak.VERSION: "one"})
            return soak._verdict(tmp_path, instance.get_runs(), 1, [1.0])

    status = dg.DagsterRunStatus
    assert verdict(status.SUCCESS)["passed"]
    assert verdict(status.FAILURE)["lost"] == 1
    assert verdict(status.SUCCESS, status.SUCCESS)["doubled"] == 1
    assert verdict(status.SUCCESS, steps=expected + "\n7")["doubled"] == 1
    assert verdict(status.SUCCESS, status.STARTED)["unfinished"] == 1
    assert not verdict(status.SUCCESS, status.FAILURE)["passed"]  # two lineages for one version
