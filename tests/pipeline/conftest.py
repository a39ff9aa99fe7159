"""A workspace with a few images in its inbox, made once and copied for every test."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline import workspace as workspaces
from pipeline.environment import WORKSPACE
from pipeline.ingest.raw import read_rows
from pipeline.workspace import Workspace
from tests.conftest import CLASSES, TINY_PARAMS, draw, encode
from tests.pipeline.small_graph import graph

__all__ = ["graph"]

PARAMS = TINY_PARAMS | {
    "linear_eval": TINY_PARAMS["linear_eval"] | {"fractions": ["1.0"], "l2_count": 2},
    "finetune": TINY_PARAMS["finetune"] | {"seeds": [0]},
}
"""For whole graphs, where most of the time would go into probes and trainings more of the same kind."""


@pytest.fixture(scope="session")
def empty_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = workspaces.create(tmp_path_factory.mktemp("made") / "workspace").root
    (root / "params.yaml").write_text(yaml.safe_dump(TINY_PARAMS), encoding="utf-8")
    return root


@pytest.fixture
def workspace(tmp_path: Path, empty_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace in a folder whose name has a space and is not ASCII."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    root = tmp_path / "my pictures – ähm"
    shutil.copytree(empty_workspace, root, symlinks=True)
    copied = Workspace(root.resolve())
    workspaces.point_dagster(copied)
    return copied


@pytest.fixture
def filled(workspace: Workspace) -> Workspace:
    return fill(workspace)


def fill(workspace: Workspace) -> Workspace:
    """24 unlabeled images, 8 labeled ones and 8 for the test, nothing ingested yet."""
    for number in range(24):
        put(workspace, f"unlabeled/camera {number % 2}/{number:03d}.png", encode(draw(number % 4, number)))
    for number in range(8):
        name = CLASSES[number % 4]
        put(workspace, f"labeled/{name}/{number}.png", encode(draw(number % 4, 100 + number)))
        put(workspace, f"test/{name}/{number}.png", encode(draw(number % 4, 200 + number)))
    return workspace


def read_files(batch: Path) -> list[tuple[str, str, str, str | None]]:
    """Every file of a raw batch as (SHA-256, path, split, label), in its order."""
    return [row[:4] for row in read_rows(batch)]


def put(workspace: Workspace, path: str, data: bytes, age: float = 3600) -> Path:
    """Write a file of the inbox that was last changed ``age`` seconds ago."""
    target = workspace.inbox / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    changed = target.stat().st_mtime - age
    os.utime(target, (changed, changed))
    return target


def make_key(path: Path, passphrase: str = "") -> Path:
    """A private key of OpenSSH, with its public half in ``path.pub``."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", path], check=True)
    return path
