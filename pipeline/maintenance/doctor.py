"""``simclr doctor``: is everything here that a run needs, and if not, which command brings it.

simclr doctor --repair       fixes what can be fixed without a person: torn locks, leftovers, unverified remotes
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploy.errors import DeployError
from deploy.failure import describe
from deploy.plural import counted
from pipeline import params
from pipeline.config import StorageConfig
from pipeline.dvc import cache, client, locks, purged
from pipeline.dvc.versions import WORKSPACE
from pipeline.errors import BusyError, DvcError, ParamsError, ReleaseError, WorkspaceError
from pipeline.git import Git
from pipeline.ingest.raw import batches
from pipeline.maintenance.disk import GIGABYTE, size, usage
from pipeline.maintenance.state import unkept
from pipeline.preflight import requirements
from pipeline.preflight.images import ingested
from pipeline.preflight.minimums import warnings
from pipeline.workspace import Workspace, find, how_to_write, unwritable
from simclr_core.compute import cluster_check
from simclr_core.errors import DeviceError, SimclrError

PACKAGES = ("dagster", "dvc", "great-expectations", "torch", "torchvision", "onnx", "onnxruntime", "pillow", "pyarrow")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        fix: the command or the action that fixes it.
        warning: it works, but a person should know.
    """

    name: str
    healthy: bool
    detail: str
    fix: str = ""
    warning: bool = False

    def __str__(self) -> str:
        mark = "FAIL" if not self.healthy else "warn" if self.warning else "ok  "
        line = f"{mark}  {self.name:<20} {self.detail}"
        return f"{line}\n      fix: {self.fix}" if mark != "ok  " else line


def examine(start: Path | None = None, repair: bool = False) -> list[Finding]:
    """Everything that can be known without running a stage.

    Args:
        repair: fix what can be fixed without a person; the finding then says that it was.
    """
    findings = [_python(), *map(_package, PACKAGES), _antlr(), _tool("git"), _cores(), _accelerator()]
    try:
        workspace = find(start)
    except WorkspaceError as error:
        what, _, fix = str(error).partition("; ")
        return [*findings, Finding("workspace", start is None, what, fix or "simclr init DIR", warning=True)]
    return [*findings, *_workspace(workspace, repair)]


def _python() -> Finding:
    return Finding(
        "python",
        sys.version_info >= (3, 11),
        sys.version.partition(" ")[0],
        "make a virtual environment of Python 3.11 or newer",
    )


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(
            name, False, "not installed", "pip install --no-deps -r requirements.lock, or `make .venv/installed`"
        )


def _antlr() -> Finding:
    """DVC pins 4.9 through Hydra, which breaks every string selection of Dagster in silence (dagster#27487)."""
    fix = "pip install --no-deps antlr4-python3-runtime==4.13.2"
    try:
        found = version("antlr4-python3-runtime")
    except PackageNotFoundError:
        return Finding("antlr4", False, "not installed", fix)
    return Finding("antlr4", found.startswith("4.13."), f"{found}, and Dagster needs 4.13", fix)


def _tool(name: str) -> Finding:
    found = shutil.which(name)
    return Finding(name, found is not None, found or "not found", f"install {name} with this system's package manager")


def _cores() -> Finding:
    return Finding("cores", True, str(len(os.sched_getaffinity(0))))


def _accelerator() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("accelerator", False, f"torch does not load ({error})", "reinstall from requirements.lock")
    from simclr_core.machine.devices import choose_device, describe_versions

    try:
        device = choose_device()
    except DeviceError as error:
        what, _, fix = str(error).partition("; ")
        return Finding("accelerator", False, what, fix)
    if device.type == "cpu":
        return Finding("accelerator", True, f"none, training runs on the CPU; torch {torch.__version__}")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Finding("accelerator", True, f"{', '.join(names)}; {describe_versions()}")


def _workspace(workspace: Workspace, repair: bool) -> Iterator[Finding]:
    yield Finding("workspace", True, str(workspace.root))
    for folder in unwritable(workspace):
        yield Finding("writable", False, f"{folder} cannot be written to", how_to_write(folder))
        repair = False
    storage = StorageConfig()
    try:
        settings = params.read(workspace)
        storage = settings.storage
        yield Finding("params.yaml", True, "every block is valid")
        yield from _preflight(workspace, settings)
    except ParamsError as error:
        fix = "correct the values named here" if workspace.params.exists() else "git checkout params.yaml"
        yield Finding("params.yaml", False, str(error), fix)
    yield from _shadowing(workspace.root)
    yield from _clusters(workspace.root)
    yield from _disk(workspace, storage.min_free_gigabytes, storage.max_cache_gigabytes)
    yield _git(workspace)
    yield from _locks(workspace.root, repair)
    yield from _remotes(workspace.root, repair)
    yield _kept(workspace)
    yield from _purge(workspace.root)
    yield _leftovers(workspace, repair)


def _preflight(workspace: Workspace, settings: params.Params) -> Iterator[Finding]:
    """What would end a run, and what the numbers of images do not allow."""
    try:
        for missing in requirements.unmet(workspace, settings):
            what, _, fix = missing.partition("; ")
            yield Finding("params.yaml", False, what, fix)
    except DvcError:
        pass  # the remote has its own finding
    if batches(workspace.raw):
        try:
            found = warnings(workspace, ingested(workspace))
        except FileNotFoundError as error:
            yield Finding("images", False, f"{error.filename} is missing", "dvc checkout data/raw.dvc")
            return
        for warning in found:
            what, _, fix = warning.rpartition("; ")
            yield Finding("images", True, what, fix, warning=True)


def _shadowing(root: Path) -> Iterator[Finding]:
    """Modules of the user that ``python -m`` of a stage would run, where ``simclr`` does not start it."""
    for name in ("deploy", "pipeline", "simclr_core"):
        for path in (root / f"{name}.py", root / name / "__init__.py"):
            if path.is_file():
                what = f"{path} has the name of a package of this program, and `dvc repro` by hand would import it"
                yield Finding("module names", True, what, "rename it, or export PYTHONSAFEPATH=1", warning=True)


def _clusters(root: Path) -> Iterator[Finding]:
    """Nothing where every stage runs on this machine."""
    try:
        for address, stages in cluster_check.addresses(root).items():
            line, faults = cluster_check.check(root, stages, address)
            yield Finding("cluster", not faults, "; ".join(faults) or line, "correct it on the nodes named here")
    except (SimclrError, DeployError) as error:
        what, _, fix = str(error).partition("; ")
        yield Finding("cluster", False, what, fix)


def _disk(workspace: Workspace, needed: float, budget: float | None) -> Iterator[Finding]:
    free = shutil.disk_usage(workspace.root).free
    yield Finding(
        "disk",
        free >= needed * GIGABYTE,
        f"{size(free)} free",
        f"free at least {needed:g} GB on this disk; `simclr gc` removes what no version needs",
    )
    try:
        taken = usage(workspace)
    except DvcError as error:
        yield Finding("dvc.yaml", False, str(error), "correct the file that is named here")
        return
    over = budget is not None and taken["cache"] > budget * GIGABYTE
    detail = ", ".join(f"{name} {size(count)}" for name, count in taken.items())
    yield Finding("usage", True, detail, "simclr gc; the next run does so too", warning=over)


def _git(workspace: Workspace) -> Finding:
    git = Git(workspace.root, "simclr", "simclr@localhost")
    try:
        git.require()
        changed = git.run("status", "--porcelain").splitlines()
        branch = git.run("branch", "--show-current")
    except ReleaseError as error:
        fix = "restore .git from a clone; a folder that never had one gets it by `git init`, `git add -A`, `git commit`"
        return Finding("history", False, str(error), fix)
    notes = [f"not committed: {counted(len(changed), 'new or changed file')}"] if changed else []
    notes += [] if branch else ["no branch is checked out"]
    fix = "git add --all && git commit" if changed else "git switch BRANCH, so that what you commit is not lost"
    return Finding("history", True, "; ".join(notes) or f"branch {branch}, all committed", fix, warning=bool(notes))


def _locks(root: Path, repair: bool) -> Iterator[Finding]:
    name, path = "dvc locks", root / ".dvc" / "tmp" / locks.RWLOCK
    try:
        fault = locks.rwlock_fault(root)
        if fault and repair:
            locks.rebuild_rwlock(root)
            yield Finding(name, True, f"{path}: {fault}; it is rebuilt")
        else:
            yield Finding(name, not fault, f"{path}: {fault}" if fault else "sound", "simclr doctor --repair")
    except BusyError as error:
        yield Finding(name, True, str(error), "try again when it is done", warning=True)
    except OSError as error:
        what, _, fix = describe(error).partition("; ")
        yield Finding(name, False, what, fix)
    try:
        holder = locks.lock_holder(root)
        yield Finding("dvc at work", True, holder or "no process")
    except DvcError as error:
        fix = f"rm '{root / '.dvc' / 'tmp' / 'lock'}', when no dvc runs on any machine that shares the workspace"
        yield Finding("dvc at work", True, str(error), fix, warning=True)


def _remotes(root: Path, repair: bool) -> Iterator[Finding]:
    """Without ``verify``, DVC takes what a remote gives for what was asked."""
    try:
        found = cache.remotes(root)
    except DvcError as error:
        yield Finding("remote", False, str(error), "correct .dvc/config or .dvc/config.local")
        return
    if not found:
        fix = "dvc remote add --default NAME URL: until then, this disk has the only copy of everything"
        yield Finding("remote", True, "none", fix, warning=True)
    for name, settings in found.items():
        if settings.get("verify"):
            yield Finding("remote", True, f"{name}, verified")
        elif repair:
            client.execute(root, "remote", "modify", *cache.level(root, name), name, "verify", "true")
            yield Finding("remote", True, f"{name}: did not verify downloads, and does now")
        else:
            fix = f"dvc remote modify {name} verify true, or `simclr doctor --repair`"
            yield Finding("remote", False, f"{name} does not verify downloads: a damaged file would be used", fix)


def _kept(workspace: Workspace) -> Finding:
    """Whether the last run could send its data to the remote and its state to the origin."""
    missing = unkept(workspace)
    fix = "correct what the message says; the next run sends all that is missing"
    return Finding("state of runs", missing is None, str(missing or "in branches runs/*"), fix)


def _purge(root: Path) -> Iterator[Finding]:
    if purged.find_interrupted_purge(root):
        yield Finding("purge", False, "was interrupted, and nothing else changes the workspace before", "simclr purge")
    for one, name, reason in purged.unreached(root):
        fix = f"simclr purge {' '.join(one.hashes)} --why '{one.why}', when the remote answers"
        yield Finding("purge", True, f"remote {name} may still hold the bytes: {reason}", fix, warning=True)
    for one, name in purged.shown(root):
        first = "simclr run" if name == WORKSPACE else f"simclr release withdraw {name} --why '{one.why}'"
        fix = f"{first}, and then simclr purge {' '.join(one.hashes)} --why '{one.why}'"
        yield Finding("purge", True, f"{name} still shows a small copy of a purged image", fix, warning=True)


def _leftovers(workspace: Workspace, repair: bool) -> Finding:
    """What a killed process was about to publish (``deploy.artifact``)."""
    name, folders = "leftovers", [workspace.root / folder for folder in ("data", "models", "reports", "registry")]
    found = [path for folder in folders for path in folder.rglob(".*.partial-*")]
    outermost = [path for path in found if not any(parent in found for parent in path.parents)]
    if not outermost:
        return Finding(name, True, "none")
    some = f"{counted(len(outermost), 'leftover')} of killed processes, such as {outermost[0]}"
    if not repair:
        return Finding(name, True, some, "simclr doctor --repair removes them; so may the next run", warning=True)
    try:
        with client.exclusive(workspace.root, "doctor"):
            for path in outermost:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except BusyError as error:
        return Finding(name, True, f"{some}; {error}", "try again when it is done", warning=True)
    return Finding(name, True, f"removed {counted(len(outermost), 'leftover')} of killed processes")
