"""Dagster's records are opened many times in each process."""

import pytest
from alembic.script import Script

from pipeline.runs.instance import opened
from pipeline.workspace import Workspace


@pytest.mark.seconds
def test_the_migrations_of_dagster_are_imported_once_in_a_process(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(workspace.root) as instance:
        first = instance.get_runs()
    monkeypatch.setattr(Script, "_from_path", lambda *_: pytest.fail("a migration was imported again"))
    with opened(workspace.root) as instance:
        assert instance.get_runs() == first == []
