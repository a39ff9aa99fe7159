"""Features in blocks against the same in one piece."""

import pytest
import torch
from torch import Tensor

from simclr_core.evaluation.regression import standardized
from simclr_core.evaluation.regression.standardized import standardization, standardize, unchanged


def random_features(samples: int, width: int) -> Tensor:
    """Of very different scale, not centered."""
    values = torch.randn(samples, width, generator=torch.Generator().manual_seed(0)) + 2
    return values * torch.logspace(0, -2, width)


def test_rounding_noise_does_not_count_as_variance() -> None:
    features = torch.full((1000, 1), 0.1) + torch.tensor([0.0, 1e-8]).repeat(500)[:, None]
    assert standardization(features)[1].item() == 1


def test_what_a_gpu_keeps_are_the_standardized_features(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features(30, 4)
    inputs = standardize(features, torch.arange(0, 30, 2))
    monkeypatch.setattr(standardized, "BLOCK_ELEMENTS", 4 * 7)
    whole = torch.cat([block for _, block in inputs.blocks()])
    assert inputs.kept() is inputs  # a processor has them in its memory anyway
    torch.testing.assert_close(whole, ((features - inputs.mean) / inputs.std)[::2].to(whole.dtype))


def test_statistics_of_blocks_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features(100, 4)
    monkeypatch.setattr(standardized, "BLOCK_ELEMENTS", 4 * 7)
    mean, std = standardization(features)
    torch.testing.assert_close(mean, features.double().mean(dim=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(std, features.double().std(dim=0, correction=0), rtol=1e-5, atol=0)


def test_some_of_the_samples_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features(40, 3)
    monkeypatch.setattr(standardized, "BLOCK_ELEMENTS", 3 * 8)
    expected = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    inputs, seen = standardize(features, torch.arange(10, 40)), torch.arange(30) % 3 == 0
    for some, rows in (
        (inputs, slice(10, 40)),
        (inputs.of(seen), slice(10, 40, 3)),
        (inputs.spread(8), slice(10, 40, 4)),
        (inputs.spread(30), slice(10, 40)),
    ):
        found = torch.cat([block for _, block in some.blocks()])
        torch.testing.assert_close(found, expected[rows], atol=1e-5, rtol=0)
        assert len(some) == len(found)
    assert torch.equal(torch.cat([block for _, block in unchanged(features).of(torch.ones(40) > 0).blocks()]), features)


def test_rows_in_their_order_are_not_copied() -> None:
    features = random_features(9, 2)
    assert standardized._taken(features, torch.arange(3, 7)).data_ptr() == features[3:].data_ptr()
    assert torch.equal(standardized._taken(features, torch.tensor([3, 5, 4])), features[[3, 5, 4]])
