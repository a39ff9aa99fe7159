"""kNN against the formula written as a loop, and its ties."""

import math

import numpy as np
import pytest
import torch

from simclr_core.evaluation import knn
from simclr_core.evaluation.knn import knn_accuracy, knn_predict, nearest
from tests.simclr_core.fake_cuda import fake_cuda


def naive(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, classes: int, k: int, temperature: float) -> int:
    """Wu et al. 2018, section 3.4: the k most similar vote with exp(similarity / temperature)."""
    similarities = [float(query @ one / (np.linalg.norm(query) * np.linalg.norm(one))) for one in bank]
    votes = [0.0] * classes
    for index in sorted(range(len(bank)), key=lambda i: (-similarities[i], i))[:k]:
        votes[labels[index]] += math.exp(similarities[index] / temperature)
    return votes.index(max(votes))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.07), (20, 1.0), (1000, 0.5)])
def test_predictions_equal_the_naive_loop(monkeypatch: pytest.MonkeyPatch, k: int, temperature: float) -> None:
    monkeypatch.setattr(knn, "BLOCK", 7)  # several blocks, the last one incomplete
    random = np.random.default_rng(1)
    bank, queries = random.normal(size=(60, 8)) + 0.5, random.normal(size=(30, 8))
    labels = random.integers(0, 4, 60)
    predicted = knn_predict(bank, labels, queries, 4, k, temperature)
    assert predicted.tolist() == [naive(bank, labels, query, 4, k, temperature) for query in queries]


def test_equal_neighbors_are_taken_in_the_order_of_the_bank() -> None:
    bank = np.array([[0, 1], [1, 0], [2, 0], [1, 0], [0, 1], [3, 0]], dtype=np.float32)  # four in one direction
    similarities, positions = nearest(bank, np.array([[1.0, 0.0]], dtype=np.float32), 3)
    assert positions.tolist() == [[1, 2, 3]]
    assert similarities.tolist() == [[1, 1, 1]]


def test_neighbors_come_most_similar_first_and_ties_at_the_end_by_position() -> None:
    bank = np.array([[1, 1], [1, 0], [1, 1], [0, 1], [1, -1]], dtype=np.float32)
    _, positions = nearest(bank, np.array([[1.0, 0.1]], dtype=np.float32), 5)
    assert positions.tolist() == [[1, 0, 2, 4, 3]]


def test_blocks_of_the_bank_give_the_neighbors_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    bank = random.integers(-1, 2, (90, 3)).astype(np.float32)  # many are equal
    queries = random.integers(-1, 2, (25, 3)).astype(np.float32)
    similarities, positions = nearest(bank, queries, 12)
    monkeypatch.setattr(knn, "BLOCK", 4)
    for block in (5, 12, 89):
        monkeypatch.setattr(knn, "BANK_BLOCK", block)
        found = nearest(bank, queries, 12)
        assert torch.equal(found[1], positions)
        assert torch.equal(found[0], similarities)


def test_a_gpu_gets_the_bank_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BANK_BLOCK", 5)
    monkeypatch.setattr(knn, "ON_GPU", 1)
    monkeypatch.setattr(knn, "_nearest_of_block", lambda similarities, count: similarities.topk(count, dim=1))
    bank, queries = np.ones((12, 3), np.float32), np.ones((7, 3), np.float32)
    with fake_cuda() as gpu:
        similarities, positions = nearest(bank, queries, 4, gpu)
    assert (similarities.device, positions.device) == (gpu, gpu)
    assert similarities.shape == positions.shape == (7, 4)


def test_equal_votes_go_to_the_first_class() -> None:
    bank = np.eye(2, dtype=np.float32)
    assert knn_predict(bank, np.array([1, 0]), np.ones((1, 2), np.float32), 3, 2, 0.1).tolist() == [0]


def test_a_low_temperature_neither_overflows_nor_loses_the_nearest() -> None:
    bank = np.array([[1, 0], [0.9, 0.1], [0.9, 0.1]], dtype=np.float32)
    assert knn_predict(bank, np.array([1, 0, 0]), np.array([[1, 0]], np.float32), 2, 3, 1e-3).tolist() == [1]


def test_accuracy_is_the_percentage_of_right_answers_for_tensors_too() -> None:
    bank, labels = torch.eye(4), torch.tensor([0, 1, 2, 3])
    queries = torch.eye(4) + 0.01
    assert knn_accuracy(bank, labels, queries, torch.tensor([0, 1, 2, 0]), 4, 1, 0.1) == 75
