"""Jobs take turns, a batch has one model, and metrics are in the text format of Prometheus."""

import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from deploy.errors import ImageError
from deploy.server import engine as engines
from deploy.server.engine import DecodingMemory, Engine, FairQueue, Item, Job
from deploy.server.limits import BYTES_PER_PIXEL, Limits
from deploy.server.metrics import Metrics
from deploy.server.models import Model, load_model
from tests.deploy.conftest import SIZE, encoded, noise

LIMITS = Limits(pixels=4_000_000)


@pytest.fixture
def model(bundle: Path) -> Model:
    return load_model(bundle, threads=1, variant="fp32", index=None)


def test_jobs_take_turns_and_a_batch_is_of_one_model(model: Model, bundle: Path) -> None:
    other = load_model(bundle, 1, "fp32", None)
    queue = FairQueue()
    jobs = {name: Job(other if name == "c" else model, name, [b""] * 3, lambda: None) for name in "abc"}
    for name in "abc":
        queue.put([Item(jobs[name], position, b"", 0.0) for position in range(3)])
    names = {job: name for name, job in jobs.items()}
    taken = [[f"{names[item.job]}{item.position}" for item in queue.take(4)] for _ in range(4)]
    assert taken == [["a0", "b0"], ["c0"], ["a1", "b1"], ["c1"]]
    queue.close()
    assert queue.take(4) == []


def test_a_client_with_many_requests_gets_one_turn_as_the_others_do(model: Model) -> None:
    queue = FairQueue()
    jobs = [Job(model, client, [b""] * 2, lambda: None) for client in ("greedy", "greedy", "greedy", "modest")]
    for job in jobs:
        queue.put([Item(job, position, b"", 0.0) for position in range(2)])
    taken = [queue.take(1)[0] for _ in range(8)]
    assert [jobs.index(item.job) for item in taken] == [0, 3, 1, 3, 2, 0, 1, 2]
    queue.close()


def test_images_that_wait_for_the_model_form_a_batch(model: Model) -> None:
    metrics, sizes, gate, done = Metrics(), [], threading.Event(), threading.Semaphore(0)
    features = model.features

    def count_and_wait(pixels: list[np.ndarray]) -> np.ndarray:
        sizes.append(len(pixels))
        assert gate.wait(30)
        return features(pixels)

    model.features = count_and_wait  # type: ignore[method-assign]
    engine = Engine(metrics, LIMITS, decoders=1, max_batch=4)
    jobs = [Job(model, "", [noise(seed)], done.release) for seed in range(10)]
    engine.submit(jobs[0])
    while not sizes:
        threading.Event().wait(0.01)
    for job in jobs[1:]:
        engine.submit(job)
    gate.set()
    for _ in jobs:
        assert done.acquire(timeout=30)
    engine.close()
    assert sizes == [1, 4, 4, 1]
    for seed, job in enumerate(jobs):
        assert np.abs(job.results[0] - features([noise(seed)])[0]).max() < 1e-6


def test_the_thread_that_decoded_an_image_runs_the_model_unless_another_waits(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran_in: list[str] = []
    decoding, gate, done = threading.Event(), threading.Event(), threading.Semaphore(0)
    features, pixels = model.features, model.pixels

    def note_and_run(images: list[np.ndarray]) -> np.ndarray:
        ran_in.append(threading.current_thread().name)
        return features(images)

    def wait_and_decode(image: Image.Image) -> np.ndarray:
        decoding.set()
        assert gate.wait(30)
        return pixels(image)

    monkeypatch.setattr(model, "features", note_and_run)
    monkeypatch.setattr(model, "pixels", wait_and_decode)
    engine = Engine(Metrics(), LIMITS, decoders=1)
    jobs = [Job(model, "", [encoded(noise(seed))], done.release) for seed in range(3)]
    gate.set()
    engine.submit(jobs[0])
    assert done.acquire(timeout=30)
    assert ran_in == ["deploy-decode"]
    gate.clear()
    decoding.clear()
    engine.submit(jobs[1])
    assert decoding.wait(30)
    engine.submit(jobs[2])
    gate.set()
    assert done.acquire(timeout=30)
    assert done.acquire(timeout=30)
    engine.close()
    assert ran_in[1] == "deploy-infer", "the image behind it was to be decoded first"


def test_a_job_finishes_once_with_a_result_for_every_image(model: Model) -> None:
    calls, finished = [], threading.Event()

    def done() -> None:
        calls.append(1)
        finished.set()

    engine = Engine(Metrics(), LIMITS, decoders=2)
    error = ImageError("unsupported_input", "not base64")
    job = Job(model, "", [encoded(noise(0)), error, noise(1)[:SIZE, :SIZE], b"broken"], done)
    engine.submit(job)
    assert finished.wait(30)
    engine.close()
    assert [type(result).__name__ for result in job.results] == ["ndarray", "ImageError", "ndarray", "ImageError"]
    job.fail(RuntimeError("too late"))
    assert calls == [1]


def test_an_idle_engine_holds_no_images(model: Model) -> None:
    engine = Engine(Metrics(), LIMITS, decoders=2, runs=2)
    for image in (encoded(noise(0)), encoded(noise(0, 1100, 1100)), noise(1)[:SIZE, :SIZE], b"broken"):
        finished = threading.Event()
        job = Job(model, "", [image] * 3, finished.set)
        engine.submit(job)
        assert finished.wait(30)
        forgotten = threading.Event()
        weakref.finalize(job, forgotten.set)
        del job
        assert forgotten.wait(30), "a thread keeps it"
    engine.close()


def test_a_failure_of_the_decoder_affects_only_its_request(model: Model) -> None:
    finished = threading.Event()
    pixels = model.pixels

    def exhausted(image: Image.Image) -> np.ndarray:
        if image.size == (7, 7):
            raise MemoryError
        return pixels(image)

    model.pixels = exhausted  # type: ignore[method-assign]
    engine = Engine(Metrics(), LIMITS, decoders=1)
    job = Job(model, "", [encoded(noise(0, 7, 7))] * 3, finished.set)
    engine.submit(job)
    assert finished.wait(30)
    assert isinstance(job.error, MemoryError)
    after = threading.Event()
    engine.submit(Job(model, "", [encoded(noise(0))], after.set))
    assert after.wait(30)
    engine.close()


def test_small_images_do_not_wait_for_large_ones(model: Model) -> None:
    gate, arrived, done = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    pixels = model.pixels

    def slow_if_large(image: Image.Image) -> np.ndarray:
        if image.width > 100:
            arrived.release()
            assert gate.wait(30)
        return pixels(image)

    model.pixels = slow_if_large  # type: ignore[method-assign]
    engine = Engine(Metrics(), LIMITS, decoders=2)
    large = encoded(np.zeros((1001, 1000, 3), np.uint8))
    waiting = [Job(model, str(client), [large], done.release) for client in range(4)]
    for job in waiting:
        engine.submit(job)
    assert all(arrived.acquire(timeout=30) for _ in range(2))
    for number in range(10):
        engine.submit(Job(model, f"small {number}", [encoded(noise(number))], done.release))
    assert all(done.acquire(timeout=30) for _ in range(10))
    assert engine.decoding.held == 2 * 1001 * 1000 * BYTES_PER_PIXEL
    gate.set()
    assert all(done.acquire(timeout=30) for _ in range(4))
    engine.close()
    assert engine.decoding.held == 0


def test_the_time_that_large_images_take_is_not_expected_of_small_ones(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pixels = [0.0], model.pixels

    def decode(image: Image.Image) -> np.ndarray:
        clock[0] += 5.0 if image.width > 100 else 0.01
        return pixels(image)

    monkeypatch.setattr(model, "pixels", decode)
    monkeypatch.setattr(engines, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    engine = Engine(Metrics(), LIMITS, decoders=1)
    large, small = encoded(np.zeros((1001, 1000, 3), np.uint8)), encoded(noise(0))
    for image, count in ((small, 1), (large, 2), (small, 2)):
        finished = threading.Event()
        job = Job(model, "", [image] * count, finished.set)
        engine.submit(job)
        assert finished.wait(30)
        assert job.large == (count if image is large else 0)
    engine.close()
    assert engine.seconds_per_image == pytest.approx(0.01)
    assert engine.seconds_per_large_image == pytest.approx(5.0)


def test_large_images_share_the_memory_for_decoding() -> None:
    memory, order = DecodingMemory(100 * BYTES_PER_PIXEL), []

    def decode(pixels: int) -> None:
        with memory.hold(pixels):
            order.append(pixels)

    with memory.hold(60):
        threads = [threading.Thread(target=decode, args=(pixels,)) for pixels in (50, 1_000, 10)]
        for thread in threads:
            thread.start()
            while not (memory._line.locked() or thread is not threads[0]):
                threading.Event().wait(0.001)
        assert order == []  # 10 would fit, but is behind those that wait
    for thread in threads:
        thread.join(30)
    assert sorted(order) == [10, 50, 1_000]  # larger than all of the memory: alone
    assert order[0] == 50
    assert memory.held == 0


def test_histograms_are_cumulative_and_labels_are_escaped() -> None:
    metrics = Metrics()
    for value in (1, 2, 2, 5, 1000):
        metrics.observe("simclr_batch_images", value)
    metrics.count("simclr_images_total", outcome='a"b\\c\nd')
    lines = metrics.text([("simclr_ready", (), 1.0)]).splitlines()
    buckets = [line.split()[-1] for line in lines if line.startswith("simclr_batch_images_bucket")]
    assert buckets == ["1", "3", "3", "4", "4", "4", "4", "5"]
    assert "simclr_batch_images_sum 1010.0" in lines
    assert "simclr_batch_images_count 5" in lines
    assert r'simclr_images_total{outcome="a\"b\\c\nd"} 1' in lines
    assert "simclr_ready 1.0" in lines
    assert lines.count("# TYPE simclr_batch_images histogram") == 1
