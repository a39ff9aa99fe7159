"""A function mapped over an existing Ray cluster by Ray Data; needs the extra ``ray``.

    RAY_ADDRESS=10.0.0.7:6379 simclr run --select validate        with validate.engine: ray

This machine has to be a node of the cluster, and every node has to have this package and see the same files under the
same paths. What a node was doing when it died is done again by another. Only JSON text goes through Ray's tables.
"""

import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from deploy.failure import install_command
from pipeline.errors import ValidationError

ADDRESS = "RAY_ADDRESS"
NEAREST = "auto"  # Ray's word for the cluster that this machine is a node of
CONNECT_SECONDS = 10.0  # Ray itself keeps trying for minutes
OR_LOCAL = "or set validate.engine to local"


def flat_map(function: Callable[[Any], Iterable[Any]], items: Sequence[Any]) -> Iterator[Any]:
    """Yield what ``function`` yields for each item, one task an item, as they are done.

    Args:
        function: of a module that every node can import, or a ``partial`` of one.
        items: like what is yielded, anything that JSON can hold.

    Raises:
        ValidationError: Ray is not installed, no cluster answers, a task says why it cannot continue, or one fails.
    """
    if not items:
        return
    ray = _imported()
    with _connected(ray):
        rows = [{"item": json.dumps(item)} for item in items]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
            partial(_answers, function=function)
        )
        try:
            for row in dataset.iter_rows():
                answer = json.loads(row["answer"])
                if "error" in answer:
                    raise ValidationError(answer["error"])
                yield answer["value"]
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            raise ValidationError(
                f"a task on the Ray cluster failed with {type(error).__name__}; see its logs; fix the cause and run "
                f"again, {OR_LOCAL}"
            ) from error


def _answers(row: Mapping[str, str], function: Callable[[Any], Iterable[Any]]) -> Iterator[dict[str, str]]:
    try:
        for value in function(json.loads(row["item"])):
            yield {"answer": json.dumps({"value": value})}
    except ValidationError as error:
        yield {"answer": json.dumps({"error": str(error)})}


def _imported() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _without_warnings():
            import ray
            import ray.data
            import ray.data.exceptions

            context = ray.data.DataContext.get_current()
    except ImportError:
        raise ValidationError(
            f"validate.engine is ray, and Ray is not installed; run {install_command('ray')}, {OR_LOCAL}"
        ) from None
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    module: ModuleType = ray
    return module


@contextmanager
def _connected(ray: ModuleType) -> Iterator[None]:
    """The cluster at ``RAY_ADDRESS``, or the one that this machine is a node of."""
    address = os.environ.get(ADDRESS) or NEAREST
    try:
        _knock(address)
        with _without_warnings():
            ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        tried = (
            f"{ADDRESS}={address}" if address != NEAREST else f"{ADDRESS} is not set, and this machine is not a node"
        )
        raise ValidationError(
            f"validate.engine is ray, and no Ray cluster answers ({tried}: {type(error).__name__}); start one with "
            f"`ray start --head`, set {ADDRESS} to its host:port, {OR_LOCAL}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError soon if no process listens at ``host:port``."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ray warns of deprecated things that it uses itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray(\.|$)")
        yield
