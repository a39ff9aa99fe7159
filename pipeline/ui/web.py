"""The guarded UI of a workspace: ``python -m pipeline.ui.web --host 127.0.0.1 --port 3000``, a child of `simclr ui`.

Dagster's web application, once for operators and once read-only for viewers, behind ``pipeline.ui.guard``. It finds the
code server in ``.simclr/services/workspace.yaml``.
"""

import argparse
import os
import time
from contextlib import ExitStack
from pathlib import Path

import dagster as dg

from pipeline.runs.dagster_internals import (
    WorkspaceFileTarget,
    WorkspaceProcessContext,
    web_application,
    web_version,
)
from pipeline.runs.instance import reference
from pipeline.ui.access import Role, read_access
from pipeline.ui.asgi import Application, Receive, Refused, Scope, Send
from pipeline.ui.candidates import Candidates
from pipeline.ui.guard import Guard, serve_guarded
from pipeline.ui.login import Login
from pipeline.ui.sessions import Sessions, session_key
from pipeline.ui.web_answers import clean

TARGET = Path(".simclr") / "services" / "workspace.yaml"
SESSIONS = Path(".simclr") / "services" / "sessions.json"
STATEMENT_MILLISECONDS, POOL_SECONDS, POOL_OVERFLOW = 15_000, 3_600, 20  # as Dagster's own command
RELOAD_SECONDS = 40


class ReloadingContext(WorkspaceProcessContext):
    """Makes "Reload definitions" a new start of the code server, which its supervisor sees to."""

    def reload_code_location(self, name: str) -> None:
        def entry() -> object:
            return self.get_current_workspace().code_location_entries[name]

        before = entry()
        self.shutdown_code_location(name)
        deadline = time.monotonic() + RELOAD_SECONDS
        while entry() is before and time.monotonic() < deadline:  # until its watcher has seen the new one
            time.sleep(0.2)


def serve(root: Path, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ServiceError: the passwords are missing or cannot be read.
    """
    access = read_access(host, os.environ, session_key(root))
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.from_ref(reference(root)))
        instance.optimize_for_webserver(STATEMENT_MILLISECONDS, POOL_SECONDS, POOL_OVERFLOW)
        target = WorkspaceFileTarget([str(root / TARGET)])

        def application(read_only: bool) -> Application:
            context: WorkspaceProcessContext = stack.enter_context(
                ReloadingContext(instance, target, version=web_version(), read_only=read_only)
            )
            return clean(_of_known_runs(web_application(context, read_only), instance), root)

        applications: dict[Role, Application] = {"operator": application(read_only=False)}
        if "viewer" in access.passwords:
            applications["viewer"] = application(read_only=True)
        login = Login(access, Sessions(root / SESSIONS, access.key), root.name)
        serve_guarded(Guard(applications, access, login, Candidates(root)), access, host, port)


def _of_known_runs(application: Application, instance: dg.DagsterInstance) -> Application:
    """Dagster fails where it is asked for the records of a run that does not exist."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        folder, _, run = scope["path"].strip("/").partition("/")
        if folder == "download_debug" and not instance.has_run(run):
            raise Refused(404, f"{scope['path']}: no such run")
        await application(scope, receive, send)

    return serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    given = parser.parse_args()
    serve(Path(os.environ["DAGSTER_HOME"]), given.host, given.port)


if __name__ == "__main__":
    main()
