"""What ``simclr status`` says of labels."""

from dataclasses import replace
from typing import Any

from pipeline.cli.status import describe_contradictions
from pipeline.reports import Outcome
from pipeline.validation import manifest
from pipeline.validation.expectations import NEAR_LABELS
from pipeline.workspace import Workspace
from simclr_core import reports
from tests.pipeline.validation.corpus.manifests import row, table
from tests.reports import VALIDATION


def test_near_copies_with_different_labels_are_named(workspace: Workspace) -> None:
    assert describe_contradictions(workspace) == []
    near: dict[str, Any] = {"near_group": "g", "near_group_size": 2, "warnings": ["near_label_conflict"]}
    rows = [row("cat/1.png", label="cat", **near), row("dog/\u202e2.png", label="dog", **near), row("3.png")]
    workspace.manifest.mkdir(parents=True)
    manifest.write(workspace.manifest, table(rows))
    for success, said in (
        (True, []),
        (False, ["labels     2 near copies have different labels, such as cat/1.png (cat)"]),
    ):
        outcome = Outcome(NEAR_LABELS, "splits", "warning", success, 0.0, "True", 2, [], None)
        reports.write(workspace.root, replace(VALIDATION, expectations=(outcome,)))
        lines = describe_contradictions(workspace)
        assert [line.partition(" and ")[0] for line in lines] == said
    assert lines[0].endswith("(dog); see reports/validation.html")
    assert "\u202e" not in lines[0]
