"""A thread in the background outlives whatever its work raises, and says so."""

import logging
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from deploy.server import background
from deploy.server.engine import Engine, Job
from deploy.server.limits import Limits
from deploy.server.metrics import Metrics
from deploy.server.models import load_model
from tests.deploy.conftest import encoded, noise
from tests.deploy.server.conftest import running, wait_for

ROOT = Path(__file__).parents[3]


def failures(metrics: Metrics, thread: str) -> int:
    found = re.search(rf'background_failures_total{{thread="{thread}"}} (\d+)', metrics.text([]))
    return int(found[1]) if found else 0


def test_a_failure_is_counted_each_time_and_logged_when_it_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    metrics, ended = Metrics(), threading.Event()
    steps = iter([KeyError("a"), KeyError("a"), None, KeyError("a"), OSError("b")])

    def is_due() -> bool:
        if (left := steps.__length_hint__()) == 0:
            ended.set()
        return left > 0

    def step() -> None:
        if failure := next(steps):
            raise failure

    with caplog.at_level(logging.ERROR):
        background.start("work", metrics, is_due, step)
        assert ended.wait(30)
    assert failures(metrics, "work") == 4
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [KeyError, KeyError, OSError]


def test_every_thread_of_the_package_is_started_there() -> None:
    starts = [path for path in (ROOT / "deploy").rglob("*.py") if re.search(r"\bThread\(", path.read_text())]
    assert starts == [ROOT / "deploy" / "server" / "background.py"]


def test_the_engine_keeps_its_threads(bundle: Path) -> None:
    metrics, done = Metrics(), threading.Semaphore(0)
    engine = Engine(metrics, Limits(), decoders=1)
    model = load_model(bundle, threads=1, variant="fp32", index=None)

    def fail() -> None:
        done.release()
        raise RuntimeError("what no one foresaw")

    for content in (noise(0), encoded(noise(1))) * 3:
        engine.submit(Job(model, "", [content], fail))
        assert done.acquire(timeout=30)
    for content in (noise(0), encoded(noise(1))):
        engine.submit(job := Job(model, "", [content], done.release))
        assert done.acquire(timeout=30)
        assert isinstance(job.results[0], np.ndarray)
    engine.close()
    assert failures(metrics, "infer") + failures(metrics, "decode") == 6


def test_a_model_with_a_row_too_few_fails_the_request(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, done = Engine(Metrics(), Limits(), decoders=1), threading.Event()
    model = load_model(bundle, threads=1, variant="fp32", index=None)
    monkeypatch.setattr(model, "features", lambda _: np.empty((0, 5), np.float32))
    engine.submit(job := Job(model, "", [noise(0)], done.set))
    assert done.wait(30)
    engine.close()
    assert isinstance(job.error, ValueError)


def test_a_failed_reload_still_renews_connections_and_the_next_one_works(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(bundle) as server, server.connect() as first:
        calls: list[int] = []

        def reload() -> None:
            calls.append(len(calls))
            if len(calls) == 1:
                raise KeyError("what no one foresaw")

        monkeypatch.setattr(server.server, "_on_reload", reload)
        (protocol,) = wait_for_one(server.server.server_state.connections)
        for count in (1, 2):
            protocol.loop.call_soon_threadsafe(server.server.reload)
            wait_for(lambda count=count: len(calls) == count, "the reload")
        wait_for(lambda: protocol.leaving, "the notice")
        assert failures(server.service.metrics, "reload") == 1
        first.close()


def wait_for_one(connections: set[object]) -> tuple[object, ...]:
    wait_for(lambda: len(connections) == 1, "the connection")
    return tuple(connections)
