"""The Ray cluster that work is sent to: reached soon, or refused in one sentence. Needs the extra ``ray``.

    with connected("--engine is ray", "leave --engine out") as ray:
        ray.data.read_binary_files(...)

Ray itself keeps trying for minutes, prints much, and reports that it is used.
"""

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from deploy.errors import ClusterError
from deploy.failure import install_command

ADDRESS = "RAY_ADDRESS"
NEAREST = "auto"  # Ray's word for the cluster that this machine is a node of
CONNECT_SECONDS = 10.0
EXTRA = "ray"
MODULES = ("ray", "ray.data", "ray.data.exceptions", "ray.util.scheduling_strategies")


@contextmanager
def connected(asks: str, instead: str, address: str | None = None) -> Iterator[ModuleType]:
    """Inside, this process is a driver on the cluster; yields the module ``ray``, with ``MODULES``.

    Args:
        asks: what asks for Ray, as the begin of a sentence: "validate.engine is ray".
        instead: what to do without a cluster, as the end of that sentence: "set validate.engine to local".
        address: ``host:port``; None: that in ``RAY_ADDRESS``, or the cluster that this machine is a node of.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers.
    """
    if find_spec("ray") is None:
        raise ClusterError(f"{asks}, and Ray is not installed; run {install_command(EXTRA)}, or {instead}")
    named = os.environ.get(ADDRESS)
    chosen = address or named or NEAREST
    try:
        knock(chosen)
        ray = _imported()
        with _without_warnings():
            ray.init(chosen, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        given = f"{ADDRESS}={named}" if named else f"{ADDRESS} is not set, and this machine is not a node"
        raise ClusterError(
            f"{asks}, and no Ray cluster answers ({address or given}: {type(error).__name__}); start one with "
            f"`ray start --head`, set {ADDRESS} to its host:port, or {instead}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Raise OSError soon if no process listens at ``host:port``; other addresses are not tried."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _imported() -> ModuleType:
    """Ray keeps the token, and much else, that the environment has when it is first imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _without_warnings():
        ray, data, *_ = map(import_module, MODULES)
        data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ray warns of deprecated things that it uses itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray(\.|$)")
        yield
