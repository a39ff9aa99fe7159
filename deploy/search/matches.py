"""What a search finds."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Matches(NamedTuple):
    """The nearest neighbors of each query, nearest first; equal scores in order of rows.

    Attributes:
        ids: for each query, the ids of its neighbors.
        rows: int64 [queries, k], their rows in the index.
        scores: float32 [queries, k], cosine similarities or inner products.
    """

    ids: list[list[str]]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Pair(NamedTuple):
    """Two nearly identical vectors: their ids, and their cosine similarity."""

    first: str
    second: str
    cosine: float
