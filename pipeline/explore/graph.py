"""The stage `explore` in the dvc.yaml of a workspace, which keeps the one that it was made with, maybe without it."""

from io import StringIO

from ruamel.yaml.comments import CommentedMap

from deploy.artifact import write_atomically
from pipeline.dvc.project import GRAPH, read_definitions
from pipeline.errors import WorkspaceError
from pipeline.recipes.recipe import round_trip
from pipeline.workspace import Workspace, template

STAGE = "explore"


def has_stage(workspace: Workspace) -> bool:
    """Raises DvcError: dvc.yaml has a fault."""
    return STAGE in read_definitions(workspace.root)


def add_stage(workspace: Workspace) -> str:
    """Write the stage at the end of dvc.yaml; returns what was done. Other stages stay as they are, and are skipped.

    Raises:
        WorkspaceError: a stage that this one reads from is not there.
    """
    if has_stage(workspace):
        return f"{GRAPH} has the stage {STAGE} already"
    stage = round_trip().load(template(GRAPH).read_text(encoding="utf-8"))["stages"][STAGE]
    path = workspace.root / GRAPH
    document: CommentedMap = round_trip().load(path.read_text(encoding="utf-8"))
    lacking = [dep for dep in stage["deps"] if dep not in _known(document)]
    if lacking:
        raise WorkspaceError(f"{path}: no stage writes {', '.join(lacking)}, which {STAGE} reads; add it by hand")
    document["stages"][STAGE] = stage
    content = StringIO()
    round_trip().dump(document, content)
    write_atomically(path, content.getvalue())
    return f"{GRAPH} has the stage {STAGE} now; commit it. `simclr run --select {STAGE}` makes the map"


def _known(document: CommentedMap) -> set[str]:
    """What the stages write or read."""
    found = set[str]()
    for stage in document["stages"].values():
        for kind in ("deps", "outs", "metrics", "plots"):
            for one in stage.get(kind, ()):
                found |= {one} if isinstance(one, str) else set(one)
    return found
