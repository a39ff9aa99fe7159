"""Weights & Biases and MLflow: where people watch many runs. Optional, and never in the way of a training.

    pip install '.[wandb]'         in a clone of the repository, and in params.yaml: watch: {trackers: [wandb]}

A tracker's run is named by the run key, so an interrupted training continues in the same one. All calls happen in a
separate thread: a server that is slow, or away, costs the training nothing and loses numbers, which are counted.
Both work offline: with ``WANDB_MODE=offline``, and MLflow by default, in ``.simclr/mlflow.db``.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from deploy.failure import install_command, one_line
from simclr_core.errors import TrackerError
from simclr_core.params import flatten

PROJECT = "simclr"
RUN_KEY = "simclr.run_key"  # MLflow chooses its run ids itself: the tag by which a run is found again
MODULES = {"wandb": "wandb", "mlflow": "mlflow.tracking"}
CLOSING, STOPPING = 30.0, 3.0  # seconds to wait for the last numbers to arrive: at the end, and when asked to stop
PARAMETER_LENGTH = 500  # what every MLflow store takes

logger = logging.getLogger(__name__)


class Run(Protocol):
    """One run at a tracker."""

    def log(self, values: Mapping[str, float], epoch: float, step: int | None = None) -> None: ...

    def finish(self) -> None: ...


class Tracker:
    """Hands numbers over to a thread that opens the run, logs, and finishes it. Nothing it does raises or waits.

    ``lost`` counts the calls that failed or did not get through before ``close`` gave up.
    """

    def __init__(self, name: str, open_run: Callable[[], Run]) -> None:
        self.name = name
        self.lost = 0
        self._open_run = open_run
        self._warned = False
        self._waiting: queue.SimpleQueue[tuple[Mapping[str, float], float, int | None] | None] = queue.SimpleQueue()
        # A daemon: the process can end while a server hangs.
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], epoch: float, step: int | None = None) -> None:
        """Of an epoch, or of a ``step`` in it."""
        self._waiting.put((dict(values), epoch, step))

    def close(self, deadline: float) -> None:
        """Wait until all is logged, at most to ``deadline`` of the monotonic clock."""
        self._waiting.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.lost += max(1, self._waiting.qsize() - 1)
            self._warn("does not answer")

    def _work(self) -> None:
        run: Run | None = None
        while (item := self._waiting.get()) is not None:
            try:
                run = run or self._open_run()
                run.log(*item)
            except Exception as error:  # noqa: BLE001 (whatever a client raises, the training continues; it is counted)
                self._count(error)
        try:
            if run is not None:
                run.finish()
        except Exception as error:  # noqa: BLE001 (as above)
            self._count(error)

    def _count(self, error: Exception) -> None:
        self.lost += 1
        self._warn(f"{type(error).__name__}: {one_line(error)[:200]}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logger.warning("%s: %s; the training continues without what it lost", self.name, reason)
        self._warned = True


def open_trackers(names: Sequence[str], scratch: Path, run_key: str, config: Mapping[str, Any]) -> list[Tracker]:
    """A tracker for each of ``names``, in ``MODULES``; ``config``, nested, is shown with the run.

    Raises:
        TrackerError: its package is not installed. The only thing that can stop a training, before it begins.
    """
    return [Tracker(name, _opener(name, scratch, run_key, config)) for name in names]


def close_trackers(trackers: Sequence[Tracker], seconds: float) -> str:
    """Wait for all together; returns what they lost, an empty text if nothing."""
    deadline = time.monotonic() + seconds
    for tracker in trackers:
        tracker.close(deadline)
    return "".join(f", {tracker.name} lost {tracker.lost} calls" for tracker in trackers if tracker.lost)


def missing_trackers(names: Sequence[str]) -> list[str]:
    """A sentence for each of ``names`` whose package is not installed; nothing is imported."""
    return [_missing(name, "is not installed") for name in names if find_spec(name) is None]


def _missing(name: str, fault: str) -> str:
    return f"watch.trackers names {name}, which {fault}; run {install_command(name)}, or leave it out"


def _opener(name: str, scratch: Path, run_key: str, config: Mapping[str, Any]) -> Callable[[], Run]:
    try:
        module = import_module(MODULES[name])
    except ImportError as error:
        raise TrackerError(_missing(name, f"cannot be imported ({error})")) from error
    run = RUNS[name]
    return lambda: run(module, scratch, run_key, config)


class _WandbRun:
    def __init__(self, wandb: Any, scratch: Path, run_key: str, config: Mapping[str, Any]) -> None:
        folder = scratch / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        # Its own console and Git records would take over our terminal and send a diff of the workspace.
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        names = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "id": run_key, "resume": "allow"}
        self._run = wandb.init(**names, dir=str(folder), config=dict(config), settings=settings)
        # By epoch and not by its own counter, which refuses an epoch that an interruption has lost.
        self._run.define_metric("*", step_metric="epoch")

    def log(self, values: Mapping[str, float], epoch: float, _: int | None = None) -> None:
        self._run.log({**values, "epoch": epoch})

    def finish(self) -> None:
        self._run.finish()


class _MlflowRun:
    def __init__(self, mlflow: Any, scratch: Path, run_key: str, config: Mapping[str, Any]) -> None:
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(scratch / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(tracking_uri=store)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([identity], f"tags.`{RUN_KEY}` = '{run_key}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        created = self._client.create_run(identity, tags={RUN_KEY: run_key}, run_name=run_key)
        self._id = created.info.run_id
        for key, value in flatten(config):
            self._client.log_param(self._id, key, str(value)[:PARAMETER_LENGTH])

    def log(self, values: Mapping[str, float], epoch: float, step: int | None = None) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=int(epoch) if step is None else step)

    def finish(self) -> None:
        self._client.set_terminated(self._id)


RUNS: dict[str, Callable[..., Run]] = {"wandb": _WandbRun, "mlflow": _MlflowRun}
