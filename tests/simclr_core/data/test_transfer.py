"""Arrays arrive as they left, in one copy."""

import numpy as np
import torch

from simclr_core.data.transfer import send


def test_arrays_arrive_as_they_left() -> None:
    random = np.random.default_rng(0)
    arrays = {
        "places": random.integers(-(2**62), 2**62, (5, 4)),
        "odd": random.random((3, 1)).astype(np.float32),
        "none": np.empty((0, 3), np.float32),
        "last": np.array([2**40]),
    }
    sent = send(arrays, torch.device("cpu"))
    assert list(sent) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(sent[name].numpy(), array)
        assert sent[name].numpy().dtype == array.dtype
    assert len({values.untyped_storage().data_ptr() for values in sent.values()}) == 1
