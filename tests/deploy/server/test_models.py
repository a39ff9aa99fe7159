"""The model changes under load without a failed request; an unusable version is refused without any effect."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from deploy import candidate
from deploy.errors import CandidateError, CorruptArtifactError, GoldenMismatchError, ModelMemoryError
from tests.deploy.conftest import MIXING, embedding_of, make_bundle, make_card, make_model, noise, trials
from tests.deploy.server.conftest import IMAGE, PREPROCESSING, Gate, Running, release, running, wait_for

CHANGED = 'simclr_model_changes_total{outcome="changed"}'
REFUSED = 'simclr_model_changes_total{outcome="refused"}'
FAILED = 'simclr_model_changes_total{outcome="failed"}'
BEHIND = 'simclr_model_behind{{state="{}"}}'


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    release(tmp_path / "registry", "v0.0.1", make_bundle())
    return tmp_path / "registry"


def negated() -> object:
    """Make a bundle whose vectors are the negatives of those of the first one."""
    bundle = make_bundle()
    model = make_model(make_card(), -MIXING).SerializeToString()
    return replace(bundle, model=model, golden_vectors=-bundle.golden_vectors, head=None)


def version(server: Running) -> str | None:
    return server.service.models.current.version


@pytest.mark.seconds
def test_current_names_the_model(registry: Path) -> None:
    expected = embedding_of(PREPROCESSING.apply(noise(1, 20, 30)))
    with running(registry, check=candidate.check) as server:
        server.service.models.poll()
        assert server.metric(CHANGED) == 0
        before = server.ask("GET", "/v1/model")
        release(registry, "v0.0.2", negated())
        server.service.models.poll()
        after = server.post("/v1/embed", IMAGE)
        assert after.headers["X-Model-Id"] != before.json["id"]
        assert after.json["model"]["version"] == "v0.0.2"
        assert np.abs(after.vectors[0] + expected).max() < 1e-6
        (registry / "CURRENT").write_text("v0.0.1\n")
        server.service.models.poll()
        assert server.post("/v1/embed", IMAGE).headers["X-Model-Id"] == before.json["id"]
        assert server.metric(CHANGED) == 2
        assert [line["event"] for line in server.logged] == ["model changed"] * 2


@pytest.mark.seconds
def test_the_registry_is_watched(registry: Path) -> None:
    with running(registry) as server:
        server.service.models.watch()
        release(registry, "v0.0.2", negated())
        wait_for(lambda: version(server) == "v0.0.2", "the new model", seconds=10)


def test_a_request_in_flight_ends_with_the_model_it_began_with(registry: Path) -> None:
    made: list[Gate] = []

    def load(path: Path) -> Gate:
        made.append(Gate(path))
        return made[-1]

    expected = embedding_of(PREPROCESSING.apply(noise(1, 20, 30)))
    with running(registry, load=load, max_batch=8) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.post, "/v1/embed", IMAGE)
        assert made[0].arrived.acquire(timeout=30)
        release(registry, "v0.0.2", negated())
        server.service.models.poll()
        assert version(server) == "v0.0.2"
        for model in made:
            model.opened.set()
        assert np.abs(waiting.result().vectors[0] - expected).max() < 1e-6
        assert waiting.result().headers["X-Model-Id"] == made[0].id
        assert np.abs(server.post("/v1/embed", IMAGE).vectors[0] + expected).max() < 1e-6


def spoil(registry: Path, name: str) -> None:
    good = make_bundle()
    if name == "golden":
        release(registry, "v0.0.2", replace(good, golden_vectors=-good.golden_vectors))
    elif name == "graph":
        release(registry, "v0.0.2", replace(good, model=good.model[:200]))
    elif name == "flipped byte":
        release(registry, "v0.0.2", good)
        path = registry / "v0.0.2" / "encoder.fp32.onnx"
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        manifest = registry / "v0.0.2" / "MANIFEST.sha256"
        manifest.write_text(
            manifest.read_text().replace("golden/00.png", "golden/0.png")
        )  # an id that differs from the current one
    elif name == "no such version":
        (registry / "CURRENT").write_text("v9.9.9\n")
    elif name == "nonsense":
        (registry / "CURRENT").write_bytes(b"\xff\0../../etc")
    else:
        (registry / "CURRENT").unlink()


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["golden", "graph", "flipped byte", "no such version", "nonsense", "no pointer"])
def test_an_unusable_version_is_refused_once_and_the_old_model_stays(registry: Path, name: str) -> None:
    with running(registry, check=candidate.check) as server:
        before = server.post("/v1/embed", IMAGE)
        spoil(registry, name)
        for _ in range(3):
            server.service.models.poll()
        assert server.post("/v1/embed", IMAGE).body == before.body
        final = name in ("golden", "graph")  # another file with the same manifest may pass
        assert (server.metric(REFUSED), server.metric(FAILED)) == ((1, 0) if final else (0, 1))
        (line,) = server.logged
        assert line["event"] == ("model refused" if final else "model failed")
        assert line["error"]
        release(registry, "v0.0.3", negated())
        server.service.models.poll()
        assert version(server) == "v0.0.3"


@pytest.mark.seconds
def test_a_candidate_that_crashes_does_not_affect_the_server(registry: Path) -> None:
    """As a hostile graph can crash its trial process."""
    killed = threading.Event()

    def check(directory: Path) -> None:
        def kill() -> None:
            wait_for(lambda: bool(trials()), "the child")
            for trial in trials():
                trial.kill()
            killed.set()

        threading.Thread(target=kill, daemon=True).start()
        candidate.check(directory)

    with running(registry, check=check) as server:
        release(registry, "v0.0.2", negated())
        server.service.models.poll()
        assert killed.wait(60)
        assert version(server) == "v0.0.1"
        assert "signal 9" in str(server.logged[0]["error"])
        assert server.post("/v1/embed", IMAGE).status == 200


def raising(error: Exception) -> Callable[[Path], None]:
    def check(_directory: Path) -> None:
        raise error

    return check


@pytest.mark.seconds
@pytest.mark.parametrize(
    "error",
    [
        CandidateError("killed"),
        ModelMemoryError("no memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        CorruptArtifactError("a file is still being copied"),
        RecursionError("what no one foresaw"),
    ],
    ids=repr,
)
def test_a_candidate_without_a_verdict_is_tried_again(
    registry: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 5, 10, 20 … seconds, and at most 600; readiness and metrics say so until it is served."""
    now, tried = [0.0], []

    def check(directory: Path) -> None:
        tried.append(now[0])
        if len(tried) < 10:
            raise error

    with running(registry, check=check) as server:
        models = server.service.models
        monkeypatch.setattr(models, "_clock", lambda: now[0])
        release(registry, "v0.0.2", negated())
        while version(server) == "v0.0.1":
            with suppress(RecursionError):  # of the thread that polls, which reports it
                models.poll()
            if len(tried) == 2:
                ready = server.ask("GET", "/v2/health/ready")
                expected = {"state": "retrying", "attempts": 2, "error": type(error).__name__}
                assert (ready.status, ready.json) == (200, {"ready": True, "candidate": expected})
                assert server.metric(BEHIND.format("retrying")) == 1
            now[0] += 1
        assert [late - early for early, late in pairwise(tried)] == [5, 10, 20, 40, 80, 160, 320, 600, 600]
        assert (server.metric(FAILED), server.metric(REFUSED), server.metric(CHANGED)) == (9, 0, 1)
        assert server.metric(BEHIND.format("retrying")) == 0
        assert server.ask("GET", "/v2/health/ready").json == {"ready": True}


def test_a_verdict_is_final_until_the_bundle_changes(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(registry, check=raising(GoldenMismatchError("other vectors"))) as server:
        models = server.service.models
        release(registry, "v0.0.2", negated())
        models.poll()
        monkeypatch.setattr(models, "_clock", lambda: 1e9)
        models.poll()
        assert (server.metric(REFUSED), server.metric(BEHIND.format("refused"))) == (1, 1)
        answer = server.ask("GET", "/v2/health/ready").json["candidate"]
        assert answer == {"state": "refused", "attempts": 1, "error": "GoldenMismatchError"}
        (registry / "CURRENT").write_text("v0.0.1\n")
        models.poll()
        assert server.metric(BEHIND.format("refused")) == 0


@pytest.mark.seconds
@pytest.mark.parametrize("action", ["kill", "raise"])
def test_a_trial_that_was_killed_once_passes_the_next_time(
    registry: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the OOM killer."""
    with running(registry, check=candidate.check) as server:
        release(registry, "v0.0.2", negated())
        monkeypatch.setenv("SIMCLR_FAILPOINT", f"candidate.loaded:{action}")
        server.service.models.poll()
        assert version(server) == "v0.0.1"
        monkeypatch.delenv("SIMCLR_FAILPOINT")
        monkeypatch.setattr(server.service.models, "_clock", lambda: 1e9)
        server.service.models.poll()
        assert version(server) == "v0.0.2"


def test_an_unchecked_version_is_not_served(registry: Path) -> None:
    """CURRENT changes again during the trial of the candidate."""

    def check(directory: Path) -> None:
        if directory.name == "v0.0.2":
            release(registry, "v0.0.3", make_bundle(labels=False))
        if directory.name == "v0.0.3":
            raise GoldenMismatchError("not this one")

    with running(registry, check=check) as server:
        release(registry, "v0.0.2", negated())
        server.service.models.poll()
        server.service.models.poll()
        assert version(server) == "v0.0.1"
        assert server.metric(REFUSED) == 1


@pytest.mark.seconds
def test_no_request_fails_while_models_change(registry: Path) -> None:
    expected = embedding_of(PREPROCESSING.apply(noise(1, 20, 30)))
    done = threading.Event()
    answers: list[tuple[int, str, float]] = []
    with running(registry) as server, ThreadPoolExecutor(4) as pool:
        ids = {}

        def answered(count: int) -> bool:
            return len(answers) >= count or any(one.done() for one in asked)  # done while models change: it has failed

        def ask() -> None:
            while not done.is_set():
                answer = server.post("/v1/embed", IMAGE)
                answers.append((answer.status, answer.headers["X-Model-Id"], float(answer.vectors[0] @ expected)))

        try:
            asked = [pool.submit(ask) for _ in range(4)]
            ids[server.service.models.current.id] = 1.0
            release(registry, "v0.0.2", negated())
            for change in range(6):
                (registry / "CURRENT").write_text(f"v0.0.{2 - change % 2}\n")
                server.service.models.poll()
                ids[server.service.models.current.id] = -1.0 if version(server) == "v0.0.2" else 1.0
                wait_for(partial(answered, len(answers) + 20), "twenty more answers")
        finally:
            done.set()
        for one in asked:
            one.result()
    assert {status for status, _, _ in answers} == {200}
    assert {identity for _, identity, _ in answers} == set(ids)
    assert all(abs(cosine - ids[identity]) < 1e-5 for _, identity, cosine in answers)
