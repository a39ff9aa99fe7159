"""A workspace with a DVC remote, an origin, and a candidate: the shape of the real graph, with bundles that are real.

A candidate is the bundle of tests/deploy with its own matrix, made by stages that only copy.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy.artifact import identity, publish
from deploy.bundle import Bundle, write_bundle
from deploy.images.preprocess import Preprocessing, decode
from pipeline import workspace as workspaces
from pipeline.dvc import client
from pipeline.environment import WORKSPACE
from pipeline.params import override
from pipeline.release import champion
from pipeline.release.release import release
from pipeline.workspace import Workspace
from tests.conftest import TINY_PARAMS
from tests.deploy.conftest import MIXING, SIZE, make_bundle, make_card, make_model

ARTIFACT = "simclr-encoder"
GOLDEN = Path(__file__).parents[2] / "golden"
GRAPH = """
stages:
  pretrain:
    cmd: python stage.py pretrain
    deps: [data/raw]
    params: [pretrain.epochs]
    outs: [models/pretrained]
    metrics:
      - reports/pretrain.json: {cache: false}
      - reports/validation.json: {cache: false}
      - reports/linear_eval.json: {cache: false}
    plots: [reports/pretrain.csv]
  export:
    cmd: python stage.py export
    deps: [models/pretrained]
    outs: [models/bundle]
    metrics: [{reports/export.json: {cache: false}}]
  compare:
    cmd: python stage.py compare
    deps: [models/bundle, models/champion]
    metrics: [{reports/compare.json: {cache: false}}]
artifacts:
  simclr-encoder: {path: models/bundle, type: model}
"""
STAGES = r"""
import json, shutil, sys
from pathlib import Path

def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))

def report(name):
    return json.loads(Path("../factory/reports", name + ".json").read_text())

number = Path("data/raw/number").read_text()
source = Path("../factory") / number
if sys.argv[1] == "pretrain":
    shutil.copytree(source / "pretrained", "models/pretrained")
    write("reports/pretrain.json", {"finite": True})
    validation, evaluation = report("validation"), report("linear_eval")
    validation["images"]["accepted"] = 100 * int(number)
    evaluation["simclr"] = {"knn_top1": 70.0 + int(number), "linear_top1": {"1.0": 80.0}, "linear_top5": {"1.0": 99.0}}
    write("reports/validation.json", validation)
    write("reports/linear_eval.json", evaluation)
    write("reports/pretrain.csv", "epoch,loss\n")
elif sys.argv[1] == "export":
    shutil.copytree(source / "bundle", "models/bundle")
    write("reports/export.json", report("export") | {"megabytes": 0.001})
else:
    before = json.loads(Path("models/champion/champion.json").read_text())["version"]
    pair = {"candidate": 70.0, "champion": 69.0, "candidate_only": 2, "champion_only": 1}
    write("reports/compare.json", report("compare") | {"champion": before, "knn": pair, "probe": pair})
"""


def make_candidate(factory: Path, number: int) -> None:
    """What the stages copy: a bundle that verifies, and another artifact."""
    mixing = MIXING * np.float32(1 + number / 10) + np.float32(number)
    card = make_card(name=f"encoder {number}")
    whole = make_bundle(card, make_model(card, mixing).SerializeToString(), labels=False)
    pixels = [Preprocessing(SIZE, SIZE + 2).apply(decode(image)) for image in whole.golden_images]
    features = np.stack([image.reshape(-1, 3).mean(axis=0).astype(np.float32) / 255 @ mixing for image in pixels])
    vectors = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    bundle = Bundle(card, whole.model, None, whole.golden_images, vectors, {"MODEL_CARD.md": f"# Encoder {number}\n"})
    with publish(factory / str(number) / "bundle") as work:
        write_bundle(work, bundle)
    with publish(factory / str(number) / "pretrained") as work:
        (work / "model.json").write_text(json.dumps({"number": number}), encoding="utf-8")


def compute(workspace: Workspace, number: int) -> str:
    """Everything that a run does before the release, on the images of this number; returns the id of the bundle."""
    (workspace.raw / "number").unlink(missing_ok=True)
    (workspace.raw / "number").write_text(str(number), encoding="utf-8")
    client.add(workspace.root, workspace.raw)
    champion.pin(workspace)
    client.execute(workspace.root, "repro")
    return identity(workspace.root / "models" / "bundle")


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def dvc(root: Path, *arguments: str) -> str:
    return client.execute(root, *arguments)


def tags(workspace: Workspace) -> list[str]:
    return git(workspace.root, "tag", "--list", "--sort=creatordate").splitlines()


def store(workspace: Workspace) -> Path:
    """The folder that is the DVC remote."""
    return workspace.root.parent / "store"


def origin(workspace: Workspace) -> Path:
    return workspace.root.parent / "origin.git"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No workspace of the caller, and stages that run with this Python."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="session")
def _computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the workspace, the DVC remote, the origin, and what candidates are made of."""
    place = tmp_path_factory.mktemp("release") / "place"
    for number in range(1, 5):
        make_candidate(place / "factory", number)
    shutil.copytree(GOLDEN, place / "factory" / "reports")
    workspace = workspaces.create(place / "workspace")
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(TINY_PARAMS), encoding="utf-8")
    (workspace.root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (workspace.root / "stage.py").write_text(STAGES, encoding="utf-8")
    git(workspace.root, "add", "--all")
    git(workspace.root, "-c", "user.name=user", "-c", "user.email=user@example.org", "commit", "-qm", "The graph")
    git(place, "init", "--quiet", "--bare", "origin.git")
    git(workspace.root, "remote", "add", "origin", "../origin.git")
    dvc(workspace.root, "remote", "add", "--default", "store", "../store")
    workspace.raw.mkdir(parents=True)
    compute(workspace, 1)
    return place


@pytest.fixture(scope="session")
def _released(_computed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two releases."""
    place = tmp_path_factory.mktemp("released") / "place"
    shutil.copytree(_computed, place, symlinks=True)
    workspace = Workspace((place / "workspace").resolve())
    release(workspace)
    compute(workspace, 2)
    release(workspace)
    return place


@pytest.fixture(scope="session")
def _third(_released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("third") / "place"
    shutil.copytree(_released, place, symlinks=True)
    workspace = Workspace((place / "workspace").resolve())
    override(workspace, {"pretrain.epochs": "3"})
    compute(workspace, 3)
    return place


@pytest.fixture
def computed(_computed: Path, tmp_path: Path) -> Workspace:
    """A candidate, and nothing released."""
    shutil.copytree(_computed, tmp_path / "place", symlinks=True)
    return Workspace((tmp_path / "place" / "workspace").resolve())


@pytest.fixture
def released(_released: Path, tmp_path: Path) -> Workspace:
    """v0.0.1 and v0.0.2 are released, the second serves, and there is nothing to do."""
    shutil.copytree(_released, tmp_path / "place", symlinks=True)
    return Workspace((tmp_path / "place" / "workspace").resolve())


@pytest.fixture
def third(_third: Path, tmp_path: Path) -> Workspace:
    """The same, and a third candidate, with another parameter, that is not released yet."""
    shutil.copytree(_third, tmp_path / "place", symlinks=True)
    return Workspace((tmp_path / "place" / "workspace").resolve())
