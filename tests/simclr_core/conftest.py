"""Shared by the tests of simclr_core: a function run on several gloo ranks, a pretrained workspace, a champion."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from torchvision.models import shufflenetv2, swin_transformer, vision_transformer

import deploy.failpoint
from deploy.artifact import publish, write_atomically
from simclr_core import launch, plots
from simclr_core.data.shards import read_card, write_card
from simclr_core.launch import Member
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import save_model
from simclr_core.pretraining import pretrain
from tests.conftest import write_prepared
from tests.processes import call
from tests.processes.once import make_once

STEPS = 12  # two epochs of six, as the `prepared` workspace asks
SECONDS = 90  # the first rank waits for torch to be imported, which takes a busy machine a while


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """``on_ranks(world, function, *arguments)``: what ``function(rank, *arguments)`` returns on each rank, in order.

    ``function`` must stand at the top of its test file, for the processes of the ranks import it.
    """

    def run(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        folder = tmp_path / f"{function.__name__}-{world}"
        folder.mkdir()
        called = [partial(_rank, rank, world, folder, function, arguments) for rank in range(world)]
        ranks = [call.start(folder / f"call-{rank}", one) for rank, one in enumerate(called)]
        try:
            deadline = time.monotonic() + SECONDS
            while None in (ended := [process.poll() for process in ranks]):
                assert not any(ended), f"{function.__name__} failed on a rank"
                assert time.monotonic() < deadline, f"{function.__name__} hangs on {world} ranks"
                with suppress(subprocess.TimeoutExpired):
                    ranks[ended.index(None)].wait(0.05)
            assert not any(ended), f"{function.__name__} failed on a rank"
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return [torch.load(folder / f"{rank}.pt") for rank in range(world)]

    return run


def _rank(rank: int, world: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    limit = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout=limit, rank=rank, world_size=world)
    torch.save(function(rank, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def put_in_group(patch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    """A stage finds itself in the group of ``on_ranks``, as if a launcher had started it."""
    patch.setattr(launch, "_joined", lambda _: nullcontext(Member(rank, size, torch.device("cpu"))))


CARD = {
    "kind": "pretrained",
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "compact"},
    "preprocessing": {"size": 16, "resize": 16},
    "mean": [0.4, 0.4, 0.4],
    "std": [0.3, 0.3, 0.3],
    "config": {"augmentation": {"flip": 0.5}},
}


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ViTs, Swins and ShuffleNets of torchvision with few and narrow blocks: every layer, and a hundredth of the
    weights."""

    def change(module: ModuleType, name: str, **changes: object) -> None:
        make = getattr(module, name)
        monkeypatch.setattr(module, name, lambda **given: make(**given | changes))

    change(vision_transformer, "_vision_transformer", num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=96)
    change(swin_transformer, "_swin_transformer", embed_dim=24, depths=[2, 2, 2, 2])
    shuffle = shufflenetv2._shufflenetv2
    monkeypatch.setattr(shufflenetv2, "_shufflenetv2", lambda *given: shuffle(*given[:2], [2, 2, 2], *given[3:]))


@pytest.fixture
def pretrained(prepared: Path) -> Path:
    """The workspace ``prepared`` with an untrained encoder in models/pretrained."""
    return put_pretrained(prepared)


def configure(workspace: Path, **changes: object) -> None:
    """Change parameters of the block ``pretrain``."""
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["pretrain"].update(changes)
    path.write_text(yaml.safe_dump(params), encoding="utf-8")


def put_pretrained(workspace: Path) -> Path:
    torch.manual_seed(7)
    with publish(workspace / "models" / "pretrained") as work:
        save_model(work, build_encoder("resnet10", 0.125, "compact"), {}, CARD)
    return workspace


def crown(workspace: Path, version: str | None = "v0.0.1") -> Path:
    """models/champion as a run pins it: ``models/pretrained`` is released, or with None nothing is."""
    champion = workspace / "models" / "champion"
    with publish(champion, replace=True) as work:
        (work / "champion.json").write_text(json.dumps({"version": version}), encoding="utf-8")
        if version is not None:
            shutil.copytree(workspace / "models" / "pretrained", work / "pretrained")
    return champion


def relabel(workspace: Path, split: str, labels: np.ndarray) -> None:
    """Give the images of a split other labels."""
    path = workspace / "data" / "prepared" / split / "index.npy"
    index = np.load(path)
    index["label"] = labels
    np.save(path, index)


SETS = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]], bool)
"""The labels of an image by what is drawn on it: two, one, none of the classes, and two others."""


def put_label_sets(workspace: Path, unlabeled: tuple[str, ...] = ()) -> None:
    """The prepared images, with several labels where they had one; as ``prepare`` writes them."""
    prepared = workspace / "data" / "prepared"
    for split in ("train", "test"):
        index = np.load(prepared / split / "index.npy")
        known = index["label"] >= 0
        rows = np.where(known[:, None] & (split not in unlabeled), SETS[index["label"]].astype(np.int8), np.int8(-1))
        index["label"] = -1
        np.save(prepared / split / "index.npy", index)
        np.save(prepared / split / "labels.npy", rows.astype(np.int8))
    write_card(prepared, replace(read_card(prepared), multi_label=True, digest="1" * 64))


def put_groups(workspace: Path, numbers: np.ndarray) -> None:
    """Give the training images groups by number, -1 for none; the digest changes, as after ``prepare``."""
    prepared = workspace / "data" / "prepared"
    np.save(prepared / "train" / "groups.npy", numbers.astype(np.int32))
    digest = hashlib.sha256(numbers.tobytes()).hexdigest()
    write_card(prepared, replace(read_card(prepared), digest=digest))


def results(workspace: Path) -> dict[str, bytes]:
    """Every byte that the stage is answerable for."""
    files = [
        path
        for folder in ("models/pretrained", "reports")
        for path in (workspace / folder).rglob("*")
        if path.is_file()
    ]
    return {path.relative_to(workspace).as_posix(): path.read_bytes() for path in sorted(files)}


def weights(files: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Those of encoder and head, of ``results``."""
    return files["models/pretrained/encoder.safetensors"], files["models/pretrained/head.safetensors"]


def runs(workspace: Path) -> list[str]:
    """Checkpoints that an interrupted run has left."""
    return sorted(path.name for path in (workspace / ".simclr" / "runs").glob("*/step-*"))


def interrupt(workspace: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Run the stage, and make it fail at a failpoint."""
    deploy.failpoint._reached.clear()
    with monkeypatch.context() as patch:
        patch.setenv("SIMCLR_FAILPOINT", place)
        with pytest.raises(RuntimeError, match="failpoint"):
            pretrain.run(workspace)


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pictures_by_digest: None) -> dict[str, bytes]:
    """The results of an undisturbed run in a copy of ``prepared``, made once."""
    return results(make_once(tmp_path_factory, "undisturbed", lambda folder: pretrain.run(write_prepared(folder))))


def metrics_of(workspace: Path) -> dict[str, Any]:
    return json.loads((workspace / "reports" / "pretrain.json").read_text())


@pytest.fixture
def pictures_by_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is the SHA-512 of what it shows, in gray: drawing takes half of the time of a small pretraining."""
    for draw in (plots.curves, plots.image_grid, plots.confusion_matrix, plots.scatter):
        monkeypatch.setattr(plots, draw.__name__, partial(_draw_digest, draw.__name__))


def _draw_digest(name: str, path: Path, *shown: object, **options: object) -> None:
    content, picture = io.BytesIO(), io.BytesIO()
    pickler = pickle.Pickler(content)
    pickler.fast = True  # without references: equal content gives equal bytes
    pickler.dump((name, shown, options))
    pixels = np.frombuffer(hashlib.sha512(content.getvalue()).digest(), np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(picture, "PNG")
    write_atomically(path, picture.getvalue())
