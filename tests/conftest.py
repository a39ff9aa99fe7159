"""Fixtures that more than one package needs: small, deterministic, with classes that a tiny network can tell apart."""

import gc
import hashlib
import io
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaml
from PIL import Image

# Tests run next to each other, as do the processes that they start: one thread for each, and none that spins.
# OpenMP, which comes with torch, reads this once, so nothing that is imported here may import torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import deploy.failpoint
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import DatasetCard, Sample, write_card
from simclr_core.pretraining import initial
from tests.processes import ray_cluster as clusters
from tests.processes import warm

# A shell that starts the tests in the background lets them ignore SIGINT, and so would every process they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Until the tests are collected, see below: what they import stays, and the search for garbage in it takes a quarter of
# that time.
gc.disable()
TESTS = Path(__file__).parent
MEMORY = Path("/dev/shm")
CLASSES = ("circle", "cross", "square", "stripes")
# What takes seconds to make, by the start of the path of the tests that share it: the first of them takes as long.
EXPENSIVE_FIXTURES = {
    "pipeline/defs/test_stage_assets.py": {"computed"},
    "pipeline/maintenance/test_storage.py": {"made"},
    "pipeline/purge/": {"ingested"},
    "pipeline/release/": {"_computed", "_released", "_third"},
    "pipeline/validation/drift/test_drift.py": {"clothes", "photographs"},
    "pipeline/validation/probe/test_bad_files.py": {"table"},
    "pipeline/validation/report/test_data_docs.py": {"spoiled"},
    "pipeline/validation/test_quarantine.py": {"validated"},
    "simclr_core/evaluation/multi_label/test_stages.py": {"evaluated"},
    "simclr_core/evaluation/test_linear_eval.py": {"evaluated"},
    "simclr_core/export/test_export.py": {"exported"},
    "simclr_core/export/test_quantize.py": {"network", "transformer"},
    "simclr_core/export/test_served.py": {"bundle"},
    "simclr_core/export/test_variants.py": {"exported"},
    "simclr_core/pretraining/test_collapse.py": {"undisturbed"},
    "simclr_core/pretraining/test_warm_start.py": {"champion", "finished"},
    "test_package.py": {"wheel"},
}
SIDE = 16

TINY_PARAMS = {
    "ingest": {"settle_seconds": 0.0},
    "validate": {"min_images": 1, "max_quarantine_rate": 0.9},
    "prepare": {"short_side": 256, "background": "white", "channels": None},  # dvc.yaml names them
    "embedding_drift": {},
    "pretrain": {
        "encoder": {"name": "resnet10", "width": 0.125, "stem": "compact"},
        "projection_head": {"layers": 2, "width": 16, "dim": 8},
        "augmentation": {"crop_scale": [0.4, 1.0], "grayscale": 0.0, "blur": 0.0},
        "image_size": SIDE,
        "resize": None,  # dvc.yaml names it
        "batch_size": 16,
        "epochs": 2,
        "temperature": 0.5,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "warmup_epochs": 0,
        "checkpoint_every_steps": 2,
    },
    "watch": {},
    "linear_eval": {
        "fractions": ["0.1", "1.0"],
        "labels_per_class": [],
        "draws": 1,
        "l2_count": 3,
        "knn_neighbours": 5,
    },
    "finetune": {
        "seeds": [0, 1],
        "epochs": 2,
        "epochs_few": 2,
        "min_steps": 3,
        "batch_size": 8,
        "crop_scale": [0.8, 1.0],
    },
    "export": {},
    "compare": {"knn_neighbours": 5, "l2_count": 2},
    "retraining": {},
    "gates": {"abstain": "warn"},  # a few test images decide nothing
    "release": {},
    "storage": {"min_free_gigabytes": 0.0},
}


def draw(label: int, seed: int, side: int = SIDE) -> Image.Image:
    """An RGB image of one of the four classes, never twice the same."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2 + random.uniform(-2, 2, (2, 1, 1))
    distance, size = np.hypot(x, y), side / random.uniform(3, 4)
    shape = [
        distance < size,
        np.minimum(abs(x), abs(y)) < side / 10,
        np.maximum(abs(x), abs(y)) < size,
        (x + side) % 5 < 2.5,
    ][label]
    color, ground = random.integers(140, 256, 3), random.integers(0, 90, 3)
    pixels = np.where(shape[..., None], color, ground) + random.normal(0, 6, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def write_prepared(workspace: Path, train: int = 96, test: int = 40, labeled: float = 0.5) -> Path:
    """A workspace folder with ``params.yaml``, ``data/prepared`` in two batches, and ``models/initial`` to start from
    scratch; the first ``labeled`` share of the training images has labels."""
    for name, content in _prepared_files(train, test, labeled).items():
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return workspace


@cache
def _prepared_files(train: int, test: int, labeled: float) -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        workspace = Path(name)
        folder = workspace / "data" / "prepared"
        for split, count, first in (("train", train, 0), ("test", test, 10_000)):
            samples = []
            for number in range(count):
                data = encode(draw(number % 4, first + number))
                known = split == "test" or number < labeled * count
                samples.append(Sample(hashlib.sha256(data).hexdigest(), "png", data, number % 4 if known else -1))
            write_shards(folder / split, [samples[: count // 2], samples[count // 2 :]], max_bytes=20_000)
        counts = {"train": train, "train_labelled": int(train * labeled), "test": test}
        write_card(folder, DatasetCard(CLASSES, (0.4, 0.4, 0.4), (0.3, 0.3, 0.3), SIDE, SIDE, counts, "0" * 64))
        (workspace / "params.yaml").write_text(yaml.safe_dump(TINY_PARAMS), encoding="utf-8")
        initial.run(workspace)
        files = [path for path in workspace.rglob("*") if path.is_file()]
        return {path.relative_to(workspace).as_posix(): path.read_bytes() for path in files}


def pytest_configure() -> None:
    """What the tests write is flushed to the disk thousands of times; in memory that costs nothing."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 8 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(tryfirst=True)  # before pytest leaves tests out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First the files that take longest: one that came last would keep one core busy and the others waiting.

    The Makefile gives each file to one process, in the order of its first test.
    """
    tenths: Counter[Path] = Counter()
    for item in items:
        if _expensive_fixtures(item.path) & {*getattr(item, "fixturenames", ())}:
            item.add_marker("seconds")
        tenths[item.path] += _tenths(item)
    items.sort(key=lambda item: -tenths[item.path])


@cache
def _expensive_fixtures(file: Path) -> set[str]:
    path = file.relative_to(TESTS).as_posix()
    return next((names for start, names in EXPENSIVE_FIXTURES.items() if path.startswith(start)), set())


def _tenths(item: pytest.Item) -> int:
    """About how many tenths of a second a test takes, by its marks."""
    if any(mark.args[0] > 300 for mark in item.iter_markers("timeout")):
        return 600  # a whole flow
    if item.get_closest_marker("slow"):
        return 100
    return 10 if item.get_closest_marker("seconds") else 1


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _warm_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    warm.install(tmp_path_factory.mktemp("warm"))
    yield
    warm.uninstall()


@pytest.fixture(autouse=True)
def _failpoints_count_again() -> None:
    deploy.failpoint._reached.clear()


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """See ``write_prepared``: 96 training images, half of them labeled, and 40 test images in four classes."""
    return write_prepared(tmp_path)


@pytest.fixture(scope="session")  # a process keeps the token of the first cluster that it reached
def ray_nodes() -> Iterator[clusters.Nodes]:
    """Two nodes, which no test may end."""
    with clusters.started(nodes=2) as nodes:
        yield nodes


@pytest.fixture
def ray_cluster(ray_nodes: clusters.Nodes) -> Iterator[None]:
    """Ray sets more variables when it is imported; with them, no later test of this process would start warm."""
    before = dict(os.environ)
    os.environ.update(ray_nodes.variables)
    yield
    os.environ.clear()
    os.environ.update(before)
