"""index.json: what an index says about itself. It is read strictly: each field has one type and bounds."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from deploy.errors import ArgumentError, require_choice

Metric = Literal["cosine", "inner_product"]
Storage = Literal["float32", "float16"]

FORMAT_VERSION = 2  # 1 had no metadata and a graph of all rows in their order
READABLE = (1, 2)
MAX_BYTES = 1_000_000
LONGEST = 1e18  # the product of two such lengths still fits into float32
COLUMN_TYPES = re.compile(r"<U[1-9]\d{0,3}|<i8|<f8|\|b1")


@dataclass(frozen=True)
class Card:
    """The content of index.json.

    Attributes:
        encoder: the ``id`` of the encoder.
        longest: upper bound of the lengths of the vectors.
        columns: for each column of metadata its name, numpy's type of its values, and how many distinct ones.
        graph: the number of vectors in the graph, among them those of deleted rows; None without a graph.
    """

    encoder: str
    name: str | None
    dim: int
    metric: Metric = "cosine"
    dtype: Storage = "float32"
    count: int = 0
    longest: float = 0.0
    columns: tuple[tuple[str, str, int], ...] = ()
    graph: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("metric", self.metric, get_args(Metric)),
            ("dtype", self.dtype, get_args(Storage)),
        ):
            require_choice(allowed, **{name: value})
        if not isinstance(self.encoder, str) or not self.encoder:
            raise ArgumentError(f"encoder={self.encoder!r}; give the Encoder that made the vectors, or its id")
        if type(self.dim) is not int or self.dim < 1:
            raise ArgumentError(f"vectors of {self.dim} dimensions; give vectors [n, dim] with dim of 1 or more")


def write_card(path: Path, card: Card) -> None:
    text = json.dumps({"format_version": FORMAT_VERSION, **asdict(card)}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_card(path: Path) -> Card:
    """Read index.json.

    Raises:
        ArgumentError: it is not JSON, has another format version, or a field is missing, unknown or wrong.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ArgumentError(f"{path.name} has more than {MAX_BYTES:,} bytes")
    try:
        card = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(card, dict):
        raise ArgumentError(f"{path.name} is not an object")
    version = card.pop("format_version", None)
    if type(version) is not int or version not in READABLE:
        raise ArgumentError(f"format version {version!r:.40}, this release reads {' and '.join(map(str, READABLE))}")
    if version == 1:
        card = {"columns": [], "graph": None} | card
    names = {field.name for field in fields(Card)}
    for name in sorted(names ^ set(card)):
        raise ArgumentError(f"{path.name}: the field {name!r:.80} is {'missing' if name in names else 'unknown'}")
    for name, value in card.items():
        if not _FIELDS[name](value):
            raise ArgumentError(f"{path.name}: {name} is {value!r:.80}, which is not allowed")
    card["columns"] = tuple(tuple(column) for column in card["columns"])
    return Card(**card)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1000


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _are_columns(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(one, list) and len(one) == 3 for one in value)
        and all(
            _is_text(name) and isinstance(dtype, str) and COLUMN_TYPES.fullmatch(dtype) and _is_count(distinct)
            for name, dtype, distinct in value
        )
        and len({name for name, _, _ in value}) == len(value)
    )


_FIELDS: Mapping[str, Any] = {
    "encoder": _is_text,
    "name": lambda value: value is None or (isinstance(value, str) and len(value) <= 1000),
    "dim": lambda value: type(value) is int and 1 <= value <= 2**20,
    "metric": lambda value: value in get_args(Metric),
    "dtype": lambda value: value in get_args(Storage),
    "count": _is_count,
    "longest": lambda value: type(value) in (int, float) and 0 <= value <= 2 * LONGEST and math.isfinite(value),
    "columns": _are_columns,
    "graph": lambda value: value is None or _is_count(value),
}
