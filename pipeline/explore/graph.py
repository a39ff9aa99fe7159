"""The stage `explore` in the dvc.yaml of a workspace, which keeps the one that it was made with, maybe without it."""

import re
from textwrap import dedent, indent
from typing import Any

import yaml

from deploy.artifact import write_atomically
from pipeline.dvc.project import GRAPH, read_definitions
from pipeline.errors import WorkspaceError
from pipeline.workspace import Workspace, template

STAGE = "explore"


def has_stage(workspace: Workspace) -> bool:
    """Raises DvcError: dvc.yaml has a fault."""
    return STAGE in read_definitions(workspace.root)


def add_stage(workspace: Workspace) -> str:
    """Write the stage after the others of dvc.yaml, in which no other line changes; returns what was done.

    Raises:
        WorkspaceError: a file that this stage reads is made by no stage, or dvc.yaml is written in another way.
    """
    before = read_definitions(workspace.root)
    if STAGE in before:
        return f"{GRAPH} has the stage {STAGE} already"
    path, given = workspace.root / GRAPH, template(GRAPH).read_text(encoding="utf-8")
    stage = yaml.safe_load(given)["stages"][STAGE]
    lacking = [dep for dep in stage["deps"] if dep not in _known(before)]
    if lacking:
        raise WorkspaceError(f"{path}: no stage writes {', '.join(lacking)}, which {STAGE} reads; add it by hand")
    present = path.read_text(encoding="utf-8")
    text = _inserted(present, _block(given))
    if _stages(text) != {**_stages(present), STAGE: stage}:
        raise WorkspaceError(f"{path}: is written in another way than that of a new workspace; add {STAGE} by hand")
    write_atomically(path, text)
    return f"{GRAPH} has the stage {STAGE} now; commit it. `simclr run --select {STAGE}` makes the map"


def _block(text: str) -> str:
    """The lines of the stage in a dvc.yaml."""
    found = re.search(rf"^  {STAGE}:\n(?:    .*\n)+", text, re.MULTILINE)
    assert found, f"the template's {GRAPH} has the stage"
    return dedent(found[0])


def _inserted(text: str, block: str) -> str:
    """The text with a block as the last one under ``stages``."""
    lines = text.splitlines(keepends=True)
    begin = next((n for n, line in enumerate(lines) if re.match(r"stages\s*:", line)), len(lines))
    end = next((n for n in range(begin + 1, len(lines)) if re.match(r"[^\s#]", lines[n])), len(lines))
    while end > begin + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    first = next((line for line in lines[begin + 1 : end] if line.strip() and not line.lstrip().startswith("#")), "  ")
    before = "".join(lines[:end]).rstrip("\n")
    block = indent(block, first[: len(first) - len(first.lstrip(" "))])
    return f"{before}\n\n{block}{''.join(lines[end:])}"


def _stages(text: str) -> dict[str, Any]:
    """Those of a dvc.yaml; none of one that is not YAML."""
    try:
        found: dict[str, Any] = yaml.safe_load(text)["stages"]
    except yaml.YAMLError:
        return {}
    return found


def _known(stages: dict[str, dict[str, Any]]) -> set[str]:
    """What the stages write or read."""
    found = set[str]()
    for stage in stages.values():
        for kind in ("deps", "outs", "metrics", "plots"):
            for one in stage.get(kind, ()):
                found |= {one} if isinstance(one, str) else set(one)
    return found
