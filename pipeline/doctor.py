"""``simclr doctor``: is everything here that a run needs, and if not, which command brings it."""

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import ParamsError, WorkspaceError
from pipeline.workspace import Workspace, find, unwritable

PACKAGES = ("dagster", "dvc", "great-expectations", "torch", "torchvision", "onnx", "onnxruntime", "pillow", "pyarrow")
FREE_GIGABYTES = 2.0  # the demo's workspace takes 0.2; a torch checkpoint of a ResNet-50 with its optimizer 0.2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``fix`` is the command or the deed that mends it."""

    name: str
    healthy: bool
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.healthy else 'FAIL'}  {self.name:<20} {self.detail}"
        return line if self.healthy else f"{line}\n      fix: {self.fix}"


def examine(start: Path | None = None) -> list[Finding]:
    """Everything that can be known without running a stage."""
    findings = [_python(), *map(_package, PACKAGES), _antlr(), _tool("git"), _cores(), _accelerator()]
    try:
        workspace = find(start)
    except WorkspaceError as error:
        return [*findings, Finding("workspace", start is None, str(error), "simclr init DIR")]
    return [*findings, *_workspace(workspace)]


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
    if not torch.cuda.is_available():
        return Finding("accelerator", True, "none, training runs on the CPU")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Finding("accelerator", True, ", ".join(names))


def _workspace(workspace: Workspace) -> list[Finding]:
    from pipeline import params

    free = shutil.disk_usage(workspace.root).free / 1e9
    findings = [
        Finding("workspace", True, str(workspace.root)),
        Finding(
            "disk", free >= FREE_GIGABYTES, f"{free:.1f} GB free", f"free at least {FREE_GIGABYTES:g} GB on this disk"
        ),
    ]
    findings += [
        Finding("writable", False, f"{folder} is not", f"chmod u+rwx '{folder}', or run as its owner")
        for folder in unwritable(workspace)
    ]
    try:
        params.read(workspace)
        findings.append(Finding("params.yaml", True, "every block is valid"))
    except ParamsError as error:
        findings.append(Finding("params.yaml", False, str(error), "correct the values named here"))
    return findings
