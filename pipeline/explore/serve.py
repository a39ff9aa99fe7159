"""``simclr explore``: the page of the explorer behind the same guard as the UI, until Ctrl-C.

Only loopback is served without SIMCLR_UI_PASSWORD. A viewer sees everything and decides nothing.
"""

import os
from pathlib import Path
from typing import Any

import uvicorn

from deploy.explore.app import application
from pipeline.errors import FORESEEN
from pipeline.explore.shown import Shown
from pipeline.ui.access import Role, read_access
from pipeline.ui.asgi import Application
from pipeline.ui.guard import Guard
from pipeline.ui.login import Login
from pipeline.ui.sessions import Sessions, session_key
from pipeline.workspace import Workspace

SESSIONS = Path(".simclr") / "services" / "explore_sessions.json"
STOP_SECONDS = 2


def serve(workspace: Workspace, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        WorkspaceError: there is no map yet.
        ServiceError: the passwords are missing or cannot be read.
    """
    access = read_access(host, os.environ, session_key(workspace.root))
    shown = Shown(workspace)
    applications: dict[Role, Application] = {"operator": make(workspace, shown)}
    if "viewer" in access.passwords:
        applications["viewer"] = make(workspace, shown)
    uvicorn.run(
        Guard(
            applications, access, Login(access, Sessions(workspace.root / SESSIONS, access.key), workspace.root.name)
        ),
        host=host,
        port=port,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        proxy_headers=bool(access.proxies),
        forwarded_allow_ips=list(access.proxies),
    )


def make(workspace: Workspace, shown: Shown) -> Application:
    def about() -> dict[str, Any]:
        return {"title": workspace.root.name}

    found: Application = application(shown, about, {}, FORESEEN)
    return found
