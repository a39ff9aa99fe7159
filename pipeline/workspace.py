"""A workspace: one folder with the images, what is made of them, and the history of both.

    simclr init my-images        makes one

It is a Git repository with a DVC project in it. Every entry point finds it from ``--workspace``, from
``SIMCLR_WORKSPACE``, or from the nearest parent folder with a ``dvc.yaml``.
"""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.artifact import write_atomically
from deploy.failure import ADVICE, INSTALL_EVERYTHING
from pipeline.environment import WORKSPACE
from pipeline.errors import WorkspaceError
from pipeline.recipes.recipe import DEFAULT, params_of, recipes
from simclr_core.weights import FOLDER as WEIGHTS

TEMPLATE = ("dvc.yaml", "params.yaml", "overrides.csv", "dagster.yaml", "dg.toml", "definitions.py", "workspace.yaml")
INBOX = ("unlabeled", "labeled", "test")
WRITTEN = (".dvc", ".simclr", "data", "models", "registry", "reports", "history", "storage", "schedules")
IGNORED_BY_GIT = (
    "/inbox/",
    "/registry/",
    "/.simclr/",
    "/history/",
    "/storage/",
    "/schedules/",
    "/logs/",
    "/.telemetry/",
    "/.logs_queue/",
    "/.nux/",
    "/dvc_plots/",
    "/.env",
)
IGNORED_BY_DVC = (*IGNORED_BY_GIT, "/demo/", ".venv*")


@dataclass(frozen=True)
class Workspace:
    """The paths of a workspace; ``root`` is absolute."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def overrides(self) -> Path:
        """What people have decided about single images."""
        return self.root / "overrides.csv"

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def raw(self) -> Path:
        return self.root / "data" / "raw"

    @property
    def manifest(self) -> Path:
        return self.root / "data" / "manifest"

    @property
    def facts(self) -> Path:
        """What is known of every content that was ever probed; see ``validation.facts_cache``."""
        return self.scratch / "facts"

    @property
    def prepared(self) -> Path:
        return self.root / "data" / "prepared"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def scratch(self) -> Path:
        """Timings, resume checkpoints, TensorBoard: needed by no other part, never versioned."""
        return self.root / ".simclr"


def find(start: Path | None = None) -> Workspace:
    """The workspace at ``start`` if given, else the one named by ``SIMCLR_WORKSPACE``, else the nearest above here."""
    named = start or (Path(os.environ[WORKSPACE]) if os.environ.get(WORKSPACE) else None)
    if named is not None:
        if not (named / "dvc.yaml").is_file():
            raise WorkspaceError(f"{named}: not a workspace, it has no dvc.yaml; make one with `simclr init {named}`")
        return Workspace(named.resolve())
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return Workspace(folder)
    raise WorkspaceError(
        f"{here}: not inside a workspace; go into one, give --workspace DIR, or make one with `simclr init DIR`"
    )


def create(directory: Path, recipe: str = DEFAULT, params: str | None = None) -> Workspace:
    """Make a workspace in a new or empty folder. If any step fails, nothing is left behind.

    Args:
        recipe: which ``params.yaml`` to begin with; see ``pipeline.recipes.recipe``.
        params: its text, if it is not the recipe's own.
    """
    if recipe not in recipes():
        raise WorkspaceError(f"recipe {recipe!r} does not exist; choose one of: {', '.join(recipes())}")
    require_new(directory)
    target = directory.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        work.chmod(0o755)
        _populate(work, recipe, params or params_of(recipe, template("params.yaml").read_text(encoding="utf-8")))
        if target.exists():
            target.rmdir()
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    workspace = Workspace(target.resolve())
    point_dagster(workspace)
    return workspace


def point_dagster(workspace: Workspace) -> None:
    """Let ``dg dev`` and ``dagster dev`` in the workspace use its records and settings.

    They read ``.env``, which has to name a whole path and wins over the environment. So it is written again after a
    move, and above all in a copy: it would write into the records of the workspace that it was copied from.
    """
    file, root = workspace.root / ".env", str(workspace.root)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    ignored = workspace.root / ".gitignore"
    is_ignored = ignored.is_file() and "/.env" in ignored.read_text(encoding="utf-8").splitlines()
    quoted = root.replace("\\", "\\\\").replace("'", "\\'")
    home = f"DAGSTER_HOME='{quoted}'"
    if is_ignored and home not in lines:
        kept = [line for line in lines if not line.startswith("DAGSTER_HOME=")]
        write_atomically(file, "\n".join([*kept, home]) + "\n")


def expand_home(name: str) -> Path:
    """A path that may begin with ``~`` or ``~user``, as in a shell.

    Raises:
        WorkspaceError: there is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        user = name.partition("/")[0]
        raise WorkspaceError(f"{name}: no home folder of {user} is known here; give the whole path") from None


def make_inbox(workspace: Workspace) -> None:
    """Git does not carry the folder into a clone of a workspace."""
    try:
        workspace.inbox.mkdir(exist_ok=True)
    except FileExistsError:
        raise WorkspaceError(
            f"{workspace.inbox}: is not a folder, and has to be one, also if it is empty; move what is there elsewhere"
        ) from None


def require_new(directory: Path) -> None:
    """Raise WorkspaceError if there is something in the folder already."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise WorkspaceError(f"{directory}: exists and is not an empty folder; give a new name, or empty it first")


def require_writable(workspace: Workspace) -> None:
    """Say which folder cannot be written, before a command has begun and SQLite or DVC says it in their own words."""
    for folder in unwritable(workspace):
        raise WorkspaceError(f"{folder}: cannot be written; {how_to_write(folder)}")


def unwritable(workspace: Workspace) -> list[Path]:
    """The folders that a run writes to, and that this user may not write."""
    folders = (workspace.root, *(workspace.root / name for name in WRITTEN))
    return [folder for folder in folders if folder.exists() and not os.access(folder, os.W_OK | os.X_OK)]


def how_to_write(folder: Path) -> str:
    """What lets this user write into a folder."""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return ADVICE[errno.EROFS]
    return f"`chmod u+rwx '{folder}'`, or run as its owner"


def template(name: str) -> Path:
    """A file that every workspace begins with: in the wheel, or at the root of a clone."""
    installed = Path(__file__).parent / "template" / name
    return installed if installed.exists() else Path(__file__).parent.parent / name


def executable(name: str) -> str:
    """A command of this environment, also when the environment is not activated.

    Raises:
        WorkspaceError: it is neither next to this Python nor on the PATH.
    """
    sibling = Path(sys.executable).with_name(name)
    found = str(sibling) if sibling.exists() else shutil.which(name)
    if found is None:
        raise WorkspaceError(f"{name}: command not found; install it with {INSTALL_EVERYTHING}")
    return found


def _populate(folder: Path, recipe: str, params: str) -> None:
    for name in TEMPLATE:
        shutil.copyfile(template(name), folder / name)
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    for name in INBOX:
        (folder / "inbox" / name).mkdir(parents=True)
    (folder / WEIGHTS).mkdir()
    (folder / WEIGHTS / ".gitignore").write_text("*\n!.gitignore\n", encoding="utf-8")
    (folder / ".gitignore").write_text("\n".join(IGNORED_BY_GIT) + "\n", encoding="utf-8")
    _execute(folder, "git", "init", "--quiet")
    _execute(folder, executable("dvc"), "init", "--quiet")
    shutil.copyfile(template(".dvc/config"), folder / ".dvc" / "config")
    (folder / ".dvcignore").write_text("\n".join(IGNORED_BY_DVC) + "\n", encoding="utf-8")
    _execute(folder, "git", "add", "--all")
    # A separate identity: on a fresh machine Git has none, and would refuse.
    identity = ("-c", "user.name=simclr", "-c", "user.email=simclr@localhost", "-c", "commit.gpgsign=false")
    _execute(folder, "git", *identity, "commit", "--quiet", "--message", f"New workspace ({recipe})")


def _execute(folder: Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise WorkspaceError(
            f"{command[0]}: command not found; a workspace is a Git repository, so install Git"
        ) from None
    except subprocess.CalledProcessError as error:
        raise WorkspaceError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from None
