"""A workspace of red, green and blue images, as the stages before `explore` leave it: no training, real files."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.artifact import publish
from deploy.bundle import Bundle, write_bundle
from pipeline.environment import WORKSPACE
from pipeline.explore.explore import run
from pipeline.validation import manifest
from pipeline.workspace import Workspace
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import Sample
from tests.deploy.conftest import LABELS, encoded, make_bundle
from tests.pipeline.conftest import put
from tests.pipeline.validation.corpus.manifests import HOSTILE, row, table

SIDE = 24
COLORS = {"red": (230, 30, 30), "green": (30, 230, 30), "blue": (30, 30, 230)}
HOSTILE_NAMES = [f"unlabeled/{name}" for name in HOSTILE if "/" not in name]


def color(label: str, seed: int) -> bytes:
    """An image of nearly this color, never twice the same."""
    random = np.random.default_rng(seed)
    pixels = np.array(COLORS[label]) + random.normal(0, 12, 3) + random.normal(0, 8, (SIDE, SIDE, 3))
    return encoded(pixels.clip(0, 255).astype(np.uint8))


def files() -> list[dict[str, Any]]:
    """Rows of the manifest with their ``data``: two batches, labels for a few, one test image that is labeled wrongly,
    a copy, a file that cannot be decoded, and names that try to act."""
    found = []

    def add(path: str, shade: str, seed: int, *reasons: str, **changes: Any) -> dict[str, Any]:
        data = color(shade, seed) if reasons != ("truncated",) else b"no image"
        where = {"sha256": hashlib.sha256(data).hexdigest(), "batch": "0001", "ingest_batch": "0001"}
        found.append(row(path, *reasons, **where | changes) | {"data": data})
        return found[-1]

    for number in range(48):
        label, batch = LABELS[number % 3], "0001" if number < 36 else "0002"
        add(f"unlabeled/{batch}/{number:02d}.png", label, number, batch=batch, ingest_batch=batch)
    for number, name in enumerate(HOSTILE_NAMES):
        add(name, LABELS[number % 3], 100 + number)
    for number in range(6):
        add(f"labeled/{LABELS[number % 3]}/{number}.png", LABELS[number % 3], 200 + number, label=LABELS[number % 3])
        add(
            f"test/{LABELS[number % 3]}/{number}.png",
            LABELS[number % 3],
            300 + number,
            label=LABELS[number % 3],
            split="test",
        )
    add("test/red/really blue.png", "blue", 400, label="red", split="test")
    add("unlabeled/copy.png", "red", 0, "exact_duplicate", copy_of=found[0]["sha256"])
    add("unlabeled/cut off.jpg", "red", 0, "truncated")
    near = {"near_group": found[1]["sha256"], "near_group_size": 2}
    found[1] |= near
    found[4] |= near
    return found


def make(workspace: Workspace, rows: Sequence[dict[str, Any]], bundle: Bundle | None = None) -> Workspace:
    """Everything that `explore` reads, and the files in the inbox."""
    for one in rows:
        put(workspace, one["path"], one["data"])
    with publish(workspace.manifest, replace=True) as folder:
        manifest.write(folder, [table([{name: one[name] for name in one if name != "data"} for one in rows])])
    with publish(workspace.prepared, replace=True) as folder:
        for split in ("train", "test"):
            used = [one for one in rows if one["split"] == split and one["verdict"] != "quarantine"]
            write_shards(folder / split, [[Sample(one["sha256"], "png", one["data"]) for one in used]], 1_000_000)
    with publish(workspace.root / "models" / "bundle", replace=True) as folder:
        write_bundle(folder, bundle or make_bundle())
    workspace.reports.mkdir(exist_ok=True)
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), workspace.reports / "predictions.parquet")
    put_champion(workspace, None)
    return workspace


def put_champion(workspace: Workspace, bundle: Bundle | None) -> None:
    with publish(workspace.root / "models" / "champion", replace=True) as work:
        card = {"version": "v0.0.2" if bundle else None, "commit": None, "bundle": None, "reports": {}}
        (work / "champion.json").write_text(json.dumps(card))
        if bundle:
            with publish(work / "bundle") as inner:
                write_bundle(inner, bundle)


def color_blind() -> Bundle:
    """A bundle that takes red for green, and green for red."""
    bundle = make_bundle()
    assert bundle.head is not None
    return replace(bundle, head=replace(bundle.head, labels=("green", "red", "blue")))


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory, empty_workspace: Path) -> Path:
    root = tmp_path_factory.mktemp("colors") / "my pictures – ähm"
    shutil.copytree(empty_workspace, root, symlinks=True)
    workspace = make(Workspace(root.resolve()), files())
    put_champion(workspace, color_blind())
    run(workspace)
    return workspace.root


@pytest.fixture
def explored(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of a workspace in which `explore` has run."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    return Workspace(shutil.copytree(colors, tmp_path / colors.name, symlinks=True).resolve())
