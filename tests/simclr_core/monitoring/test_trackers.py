"""Trackers see what there is to see, and cannot hold a training up: through stand-ins with the surface of the real
packages, which are not part of the lock."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from simclr_core.errors import TrackerError
from simclr_core.monitoring import trackers
from simclr_core.monitoring.trackers import Tracker, close_trackers, open_trackers
from simclr_core.pretraining import pretrain
from tests.processes.busy import stretched

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

CONFIG = {"epochs": 2, "encoder": {"name": "resnet10", "width": 0.5}, "crop": (0.2, 1.0)}


class Wandb(ModuleType):
    """What is used of wandb 0.31."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []

    def Settings(self, **settings: object) -> Mapping[str, object]:  # noqa: N802
        return settings

    def init(self, **arguments: object) -> SimpleNamespace:
        self.calls.append(("init", arguments))
        return SimpleNamespace(
            define_metric=lambda name, step_metric: self.calls.append(("define", (name, step_metric))),
            log=lambda values: self.calls.append(("log", values)),
            finish=lambda: self.calls.append(("finish", None)),
        )

    def logged(self) -> list[Any]:
        return [values for name, values in self.calls if name == "log"]


class MlflowClient:
    """What is used of mlflow.tracking.MlflowClient of mlflow 3; the store outlives the client."""

    store: dict[str, Any]

    def __init__(self, tracking_uri: str) -> None:
        self.store["uri"] = tracking_uri

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id="1") if name in self.store["experiments"] else None

    def create_experiment(self, name: str) -> str:
        self.store["experiments"].append(name)
        return "1"

    def search_runs(self, experiments: list[str], query: str) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=name))
            for name, run in self.store["runs"].items()
            if query == f"tags.`simclr.run_key` = '{run['tags']['simclr.run_key']}'"
        ]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        name = f"run {len(self.store['runs'])}"
        self.store["runs"][name] = {"tags": tags, "params": {}, "metrics": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_param(self, run: str, key: str, value: str) -> None:
        self.store["runs"][run]["params"][key] = value

    def log_metric(self, run: str, key: str, value: float, step: int) -> None:
        self.store["runs"][run]["metrics"].append((key, value, step))

    def update_run(self, run: str, status: str) -> None:
        self.store["runs"][run]["status"] = status

    def set_terminated(self, run: str) -> None:
        self.store["runs"][run]["status"] = "FINISHED"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    store: dict[str, Any] = {"experiments": [], "runs": {}}
    package, module = ModuleType("mlflow"), ModuleType("mlflow.tracking")
    module.MlflowClient = type("MlflowClient", (MlflowClient,), {"store": store})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", module)
    return store


def log_twice(name: str, scratch: Path) -> str:
    opened = open_trackers([name], scratch, "abc", CONFIG)
    for epoch in (1, 2):
        opened[0].log({"loss": 3.0 / epoch}, epoch)
    return close_trackers(opened, 10)


def test_wandb_gets_the_run_key_the_configuration_and_every_epoch(wandb: Wandb, tmp_path: Path) -> None:
    assert log_twice("wandb", tmp_path) == ""
    (first, arguments), defined, *_, (last, _) = wandb.calls
    assert (first, last) == ("init", "finish")
    assert arguments["id"] == "abc"
    assert arguments["resume"] == "allow"
    assert arguments["config"] == CONFIG
    assert Path(arguments["dir"]).is_relative_to(tmp_path)
    assert arguments["settings"]["console"] == "off"
    assert defined == ("define", ("*", "epoch"))
    assert wandb.logged() == [{"loss": 3.0, "epoch": 1}, {"loss": 1.5, "epoch": 2}]


def test_mlflow_continues_in_the_run_of_the_same_key(mlflow: dict[str, Any], tmp_path: Path) -> None:
    for _ in range(2):
        assert log_twice("mlflow", tmp_path) == ""
    assert mlflow["uri"] == f"sqlite:///{tmp_path / 'mlflow.db'}"
    (run,) = mlflow["runs"].values()
    assert run["params"] == {"epochs": "2", "encoder.name": "resnet10", "encoder.width": "0.5", "crop": "(0.2, 1.0)"}
    assert run["metrics"] == [("loss", 3.0, 1), ("loss", 1.5, 2)] * 2
    assert run["status"] == "FINISHED"


def test_a_step_is_shown_by_its_number_or_its_part_of_the_epochs(
    wandb: Wandb, mlflow: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("wandb", "mlflow"):
        (opened,) = open_trackers([name], tmp_path, "abc", CONFIG)
        opened.log({"step/loss": 3.0}, 1.5, 12)
        close_trackers([opened], 10)
    assert wandb.logged() == [{"step/loss": 3.0, "epoch": 1.5}]
    (run,) = mlflow["runs"].values()
    assert run["metrics"] == [("step/loss", 3.0, 12)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_reported_before_the_training(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, trackers.MODULES[name], None)
    watch(prepared, name)
    with pytest.raises(TrackerError, match=rf"names {name}.*run `pip install '\.\[{name}\]'`"):
        pretrain.run(prepared)
    assert not (prepared / ".simclr" / "runs").is_dir() or not list((prepared / ".simclr" / "runs").glob("*/step-*"))


class Server:
    """A run whose calls fail or hang as asked."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.seen: list[float] = []
        self.answers = threading.Event()
        self.answers.set()

    def log(self, values: Mapping[str, float], epoch: float, _: int | None = None) -> None:
        self.answers.wait()
        if self.failing:
            self.failing -= 1
            raise ConnectionError("no route to\nhost")
        self.seen.append(epoch)

    def finish(self) -> None:
        self.seen.append(-1)


def test_failures_are_counted_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(failing=2)
    tracker = Tracker("wandb", lambda: server)
    for epoch in range(5):
        tracker.log({}, epoch)
    assert close_trackers([tracker], 10) == ", wandb lost 2 calls"
    assert server.seen == [2, 3, 4, -1]
    assert caplog.messages == ["wandb: ConnectionError: no route to host; the training continues without what it lost"]


def test_a_server_that_is_unreachable_at_first_is_tried_again() -> None:
    server, attempts = Server(), []

    def opening() -> Server:
        attempts.append(1)
        if len(attempts) == 1:
            raise TimeoutError
        return server

    tracker = Tracker("mlflow", opening)
    tracker.log({}, 1)
    tracker.log({}, 2)
    assert close_trackers([tracker], 10) == ", mlflow lost 1 calls"
    assert server.seen == [2, -1]


def test_a_hanging_server_does_not_delay_the_training(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.answers.clear()
    tracker = Tracker("mlflow", lambda: server)
    started = time.monotonic()
    for epoch in range(1000):
        tracker.log({"loss": 1.0}, epoch)
    assert close_trackers([tracker], 0.2).startswith(", mlflow lost ")
    assert time.monotonic() - started < stretched(2)
    assert tracker.lost >= 999
    assert len(caplog.messages) == 1
    server.answers.set()


def watch(workspace: Path, *names: str) -> None:
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["watch"] = {"trackers": list(names)}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")


@pytest.mark.seconds
def test_tracking_a_training_does_not_change_its_results(
    prepared: Path, wandb: Wandb, mlflow: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain.run(prepared)
    weights = (prepared / "models" / "pretrained" / "encoder.safetensors").read_bytes()
    watch(prepared, "wandb", "mlflow")
    events = tmp_path / "events"
    monkeypatch.setenv("SIMCLR_EVENTS", str(events))
    pretrain.run(prepared)
    assert (prepared / "models" / "pretrained" / "encoder.safetensors").read_bytes() == weights
    assert [values["epoch"] for values in wandb.logged()] == [1, 2]
    assert {"loss", "knn_top1", "probe_top1", "images_per_second", "time_augment"} <= wandb.logged()[0].keys()
    (run,) = mlflow["runs"].values()
    (key,) = (path.name for path in (prepared / ".simclr" / "tensorboard").iterdir())
    assert run["tags"] == {"simclr.run_key": key}
    assert ("loss", wandb.logged()[1]["loss"], 2) in run["metrics"]
    assert "lost" not in json.loads(events.read_text().splitlines()[-1])["message"]


@pytest.mark.seconds
def test_a_tracker_that_always_fails_is_in_the_end_event(
    prepared: Path, wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**arguments: object) -> None:
        raise ConnectionError("refused")

    wandb.init = refused  # type: ignore[method-assign, assignment]
    watch(prepared, "wandb")
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    pretrain.run(prepared)
    end = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert end["event"] == "end"
    assert end["message"].endswith(", wandb lost 2 calls")
