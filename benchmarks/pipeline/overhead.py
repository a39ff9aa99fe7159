"""What Dagster and DVC cost: the demo through `simclr run`, compared with its bare stage commands, in one run.

    python -m benchmarks.pipeline.overhead --json benchmarks/results/FILE.json

Pretraining is cut to a few epochs, so that the share of the overhead is an upper bound of what the demo has. Ingest is
on neither side; gates, champion and release are on that of `simclr run`. Then the same again with nothing to do.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import params
from pipeline import workspace as workspaces
from pipeline.cli.demo import fill_inbox
from pipeline.dvc.project import load
from pipeline.ingest.ingest import ingest
from pipeline.run import run

EPOCHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if options.json:
        options.json.write_text(text, encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    workspace = workspaces.create(folder / "orchestrated")
    params.override(workspace, {"pretrain.epochs": str(EPOCHS)})
    fill_inbox(workspace)
    began = time.perf_counter()
    ingest(workspace)
    ingested = time.perf_counter() - began
    bare_workspace = Path(shutil.copytree(workspace.root, folder / "bare", symlinks=True))

    began = time.perf_counter()
    run(workspace)
    orchestrated = time.perf_counter() - began

    # The champion that does not exist yet, which no stage makes, and the order in which the run has gone.
    shutil.copytree(workspace.root / "models" / "champion", bare_workspace / "models" / "champion")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    began = time.perf_counter()
    for stage in load(workspace.root).stages:
        subprocess.run(stage.command, shell=True, cwd=bare_workspace, env=environment, check=True)  # noqa: S602
    bare = time.perf_counter() - began

    began = time.perf_counter()
    again = run(workspace)
    nothing_to_do = time.perf_counter() - began
    return {
        "pretraining_epochs": EPOCHS,
        "ingest_seconds": round(ingested, 1),
        "orchestrated_seconds": round(orchestrated, 1),
        "bare_seconds": round(bare, 1),
        "overhead_percent": round(100 * (orchestrated / bare - 1), 1),
        "nothing_to_do_seconds": round(nothing_to_do, 1),
        "skipped_stage_seconds_median": round(statistics.median(one.seconds for one in again.stages.values()), 2),
        "skipped_stage_seconds_largest": round(max(one.seconds for one in again.stages.values()), 2),
    }


if __name__ == "__main__":
    main()
