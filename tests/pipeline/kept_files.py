"""The table of docs/kept-data.md: which file of a workspace is kept how long."""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.workspace import Workspace

PAGE = Path(__file__).parents[2] / "docs" / "kept-data.md"
FOLDERS = (".simclr", "history", "storage", "schedules", "registry", ".dvc/cache/runs")  # that no one else looks after


def read_places() -> list[str]:
    """The patterns in the first column."""
    table = PAGE.read_text(encoding="utf-8").partition("\n## How long each file is kept\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return [place for row in rows for place in re.findall("`([^`]+)`", row)]


def files_without_rule(workspace: Workspace) -> list[str]:
    """Files that would be kept forever, for all that the page says."""
    places = read_places()
    found = (path for folder in FOLDERS for path in _files(workspace.root / folder))
    names = (path.relative_to(workspace.root).as_posix() for path in found)
    return sorted(name for name in names if not any(fnmatchcase(name, place) for place in places))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
