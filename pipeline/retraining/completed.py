"""Whether a run would have nothing to do: then ``simclr run`` says so in a second, instead of asking every stage.

A run that went all the way notes what it began and ended with. It answers for the same day only, since decisions about
images expire and old runs are removed.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path

from deploy.artifact import MANIFEST, identity, write_atomically
from deploy.errors import ArtifactError
from deploy.registry import CURRENT
from pipeline import git, waiting
from pipeline.dvc import project
from pipeline.dvc.purged import find_interrupted_purge
from pipeline.dvc.unchanged import DEFINED_IN, stamp
from pipeline.maintenance.state import unkept
from pipeline.release.champion import BUNDLE
from pipeline.release.registry import open_registry
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace

NOTE, BEGAN = "completed.json", "began.json"  # in the workspace's scratch folder
PAGE = "run.html"  # of ``pipeline.run_report``, not imported for its name: it brings what draws
DECIDED_IN = ("params.yaml", "overrides.csv")


def begin(workspace: Workspace, run_id: str) -> None:
    """Remember by which decisions a run judges; what it writes there itself has to be written by now."""
    write_atomically(workspace.scratch / BEGAN, json.dumps({run_id: _settings(workspace)}))


def note(workspace: Workspace, sources: Sequence[str], run_id: str) -> None:
    """Remember that a run of all stages on these sources has ended, and that each of them and each gate passed.

    Nothing is noted where people have decided anything since it began: it may have judged by the earlier decisions.
    """
    if json.loads((workspace.scratch / BEGAN).read_bytes()) == {run_id: _settings(workspace)}:
        write_atomically(workspace.scratch / NOTE, json.dumps(_state(workspace, sources)))


def has_nothing_to_do(workspace: Workspace, sources: Sequence[str]) -> bool:
    """Whether nothing is new since the last run of all stages, nothing was changed, and no result is missing.

    Raises:
        IngestError: a source does not exist or cannot be listed.
        DvcError: dvc.yaml has a fault.
    """
    with suppress(OSError, ValueError):
        noted = json.loads((workspace.scratch / NOTE).read_bytes())
        if noted != _state(workspace, sources) or unkept(workspace) or find_interrupted_purge(workspace.root):
            return False
        if waiting.is_outdated(*_candidate(workspace)):
            return False
        inbox = survey(workspace, sources)
        waits = inbox.new_images or inbox.unsettled or inbox.relabeled
        stages = {stage.name for stage in project.load(workspace.root).stages}
        return not waits and stages <= project.find_unchanged(workspace.root)
    return False


def _state(workspace: Workspace, sources: Sequence[str]) -> dict[str, object]:
    inbox, registry = survey(workspace, sources), open_registry(workspace)
    made = (workspace.reports / PAGE, registry.root / CURRENT, registry.root / (registry.current() or "") / MANIFEST)
    return {
        "day": date.today().isoformat(),
        "version": version("simclr-pipeline"),
        "sources": [*sources],
        "images": [inbox.digest, inbox.files],
        "files": {name: stamp(workspace.root / name) for name in DEFINED_IN} | _settings(workspace),
        "made": [[str(path), stamp(path)] for path in made],
    }


def _candidate(workspace: Workspace) -> tuple[Path, str, str | None]:
    """Where it may wait for a person, its bundle, and what serves."""
    registry = open_registry(workspace)
    with suppress(ArtifactError):
        return registry.root, identity(workspace.root / BUNDLE), registry.current()
    return registry.root, "", registry.current()


def _settings(workspace: Workspace) -> dict[str, list[int] | None]:
    """What people and a run decide by: also the configuration of Git and DVC, which names where results are sent."""
    root = workspace.root
    paths = [*(root / name for name in DECIDED_IN), *project.config_files(root), *git.config_files(root)]
    return {os.path.relpath(path, root): stamp(path) for path in paths}
