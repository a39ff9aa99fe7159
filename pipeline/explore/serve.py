"""``simclr explore``: the page of the explorer behind the same guard as the UI, until Ctrl-C.

Only loopback is served without SIMCLR_UI_PASSWORD. A viewer sees everything and decides nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.explore.app import application
from deploy.explore.collection import Action
from pipeline.errors import FORESEEN
from pipeline.explore.decisions import Decisions
from pipeline.explore.shown import Shown
from pipeline.ui.access import Access, Role, read_access
from pipeline.ui.asgi import Application
from pipeline.ui.guard import Guard, serve_guarded
from pipeline.ui.login import Login
from pipeline.ui.sessions import Sessions, session_key
from pipeline.validation.quarantine import person
from pipeline.workspace import Workspace

SESSIONS = Path(".simclr") / "services" / "explore_sessions.json"


def serve(workspace: Workspace, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        WorkspaceError: there is no map yet.
        ServiceError: the passwords are missing or cannot be read.
    """
    access = read_access(host, os.environ, session_key(workspace.root))
    serve_guarded(guarded(workspace, access), access, host, port)


def guarded(workspace: Workspace, access: Access) -> Guard:
    """What is served; errors as ``serve``."""
    shown = Shown(workspace)
    applications: dict[Role, Application] = {"operator": make(workspace, shown, Decisions(workspace, shown).actions)}
    if "viewer" in access.passwords:
        applications["viewer"] = make(workspace, shown, {})
    sessions = Sessions(workspace.root / SESSIONS, access.key)
    return Guard(applications, access, Login(access, sessions, workspace.root.name))


def make(workspace: Workspace, shown: Shown, actions: Mapping[str, Action]) -> Application:
    """The application for a role that may do these."""
    who = person() if actions else ""

    def about() -> dict[str, Any]:
        classes = shown.table["label"].drop_nulls().unique().sort().to_list()
        return {"title": workspace.root.name, "decides": bool(actions), "who": who, "classes": classes}

    found: Application = application(shown, about, actions, FORESEEN)
    return found
