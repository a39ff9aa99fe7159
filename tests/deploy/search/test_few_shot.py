"""Few-shot classification: leave-one-out really leaves the example out, and the better method is chosen."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.errors import ArgumentError, IndexMismatchError
from deploy.search.few_shot import NEIGHBORS, TEMPERATURE, FewShot


def clusters(centers: NDArray[Any], each: int, spread: float, seed: int = 0) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    return np.repeat(centers, each, axis=0) + spread * random.standard_normal((len(centers) * each, centers.shape[1]))


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def class_mean(examples: NDArray[Any], labels: list[str], query: NDArray[Any]) -> str:
    """Apply the definition: the class whose mean direction is nearest."""
    classes = sorted(set(labels))
    means = [
        np.mean([x for x, label in zip(unit(examples), labels, strict=True) if label == c], axis=0) for c in classes
    ]
    return classes[int(np.argmax([unit(mean) @ unit(query) for mean in means]))]


def knn(examples: NDArray[Any], labels: list[str], query: NDArray[Any]) -> str:
    """Apply the definition: every neighbor votes with exp(cosine / temperature)."""
    cosines = unit(examples) @ unit(query)
    nearest = sorted(range(len(examples)), key=lambda row: -cosines[row])[:NEIGHBORS]
    classes = sorted(set(labels))
    votes = [sum(np.exp(cosines[row] / TEMPERATURE) for row in nearest if labels[row] == c) for c in classes]
    return classes[int(np.argmax(votes))]


ORACLES = {"class_mean": class_mean, "knn": knn}


@pytest.mark.parametrize("method", ["class_mean", "knn"])
def test_predictions_and_leave_one_out_equal_the_definition(method: Any) -> None:
    examples = clusters(np.random.default_rng(1).standard_normal((4, 6)), 7, 0.5)
    labels = [label for label in "dacb" for _ in range(7)]
    classifier = FewShot(examples, labels, method)
    queries = clusters(np.random.default_rng(1).standard_normal((4, 6)), 10, 0.5, seed=2)
    shares = classifier.predict(queries)
    assert shares.sum(axis=1) == pytest.approx(1)
    predicted = [classifier.labels[best] for best in shares.argmax(axis=1)]
    assert predicted == [ORACLES[method](examples, labels, query) for query in queries]
    right = [
        ORACLES[method](np.delete(examples, row, axis=0), labels[:row] + labels[row + 1 :], examples[row])
        == labels[row]
        for row in range(28)
    ]
    assert 0.3 < np.mean(right) < 1, "the case must have both right and wrong answers"
    assert classifier.leave_one_out[method] == pytest.approx(np.mean(right))


def test_the_class_mean_is_chosen_when_a_class_is_one_cluster() -> None:
    """Wide clusters with few examples: neighbors mislead, means do not."""
    centers = np.eye(6)[:3]
    classifier = FewShot(clusters(centers, 8, 0.45), [label for label in "abc" for _ in range(8)])
    assert classifier.method == "class_mean"
    assert classifier.leave_one_out["class_mean"] > classifier.leave_one_out["knn"]  # type: ignore[operator]


def test_knn_is_chosen_when_a_class_has_several_clusters() -> None:
    """Each class has two opposite clusters, so that its mean is meaningless."""
    centers = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], float)
    labels = [label for label in "aabb" for _ in range(6)]
    classifier = FewShot(clusters(centers, 6, 0.05), labels)
    assert (classifier.method, classifier.leave_one_out["knn"]) == ("knn", 1.0)
    assert classifier.predict([-2.0, 0.1]).argmax(axis=1).tolist() == [0]
    assert classifier.summary.endswith("knn 100%; using knn")


def test_an_example_does_not_vote_for_itself() -> None:
    """With random labels, a vote that includes the example itself is right; any other is wrong half of the time."""
    random = np.random.default_rng(0)
    classifier = FewShot(random.standard_normal((200, 50)), random.choice(["a", "b"], 200).tolist())
    assert all(0.35 < share < 0.65 for share in classifier.leave_one_out.values() if share is not None)


def test_one_example_per_class_works_but_has_no_accuracy() -> None:
    classifier = FewShot(np.eye(3), ["a", "b", "c"])
    assert classifier.leave_one_out == {"class_mean": None, "knn": None}
    assert classifier.method == "class_mean"
    assert classifier.predict(np.eye(3)).argmax(axis=1).tolist() == [0, 1, 2]
    assert "give two or more examples of each class" in classifier.summary
    two = FewShot(np.array([[1, 0], [1, 0.1], [0, 1]]), ["a", "a", "b"])
    assert two.leave_one_out == {"class_mean": 1.0, "knn": 1.0}, "the only example of b is not counted"


@pytest.mark.parametrize(
    ("vectors", "labels", "message"),
    [
        (np.eye(2), ["a"], "given 1 labels and vectors"),
        (np.eye(2), ["a", "a"], "given 1 class; give examples of two or more"),
        (np.eye(2), "ab", "labels are of type str; give a list"),
        (np.eye(2), {"a", "b"}, "labels are of type set"),
        (np.ones(2), ["a", "b"], "give one label for each row"),
        (np.zeros((2, 2)), ["a", "b"], "example 0: the vector is zero"),
        (np.array([[1, 0], [np.nan, 1]]), ["a", "b"], "example 1: the vector has NaN"),
    ],
)
def test_wrong_examples(vectors: NDArray[Any], labels: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FewShot(vectors, labels)


def test_wrong_queries_and_methods() -> None:
    classifier = FewShot(np.eye(2), ["a", "b"])
    with pytest.raises(IndexMismatchError, match=r"queries are \[1, 3\], the examples \[2\]"):
        classifier.predict([1.0, 2.0, 3.0])
    with pytest.raises(ArgumentError, match="query 0: the vector is zero"):
        classifier.predict([0.0, 0.0])
    with pytest.raises(ArgumentError, match="method='svm'; choose class_mean or knn"):
        FewShot(np.eye(2), ["a", "b"], "svm")  # type: ignore[arg-type]
