"""A function mapped over an existing Ray cluster by Ray Data; needs the extra ``ray``.

    validate: {engine: ray, address: "10.0.0.7:6379"}        in .simclr/compute.yaml

This machine has to be a node of the cluster, and every node has to have this package and see the same files under the
same paths. What a node was doing when it died is done again by another. Only JSON text goes through Ray's tables.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from deploy.cluster.connection import connected
from pipeline.errors import ValidationError

ASKS, INSTEAD = "validate.engine is ray", "set validate.engine to local in .simclr/compute.yaml"


def flat_map(
    function: Callable[[Any], Iterable[Any]], items: Sequence[Any], address: str | None = None
) -> Iterator[Any]:
    """Yield what ``function`` yields for each item, one task an item, as they are done.

    Args:
        function: of a module that every node can import, or a ``partial`` of one.
        items: like what is yielded, anything that JSON can hold.
        address: of the cluster; None: as ``connected`` chooses it.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers.
        ValidationError: a task says why it cannot continue, or one fails.
    """
    if not items:
        return
    with connected(ASKS, INSTEAD, address) as ray:
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
                f"again, or {INSTEAD}"
            ) from error


def _answers(row: Mapping[str, str], function: Callable[[Any], Iterable[Any]]) -> Iterator[dict[str, str]]:
    try:
        for value in function(json.loads(row["item"])):
            yield {"answer": json.dumps({"value": value})}
    except ValidationError as error:
        yield {"answer": json.dumps({"error": str(error)})}
