"""What a gate may look at: the reports that the stages have committed, and the thresholds of params.yaml."""

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NoReturn

from pipeline.config import GatesConfig
from pipeline.params import read
from pipeline.workspace import Workspace

COMPARISON = "reports/compare.json"

Report = dict[str, Any]
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a damaged report, or one of another version, may raise."""


class Evidence:
    """The reports and thresholds of a workspace; ``path`` is the report asked for last, relative to the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.path = ""

    def report(self, path: str) -> Report:
        """One report. Take what you need from it before you ask for the next one: ``path`` names who lacks it."""
        self.path = path
        text = (self.workspace.root / path).read_text(encoding="utf-8")
        content: Report = json.loads(text, parse_constant=_refuse)
        return content

    def reports(self, pattern: str) -> Iterator[Report]:
        """The reports of a stage that writes several, such as ``reports/finetune-*.json``, by name, at least one."""
        self.path = pattern
        found = sorted(self.workspace.root.glob(pattern))
        if not found:
            raise FileNotFoundError
        for path in found:
            yield self.report(path.relative_to(self.workspace.root).as_posix())

    @cached_property
    def limits(self) -> GatesConfig:
        """The block ``gates``, as ``params.yaml`` had it when it was first asked for."""
        return read(self.workspace).gates


def _refuse(constant: str) -> NoReturn:
    """Python's JSON has NaN and infinity, which no comparison with a threshold would notice."""
    raise ValueError(f"{constant} is not a number")
