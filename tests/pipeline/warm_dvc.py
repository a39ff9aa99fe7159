"""`dvc` without its start: each command in its own process, forked from one that has imported DVC before.

The start costs half a second, the command itself a tenth of that. Folder, environment and streams are those that are
asked for, so that nothing else tells the two apart.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.dvc.client import DVC
from tests.forked import CONTEXT, start_server

cold = subprocess.run


def run(command: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run``, but for the commands that ``client.execute`` gives it."""
    if not isinstance(command, list) or tuple(command[: len(DVC)]) != DVC:
        return cold(command, **options)
    start_server()
    with TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("out", "err")]
        process = CONTEXT.Process(target=_dvc, args=(command[len(DVC) :], options["cwd"], options["env"], *printed))
        process.start()
        process.join()
        out, err = (path.read_text(encoding="utf-8") for path in printed)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _dvc(arguments: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    from dvc.cli import main

    sys.argv = [*DVC[DVC.index("dvc") :], *arguments]
    sys.exit(main(sys.argv[1:]))
