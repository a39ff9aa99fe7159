"""Classify by a handful of labeled examples of each class, without training.

Two classifiers are evaluated on the examples by leave-one-out (no example is judged by its own vector), and the better
one is used:

    class_mean   the class whose mean direction is nearest: robust with very few examples (Snell et al. 2017)
    knn          the votes of the nearest examples, each exp(cosine / temperature): fits a class with several clusters
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.errors import ArgumentError, IndexMismatchError, require_choice
from deploy.search.vectors import as_vectors, check_sequence, scale

Method = Literal["class_mean", "knn"]

NEIGHBORS = 5
TEMPERATURE = 0.1


class FewShot:
    """A classifier of embeddings. Safe to use from many threads.

    Attributes:
        labels: the classes, in alphabetical order.
        method: the classifier in use.
        leave_one_out: for each method, its accuracy on the examples, each classified by all the others; None if no
            class has two examples, because then it cannot be measured.

    Examples:
        >>> vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
        >>> classifier = FewShot(vectors, ["cat", "cat", "dog", "dog"])
        >>> shares = classifier.predict([[0.9, 0.2]])
        >>> classifier.labels[int(shares[0].argmax())]
        'cat'
    """

    def __init__(self, vectors: NDArray[Any], labels: Sequence[str], method: Method | None = None) -> None:
        """
        Args:
            vectors: the examples, [n, dim], of any length; a few thousand at most, because memory grows with n².
            labels: the class of each example.
            method: use this method instead of the better one.

        Raises:
            ArgumentError: there are fewer than two classes, labels are not a sequence, they and the vectors differ in
                number, or a vector is zero.
        """
        if method is not None:
            require_choice(get_args(Method), method=method)
        vectors = as_vectors("vectors", vectors)
        check_sequence("labels", labels)
        if vectors.ndim != 2 or len(labels) != len(vectors):
            given = f"{len(labels)} labels and vectors {list(vectors.shape)}"
            raise ArgumentError(f"given {given}; give one label for each row of vectors [n, dim]")
        wrong = next((label for label in labels if not isinstance(label, str)), None)
        if wrong is not None:
            raise ArgumentError(f"label {wrong!r:.80} is of type {type(wrong).__name__}; give strings")
        self.labels = sorted(set(labels))
        if len(self.labels) < 2:
            raise ArgumentError(f"given {len(self.labels)} class; give examples of two or more")
        self._examples = scale(vectors, "cosine", "example {}".format)
        self._classes = np.array([self.labels.index(label) for label in labels])
        self._members = np.eye(len(self.labels))[self._classes]
        self.leave_one_out: dict[Method, float | None] = {
            "class_mean": self._accuracy(self._means_without_each()),
            "knn": self._accuracy(self._votes(self._without_each())),
        }
        best: Method = max(self.leave_one_out, key=lambda name: self.leave_one_out[name] or 0.0)  # the first of equals
        self.method = best if method is None else method

    @property
    def summary(self) -> str:
        """One line with the leave-one-out accuracy of each method, and the method in use."""
        if self.leave_one_out[self.method] is None:
            return f"{self.method}; give two or more examples of each class to measure its accuracy"
        shares = (f"{name} {share:.0%}" for name, share in self.leave_one_out.items())
        return f"leave-one-out accuracy: {', '.join(shares)}; using {self.method}"

    def predict(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return the share of each class in the decision, float64 [q, classes], for vectors [q, dim]; rows sum to 1.

        Raises:
            IndexMismatchError: the vectors have another dimension than the examples.
            ArgumentError: a vector is zero, which has no direction.
        """
        queries = np.atleast_2d(as_vectors("vectors", vectors))
        if queries.ndim != 2 or queries.shape[1] != self._examples.shape[1]:
            dim = self._examples.shape[1]
            raise IndexMismatchError(f"queries are {list(queries.shape)}, the examples [{dim}]; give [q, {dim}]")
        queries = scale(queries, "cosine", "query {}".format)
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
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :NEIGHBORS]
        weights = np.exp((np.take_along_axis(similarities, nearest, axis=1) - 1) / TEMPERATURE)
        votes = np.einsum("qk,qkc->qc", weights, self._members[nearest])
        shares: NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)
        return shares

    def _accuracy(self, scores: NDArray[np.float64]) -> float | None:
        """Return the accuracy on the examples whose class has another example; None if there are none."""
        counted = self._members.sum(axis=0)[self._classes] > 1
        if not counted.any():
            return None
        return float((scores.argmax(axis=1) == self._classes)[counted].mean())


def _directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to length 1; a row without direction stays near zero and is not similar to any vector."""
    directions: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return directions


def _softmax(similarities: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp((similarities - 1) / TEMPERATURE)
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares
