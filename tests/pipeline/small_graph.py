"""A workspace whose stages take no time: the shape of the real graph, small enough to compute by heart."""

import json
from pathlib import Path

import pytest

from pipeline.workspace import Workspace

GRAPH = """
stages:
  prepare:
    desc: Join the raw files.
    cmd: python stage.py prepare
    deps: [data/raw]
    outs:
      - data/prepared:
          desc: All of them in one.
    meta: {dagster: {group: data, kinds: [python], owners: ["team:data"], pool: dvc}}
  pretrain:
    desc: Count letters.
    cmd: python stage.py pretrain
    deps: [data/prepared]
    params: [pretrain]
    outs: [models/pretrained]
    metrics:
      - reports/pretrain.json: {cache: false}
    plots: [reports/curves.png, reports/pretrain.csv]
    meta: {dagster: {group: training, kinds: [python], owners: ["team:ml"], pool: dvc}}
  finetune:
    matrix:
      fraction: ["0.01", "0.1"]
    desc: Take a share.
    cmd: python stage.py finetune ${item.fraction}
    deps: [reports/pretrain.json]
    outs: ["models/finetuned/${item.fraction}"]
    meta: {dagster: {group: training, kinds: [python], owners: ["team:ml"], pool: dvc}}
"""

STAGES = r"""
import json, os, sys
from pathlib import Path

def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

def emit(message):
    with open(os.environ.get("SIMCLR_EVENTS", os.devnull), "a") as file:
        file.write(json.dumps({"event": "progress", "stage": name, "message": message}) + "\n")

name = sys.argv[1]
print("this is", name)
if Path(name + ".fault").exists():
    sys.exit("error: " + Path(name + ".fault").read_text())
if name == "prepare":
    write("data/prepared/all.txt", "".join(file.read_text() for file in sorted(Path("data/raw").iterdir())))
elif name == "pretrain":
    emit("epoch 1")
    emit("epoch 2")
    text = Path("data/prepared/all.txt").read_text()
    write("models/pretrained/model.txt", str(len(text)))
    write("reports/pretrain.json", json.dumps({"finite": True, "letters": {"count": len(text), "mean": None}}))
    write("reports/pretrain.csv", "epoch,loss\n")
    write("reports/curves.png", "not a real picture")
    write(".simclr/timings/pretrain.json", json.dumps({"seconds": 1.5}))
else:
    write(f"models/finetuned/{sys.argv[2]}/model.txt", sys.argv[2])
"""


def write_graph(workspace: Workspace, graph: str) -> Workspace:
    (workspace.root / "dvc.yaml").write_text(graph, encoding="utf-8")
    return workspace


@pytest.fixture
def graph(workspace: Workspace) -> Workspace:
    """A workspace with the graph above and one raw file, nothing computed."""
    return fill(workspace)


def fill(workspace: Workspace) -> Workspace:
    (workspace.root / "stage.py").write_text(STAGES, encoding="utf-8")
    (workspace.root / "params.yaml").write_text(json.dumps({"pretrain": {"epochs": 2}}), encoding="utf-8")
    workspace.raw.mkdir(parents=True)
    (workspace.raw / "one.txt").write_text("abc", encoding="utf-8")
    return write_graph(workspace, GRAPH)


def log_of(workspace: Workspace, stage: str) -> Path:
    return workspace.scratch / "logs" / f"{stage}.log"
