"""DVC's repository, opened inside this process, where no command of DVC prints for a person."""

import logging
from pathlib import Path
from typing import Any

LOGGERS = ("dvc", "dvc_data", "dvc_objects")


def open_repository(root: Path, **options: Any) -> Any:
    """``dvc.repo.Repo`` of the workspace at ``root``, a context manager, without DVC's log.

    Its handlers write to the output that this process had when DVC was imported, and raise where that is closed by now.
    What went wrong is in DVC's exceptions.
    """
    from dvc.repo import Repo

    for name in LOGGERS:
        logging.getLogger(name).handlers = [logging.NullHandler()]
    return Repo(str(root), **options)
