"""A workspace with nothing but the reports and thresholds that a gate is asked about."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Gate, Verdict, judge
from pipeline.workspace import Workspace
from tests.conftest import TINY_PARAMS
from tests.pipeline.gates.reports import COMPARE, COMPARISON
from tests.sentences import assert_helpful


class Case:
    """What a gate may look at; no candidate, no Dagster, no registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.set_limits()

    def set_limits(self, **gates: object) -> None:
        """The block ``gates`` of params.yaml."""
        self.put("params.yaml", yaml.safe_dump(TINY_PARAMS | {"gates": gates}))

    def put(self, path: str, report: object) -> None:
        """A report, or any text in its place."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        text = report if isinstance(report, str) else json.dumps(report)
        (self.folder / path).write_text(text, encoding="utf-8")

    def ask(self, gate: Gate, files: Mapping[str, object] | None = None) -> Verdict:
        """Put the files, if any are given, and ask the gate."""
        for path, report in (files or {}).items():
            self.put(path, report)
        verdict = judge(gate, Evidence(Workspace(self.folder)))
        assert_helpful(verdict)
        assert verdict.judged or not verdict.passed
        return verdict

    def compare(self, gate: Gate, **values: object) -> Verdict:
        """Ask about a comparison with the champion in which these values are others."""
        self.put(COMPARISON, COMPARE | values)
        return self.ask(gate)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)
