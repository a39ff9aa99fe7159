"""Definitions for test_services: the training of the soak, one that fails, and a real pretraining in two processes."""

import os
import sys
from pathlib import Path

import dagster as dg

from benchmarks.pipeline.soak import train, trained
from pipeline.dvc.client import GRACE_SECONDS, exclusive
from pipeline.dvc.processes import supervised

ROOT = Path(os.environ["DAGSTER_HOME"])
NOTE = ROOT / "note"


@dg.asset(pool="dvc", description=NOTE.read_text() if NOTE.exists() else "as it was")
def broken() -> None:
    raise dg.Failure("the stage failed")


@dg.asset(pool="dvc")
def pretrained() -> dg.MaterializeResult[None]:
    command = [sys.executable, "-m", "simclr_core", "pretrain"]
    with (
        exclusive(ROOT, "stage pretrain") as lock,
        supervised(command, ROOT, os.environ, ROOT / "pretrain.log", GRACE_SECONDS, [lock.fileno()]) as process,
    ):
        if process.wait() != 0:
            raise dg.Failure("the stage failed")
    return dg.MaterializeResult()


defs = dg.Definitions(
    assets=[trained, broken, pretrained],
    jobs=[train, dg.define_asset_job("fail", [broken]), dg.define_asset_job("pretrain", [pretrained])],
    executor=dg.in_process_executor,
)
