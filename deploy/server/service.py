"""What the routes share: from the body of a request to the results of its images."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.types import Receive

from deploy.errors import ImageError
from deploy.failure import print_error
from deploy.server.admission import Admission, client_of
from deploy.server.bodies import read_body
from deploy.server.engine import Engine, Image, Job
from deploy.server.limits import ClientLeftError, HeldBytes, Limits, RefusedError
from deploy.server.metrics import Labels, Metrics
from deploy.server.models import Model, Models
from deploy.server.trust import Trust

SMALL_BODY = 100_000
"""Smaller bodies are parsed in the event loop; larger ones in a thread, so that other requests are not delayed."""


@dataclass
class Record:
    """What the log line and the response headers report about a request."""

    images: int = 0
    model: str = ""


@dataclass
class Service:
    """The state that all requests of a process share. Its coroutines run in the event loop."""

    models: Models
    engine: Engine
    metrics: Metrics
    limits: Limits
    expires: Callable[[], float] | None = None  # when the certificate does, in seconds since 1970; None: plain HTTP
    trust: Trust | None = None  # None: signatures are not looked at
    admission: Admission = field(init=False)
    held: HeldBytes = field(init=False)
    draining: bool = False

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.limits,
            lambda: self.engine.seconds_per_image,
            seconds_per_large_image=lambda: self.engine.seconds_per_large_image,
        )
        self.held = HeldBytes(self.limits.held_bytes)

    def drain(self) -> None:
        """Report not ready from now on."""
        self.draining = True
        log("draining", images=self.admission.waiting)

    @property
    def is_ready(self) -> bool:
        return not self.draining and not (self.trust and self.trust.is_revoked(self.models.current))

    async def infer(self, request: Request, model: Model, read: Callable[[bytes], list[Image]]) -> Job:
        """Receive the body, ``read`` its images, and run them through the model.

        Raises:
            RefusedError: the request is not valid, exceeds a limit, or the server is busy.
            ClientLeftError: the client closed the connection.
        """
        if self.trust:
            self.trust.refuse(model)
        client = client_of(*request.scope["client"])
        self.admission.check(client)  # before the body: a client should not send megabytes only to be refused
        record(request).model = model.id
        with self.held.counter() as hold, model.statistics.request():
            body = await read_body(request.receive, request.headers, self.limits, hold)
            images = read(body) if len(body) < SMALL_BODY else await asyncio.to_thread(read, body)
            record(request).images = len(images)
            with self.admission.admitted(client, len(images)):
                loop, ended = asyncio.get_running_loop(), asyncio.Event()
                job = Job(model, client, images, lambda: loop.call_soon_threadsafe(ended.set))
                try:
                    return await self._run(job, ended, request.receive)
                finally:
                    self.admission.learn(client, job.large, len(images))

    async def _run(self, job: Job, ended: asyncio.Event, receive: Receive) -> Job:
        """Wait until the job is finished, the client leaves, or the time is over; each of them sets ``ended``."""
        left = asyncio.create_task(_wait_for_disconnect(receive))
        left.add_done_callback(lambda _: ended.set())
        deadline = asyncio.get_running_loop().call_later(self.limits.deadline_seconds, ended.set)
        self.engine.submit(job)
        try:
            await ended.wait()
        finally:
            job.abandoned = not job.is_finished or job.abandoned
            deadline.cancel()
            left.cancel()
        if job.error:
            raise job.error
        if job.is_finished:
            return job
        if left.done():
            raise ClientLeftError("the client left before its answer")
        seconds = f"{self.limits.deadline_seconds:g} s"
        raise RefusedError(
            504, "deadline", f"no result after {seconds}; send fewer or smaller images", {"Retry-After": "1"}
        )

    def gauges(self) -> list[tuple[str, Labels, float]]:
        """Return the current values of the gauges."""
        model = self.models.current
        about = (("id", model.id), ("name", model.name), ("version", model.version or ""))
        candidate = self.models.candidate
        states = {state: candidate is not None and candidate.state == state for state in ("retrying", "refused")}
        return [
            ("simclr_waiting_images", (), self.admission.waiting),
            ("simclr_held_bytes", (), self.held.now),
            ("simclr_decoding_bytes", (), self.engine.decoding.held),
            ("simclr_ready", (), float(self.is_ready)),
            ("simclr_model_info", about, 1),
            *(("simclr_model_behind", (("state", state),), float(holds)) for state, holds in states.items()),
            *([("simclr_certificate_expires_seconds", (), self.expires() - time.time())] if self.expires else []),
        ]


def record(request: Request) -> Record:
    """Return the record that the middleware attached to the request."""
    attached: Record = request.scope["record"]
    return attached


def errors_of(job: Job) -> dict[int, ImageError]:
    """Return position → error of the images without a result."""
    return {position: result for position, result in enumerate(job.results) if isinstance(result, ImageError)}


def features_of(job: Job) -> NDArray[np.float32]:
    """Return the raw outputs of the readable images: float32 [n, dim]."""
    rows = [result for result in job.results if not isinstance(result, ImageError)]
    return np.stack(rows) if rows else np.empty((0, job.model.dim), np.float32)


def fill_gaps(rows: NDArray[np.float32], job: Job) -> NDArray[np.float32]:
    """Return one row for every image of the job, with rows of NaN for unreadable images."""
    complete = np.full((len(job.results), rows.shape[1]), np.nan, np.float32)
    complete[[not isinstance(result, ImageError) for result in job.results]] = rows
    return complete


def log(event: str, **fields: object) -> None:
    """Print a line of JSON to standard error; a full disk, a terminal that is gone, or a pipe that is not read costs
    only the line."""
    line: Mapping[str, object] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event} | fields
    print_error(json.dumps(line))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
