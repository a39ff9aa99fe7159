"""Threads that run as long as the server does. What fails in one is reported and counted, and the thread continues.

One that ended would leave the server with its old model, tokens or certificate forever, or with a thread less for
images, while it looks healthy. To end the process would end answers that are right, and a fault that lasts would end it
again after each start.
"""

import logging
import threading
from collections.abc import Callable

from deploy.server.metrics import Metrics

POLL_SECONDS = 1.0


def start(name: str, metrics: Metrics, is_due: Callable[[], bool], step: Callable[[], object]) -> None:
    """Start a thread that calls ``step`` each time ``is_due``, which may wait, is True, and ends when it is False."""

    def run() -> None:
        reported = ""
        while is_due():
            reported = _attempt(name, metrics, step, reported)

    threading.Thread(target=run, name=f"deploy-{name}", daemon=True).start()


def watch(name: str, metrics: Metrics, look: Callable[[], object], ended: threading.Event | None = None) -> None:
    """Start a thread that calls ``look`` each second until ``ended``; metrics tell how long ago it last came back."""
    ended = ended or threading.Event()

    def step() -> None:
        look()
        metrics.mark("simclr_watch_age_seconds", watch=name)

    start(name, metrics, lambda: not ended.wait(POLL_SECONDS), step)


def _attempt(name: str, metrics: Metrics, step: Callable[[], object], reported: str) -> str:
    """Return what failed, if anything; the same again is counted, and not logged a second time.

    Not in the loop: while the thread waits, no variable holds what it last worked on.
    """
    try:
        step()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        metrics.count("simclr_background_failures_total", thread=name)
        if said != reported:
            logging.getLogger(__name__).exception("the thread %s failed, and continues", name)
        return said
    return ""
