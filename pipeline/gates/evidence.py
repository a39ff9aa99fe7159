"""What a gate may look at: the reports that the stages have committed, and the thresholds of params.yaml."""

from functools import cached_property
from typing import TypeVar

from pipeline.config import GatesConfig
from pipeline.params import read
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data.shards import DatasetCard, read_card
from simclr_core.errors import DatasetError, ReportError
from simclr_core.reports import AnyReport, Report

Value = TypeVar("Value")


class Evidence:
    """The reports and thresholds of a workspace. What cannot be read is a ``ReportError`` that names the report."""

    def __init__(self, workspace: Workspace, measures: bool = True) -> None:
        self.workspace = workspace
        self.measures = measures  # what no report has yet, such as the latency on this machine

    def report(self, model: type[AnyReport]) -> AnyReport:
        return reports.read(self.workspace.root, model)

    def reports(self, model: type[AnyReport]) -> list[AnyReport]:
        """Those of a stage that writes several, by name, at least one."""
        return reports.read_each(self.workspace.root, model)

    @cached_property
    def card(self) -> DatasetCard | None:
        """What is prepared, if that can be read."""
        try:
            return read_card(self.workspace.prepared)
        except DatasetError:
            return None

    @cached_property
    def limits(self) -> GatesConfig:
        """The block ``gates``, as ``params.yaml`` had it when it was first asked for."""
        return read(self.workspace).gates


def needed(value: Value | None, report: Report, name: str) -> Value:
    """A number that a report may lack, but not for this judgment.

    Raises:
        ReportError: it does.
    """
    if value is None:
        raise ReportError(f"{report.file} lacks {name}, which this check needs; run the stage that writes it again")
    return value
