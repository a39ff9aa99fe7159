"""A month in minutes: five batches arrive, one after the other, and what runs, waits, is refused and is served follows.

The sensor is asked as Dagster's daemon asks it, and what it requests is run with everything real but the sizes.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import yaml
from PIL import Image

import deploy
from pipeline.defs import build_definitions
from pipeline.release.registry import open_registry
from pipeline.release.release import rollback
from pipeline.reports import ValidationReport
from pipeline.workspace import Workspace
from simclr_core import reports
from tests.conftest import CLASSES, TINY_PARAMS, draw, encode
from tests.pipeline.conftest import put

PARAMS = TINY_PARAMS | {
    "validate": {"min_images": 1, "max_quarantine_rate": 0.4},
    "finetune": TINY_PARAMS["finetune"] | {"seeds": [0], "epochs": 8, "epochs_few": 8, "min_steps": 50},
    "pretrain": TINY_PARAMS["pretrain"] | {"epochs": 4},
    "retraining": {"min_new_images": 40, "min_new_images_after_drift": 20, "quiet_minutes": 0},
    # Eighty test images cannot rule out a small loss; the latencies of tiny models on a busy machine need a wide
    # budget.
    # Four epochs on so few images of simple shapes gain something over random weights, and not over pixels.
    "gates": {
        "max_loss": 50.0,
        "max_low_label_loss": 10.0,
        "max_latency_ratio": 100.0,
        "baselines": ["random_init"],
        "abstain": "warn",
    },
}


@pytest.fixture
def instance(workspace: Workspace) -> Iterator[dg.DagsterInstance]:
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
    with dg.DagsterInstance.from_config(str(workspace.root)) as instance:
        yield instance


class Month:
    """The workspace, its sensor, and the runs that it requests."""

    def __init__(self, workspace: Workspace, instance: dg.DagsterInstance) -> None:
        self.workspace, self.instance = workspace, instance
        self.definitions = build_definitions(workspace)
        self.cursor: str | None = None

    def tick(self) -> dg.RunRequest | str:
        """What the sensor says: a run, or why there is none."""
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, definitions=self.definitions)
        answer = self.definitions.resolve_sensor_def("new_images").evaluate_tick(context)
        self.cursor = answer.cursor
        return answer.run_requests[0] if answer.run_requests else str(answer.skip_message)

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def("retrain")
        tags = {**request.tags, "dagster/run_key": str(request.run_key)}
        return job.execute_in_process(dict(request.run_config), self.instance, tags=tags, raise_on_error=False)

    def night(self) -> dg.ExecuteInProcessResult:
        """A tick that has to request a run, and that run; the tick after it has to be quiet."""
        request = self.tick()
        assert isinstance(request, dg.RunRequest), request
        result = self.run(request)
        assert isinstance(self.tick(), str)
        return result

    def validation(self) -> ValidationReport:
        return reports.read(self.workspace.root, ValidationReport)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_batches_and_a_rollback(workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    month = Month(workspace, instance)
    golden = tmp_path / "query.png"
    golden.write_bytes(encode(draw(1, 999_999)))

    # A good one: trained, and released as the first version.
    assert month.tick() == "nothing new"
    for number in range(120):
        put(workspace, f"unlabeled/first/{number:03d}.png", encode(draw(number % 4, number)))
    for number in range(160):
        put(workspace, f"labeled/{CLASSES[number % 4]}/{number:03d}.png", encode(draw(number % 4, 1000 + number)))
    for number in range(80):
        put(workspace, f"test/{CLASSES[number % 4]}/{number:03d}.png", encode(draw(number % 4, 2000 + number)))
    request = month.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.tags["simclr/reason"] == "360 new images"
    assert month.night().success, failed(instance)
    assert (open_registry(workspace).versions(), open_registry(workspace).current()) == (["v0.0.1"], "v0.0.1")
    first = served(workspace, golden)
    assert month.tick() == "nothing new since v0.0.1"

    # A tiny one: not worth a night.
    for number in range(5):
        put(workspace, f"unlabeled/tiny/{number}.png", encode(draw(number % 4, 3000 + number)))
    assert month.tick() == "5 new images since v0.0.1, the sensor waits for 40"

    # A drifted one: trained on together with the tiny one, with a warning.
    for number in range(60):
        put(workspace, f"unlabeled/dusk/{number:02d}.png", encode(dusk(draw(number % 4, 4000 + number))))
    assert month.night().success, failed(instance)
    drift = month.validation().drift
    assert drift is not None
    assert drift.verdict == "drift"
    assert open_registry(workspace).current() == "v0.0.2"
    second = served(workspace, golden)
    assert not np.allclose(first, second)

    # After drift, fewer are worth it. A damaged one: what is broken is set aside, the rest is used.
    for number in range(20):
        put(workspace, f"unlabeled/damaged/whole-{number:02d}.png", encode(draw(number % 4, 5000 + number)))
    for number in range(8):
        broken = encode(draw(number % 4, 6000 + number))
        put(workspace, f"unlabeled/damaged/broken-{number}.png", broken[: len(broken) // 2])
    request = month.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.tags["simclr/reason"] == "28 new images since v0.0.2"

    # Before it runs, one comes that makes the model worse: someone has mixed up the folders of the classes.
    for number in range(160):
        wrong = CLASSES[(number + 1) % 4]
        right = workspace.inbox / "labeled" / CLASSES[number % 4] / f"{number:03d}.png"
        right.rename(workspace.inbox / "labeled" / wrong / f"again-{number:03d}.png")
    assert not month.night().success
    images = month.validation().images
    assert images.ingested - images.accepted == 8
    assert images.quarantined == {"truncated": 8}
    assert open_registry(workspace).current() == "v0.0.2"
    assert open_registry(workspace).versions() == ["v0.0.1", "v0.0.2"]
    (rejected,) = open_registry(workspace).rejections()
    assert set(rejected.gate.split(", ")) & {"beats_baselines", "low_label"}  # its numbers are those of a guess
    assert "fix the cause and start `retrain`" in str(month.tick())

    # Back by a version: the old encoder serves.
    rollback(workspace, "v0.0.1")
    np.testing.assert_array_equal(served(workspace, golden), first)
    shown = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "info", str(workspace.root / "registry")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "v0.0.1" in shown.stdout


def served(workspace: Workspace, image: Path) -> np.ndarray:
    vectors: np.ndarray = deploy.load(workspace.root / "registry").embed(image).vectors
    return vectors


def dusk(image: Image.Image) -> Image.Image:
    """The same scene in little, blue light."""
    pixels = np.asarray(image).astype(float) * [0.25, 0.3, 0.5]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def failed(instance: dg.DagsterInstance) -> str:
    from pipeline.defs.failures import explain

    return str(explain(instance, instance.get_runs(limit=1)[0].run_id))
