"""How a stage's command begins and ends when DVC, or a person, starts it: ``python -m pipeline.prepare``."""

import sys
from collections.abc import Callable
from pathlib import Path

from deploy.failure import describe, fail
from pipeline.errors import FORESEEN
from pipeline.workspace import Workspace, find
from simclr_core.reporter import emit


def run_stage(name: str, stage: Callable[[Workspace], None]) -> None:
    """Run a stage in the workspace of the current folder; a foreseen error is one line and exit code 2."""
    emit("start", stage=name, message="started")
    try:
        stage(find(Path.cwd()))
    except FORESEEN as error:
        sys.exit(fail(error))
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(fail(describe(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    emit("end", stage=name, message="done")
