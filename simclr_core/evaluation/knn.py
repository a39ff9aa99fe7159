"""Cosine k-nearest-neighbor classification (Wu et al. 2018, section 3.4): the quickest honest look at an encoder.

Every neighbor votes for its class with weight exp(similarity / temperature). Nothing is trained, so the number rises
only when the features themselves get better. Ties are resolved by position: between equally similar neighbors the
first in the bank wins, between classes with equal votes the first class.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

BLOCK, BANK_BLOCK = 512, 2**14  # queries, and members of the bank, compared at a time: bounds memory
ON_GPU = 4  # times as many members there

Features = NDArray[np.floating] | Tensor
Labels = NDArray[np.integer] | Tensor


def nearest(
    bank: Features, queries: Features, neighbors: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The most similar members of ``bank`` [m, d] for each of ``queries`` [q, d], most similar first.

    Returns cosine similarities float32 [q, k] and positions in the bank int64 [q, k], k = min(neighbors, m), on
    ``device``, by default where the bank is. Bank and queries go there block by block.
    """
    whole, asked = torch.as_tensor(bank), torch.as_tensor(queries)
    device = device or whole.device
    count, size = min(neighbors, len(whole)), BANK_BLOCK * (ON_GPU if device.type == "cuda" else 1)
    assert count > 0, "an empty bank has no neighbors"
    similarities = torch.full((len(asked), count), -torch.inf, device=device)
    positions = torch.zeros_like(similarities, dtype=torch.int64)
    for first in range(0, len(whole), size):
        members = normalize(whole[first : first + size].to(device).float(), dim=1)
        for start in range(0, len(asked), BLOCK):
            block = slice(start, start + BLOCK)
            normalized_queries = normalize(asked[block].to(device).float(), dim=1)
            values, places = _nearest_of_block(normalized_queries @ members.T, min(count, len(members)))
            merged = torch.cat([similarities[block], values], dim=1).sort(dim=1, descending=True, stable=True)
            order = merged.indices[:, :count]  # of equals, those of earlier blocks stay first
            similarities[block] = merged.values[:, :count]
            positions[block] = torch.cat([positions[block], places + first], dim=1).gather(1, order)
    return similarities, positions


def knn_predict(
    bank: Features, bank_labels: Labels, queries: Features, classes: int, neighbors: int, temperature: float
) -> NDArray[np.int64]:
    """The class of each query, int64 [q]. ``bank`` [m, d] and ``queries`` [q, d] need not be normalized.

    Examples:
        >>> bank, labels = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0, 0, 1])
        >>> queries = np.array([[5.0, 1.0], [0.1, 2.0]])
        >>> knn_predict(bank, labels, queries, classes=2, neighbors=2, temperature=0.1).tolist()
        [0, 1]
    """
    votes = knn_votes(bank, bank_labels, queries, classes, neighbors, temperature)
    return np.asarray(votes.argmax(axis=1))


def knn_votes(
    bank: Features,
    bank_labels: Labels,
    queries: Features,
    classes: int,
    neighbors: int,
    temperature: float,
    device: torch.device | None = None,
) -> NDArray[np.float64]:
    """The votes that each class gets from the neighbors of each query, [q, classes]; arguments as ``knn_predict``.
    Computed is on ``device``, by default where the bank is."""
    similarities, positions = nearest(bank, queries, neighbors, device)
    labels = torch.as_tensor(bank_labels).long().to(positions.device)
    assert len(labels) == len(bank)
    assert 0 <= int(labels.min()) <= int(labels.max()) < classes
    # exp(s / t) overflows at low temperatures; relative to the largest possible similarity, 1, it cannot.
    weights = torch.exp((similarities.double() - 1) / temperature)
    votes = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[positions], weights)
    return votes.cpu().numpy()


def shares(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each class, 0 to 1, [q, classes]; 0 where every neighbor is so far away that no vote is left."""
    total = votes.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = np.divide(votes, total, out=np.zeros_like(votes), where=total > 0)
    return found


def knn_accuracy(
    bank: Features,
    bank_labels: Labels,
    queries: Features,
    query_labels: Labels,
    classes: int,
    neighbors: int,
    temperature: float,
) -> float:
    """Percent of the queries whose predicted class is their label."""
    predicted = knn_predict(bank, bank_labels, queries, classes, neighbors, temperature)
    return 100 * float(np.mean(predicted == np.asarray(torch.as_tensor(query_labels).cpu())))


def _nearest_of_block(similarities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """topk alone may return any of several equal similarities; here the first positions win.

    Only where the next one is as similar as the last that is taken can there be a choice.
    """
    found = similarities.topk(min(count + 1, similarities.shape[1]), dim=1)
    places = found.indices[:, :count].sort(dim=1).values
    if found.values.shape[1] > count:
        tied = (found.values[:, count - 1] == found.values[:, count]).nonzero()[:, 0]
        if len(tied):
            places[tied] = _first_of_equals(similarities[tied], count)
    values, order = similarities.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def _first_of_equals(similarities: Tensor, count: int) -> Tensor:
    """Everything above the smallest similarity that still belongs to the top, then those of its equals that fit:
    positions [q, count], which ascend."""
    threshold = similarities.topk(count, dim=1).values[:, -1:]
    above = similarities > threshold
    equal = similarities == threshold
    taken = above | (equal & (equal.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))
    return taken.nonzero()[:, 1].view(-1, count)
