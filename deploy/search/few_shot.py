"""Classes from a handful of labelled examples, without training: the encoder stays as it is.

Two classifiers are tried on the examples themselves, each example in turn left out (so nothing is judged by its own
vector), and the better one is kept:

    class_mean   the class whose mean direction is nearest: steady with very few examples (Snell et al. 2017)
    knn          the votes of the nearest examples, each exp(cosine / temperature): follows a class in several clusters
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.errors import ArgumentError, IndexMismatchError
from deploy.search.files import scaled

Method = Literal["class_mean", "knn"]

NEIGHBOURS = 5
TEMPERATURE = 0.1


class FewShot:
    """A classifier of embeddings. Safe to use from many threads.

    Attributes:
        labels: the classes, in alphabetical order.
        method: the classifier that is used.
        leave_one_out: of each method, the share of the examples that it classifies rightly when it has not seen them.
            None when no class has two examples: then nothing can be said.
    """

    def __init__(self, vectors: NDArray[Any], labels: Sequence[str], method: Method | None = None) -> None:
        """
        Args:
            vectors: [n, dim], the examples; any length. A few thousand at most: memory grows with n².
            labels: the class of each.
            method: use this one, whichever is better.

        Raises:
            ArgumentError: fewer than two classes, vectors and labels do not fit, or a vector has no direction.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or len(labels) != len(vectors):
            given = f"{len(labels)} labels and vectors {list(vectors.shape)}"
            raise ArgumentError(f"given {given}; give one label for each row of vectors [n, dim]")
        self.labels = sorted(set(labels))
        if len(self.labels) < 2:
            raise ArgumentError(f"given {len(self.labels)} class; give examples of two or more")
        self._examples = scaled(vectors, "cosine", "example {}".format)
        self._classes = np.array([self.labels.index(label) for label in labels])
        self._members = np.eye(len(self.labels))[self._classes]
        self.leave_one_out: dict[Method, float | None] = {
            "class_mean": self._accuracy(self._means_without_each()),
            "knn": self._accuracy(self._votes(self._without_each())),
        }
        best: Method = max(self.leave_one_out, key=lambda name: self.leave_one_out[name] or 0.0)  # the first of equals
        self.method = method or best
        if self.method not in self.leave_one_out:
            raise ArgumentError(f"method={method!r}; choose class_mean or knn")

    @property
    def summary(self) -> str:
        """How well the examples are told apart, in words."""
        if self.leave_one_out[self.method] is None:
            return f"{self.method}; give two or more of each class to know how good it is"
        shares = (f"{name} {share:.0%}" for name, share in self.leave_one_out.items())
        return f"right when left out, one at a time: {', '.join(shares)}; {self.method} is used"

    def predict(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Of each vector [q, dim], the share of every class in the decision, [q, classes]; the rows sum to 1.

        Raises:
            IndexMismatchError: the vectors have another dimension than the examples.
            ArgumentError: a vector has no direction.
        """
        queries = np.atleast_2d(np.asarray(vectors))
        if queries.ndim != 2 or queries.shape[1] != self._examples.shape[1]:
            dim = self._examples.shape[1]
            raise IndexMismatchError(f"queries are {list(queries.shape)}, the examples [{dim}]; give [q, {dim}]")
        queries = scaled(queries, "cosine", "query {}".format)
        if self.method == "knn":
            return self._votes(queries @ self._examples.T)
        return _softmax(queries @ _directions(self._members.T @ self._examples).T)

    def _means_without_each(self) -> NDArray[np.float64]:
        sums = self._members.T @ self._examples
        similarities = self._examples @ _directions(sums).T
        own = np.arange(len(self._classes)), self._classes
        rest = _directions(sums[self._classes] - self._examples)
        similarities[own] = (self._examples * rest).sum(axis=1)
        return similarities

    def _without_each(self) -> NDArray[np.float64]:
        similarities = self._examples @ self._examples.T
        np.fill_diagonal(similarities, -np.inf)
        return similarities

    def _votes(self, similarities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cosines with the examples [q, n] → the share of each class among the nearest, [q, classes]."""
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :NEIGHBOURS]
        weights = np.exp((np.take_along_axis(similarities, nearest, axis=1) - 1) / TEMPERATURE)
        votes = np.einsum("qk,qkc->qc", weights, self._members[nearest])
        shares: NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)
        return shares

    def _accuracy(self, scores: NDArray[np.float64]) -> float | None:
        """Of the examples whose class has another one; the class of the others is unknown without them."""
        counted = self._members.sum(axis=0)[self._classes] > 1
        if not counted.any():
            return None
        return float((scores.argmax(axis=1) == self._classes)[counted].mean())


def _directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; a row without direction stays near zero and is similar to nothing."""
    directions: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return directions


def _softmax(similarities: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp((similarities - 1) / TEMPERATURE)
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares
