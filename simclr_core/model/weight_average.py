"""A moving average of a network's weights: a copy that follows the network slowly (EMA).

    copy <- copy + (1 - decay) · (network - copy)        after each step of the optimizer

It is steadier than the weights of the last step (Polyak & Juditsky 1992), which is why it is measured and published
where ``pretrain.average_decay`` is set, and why MoCo takes its keys from one (``simclr_core.loss.momentum_queue``).
Two details:

- The running statistics of BatchNorm follow in the same way as the weights do (EMAN: Cai et al. 2021, arXiv
  2101.08482), so that both are of the same age. Counts of batches are taken over.
- The copy follows faster at first, by 9 / (10 + updates), as TensorFlow's moving average does. The random weights and
  empty statistics of the start would else be in it for 1 / (1 - decay) steps.
"""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, _foreach_copy_, _foreach_lerp_, nn

COPY = "copy."  # before the name of each tensor of the copy


class WeightAverage:
    """``network`` is the copy of the ``followed`` one, in evaluation mode; ``updates`` counts the steps.

    Arithmetic is in lists of tensors, and nothing is read back from the device.
    """

    def __init__(self, followed: nn.Module, decay: float) -> None:
        self.network = deepcopy(followed).eval().requires_grad_(False)
        self.updates = 0
        self._followed = followed
        self._decay = decay

    def update(self) -> None:
        """To be called after the optimizer's step."""
        pace = max(1 - self._decay, 9 / (10 + self.updates))
        with torch.no_grad():
            _foreach_lerp_(*_pairs(self.network, self._followed, are_floats=True), pace)
            counts, followed_counts = _pairs(self.network, self._followed, are_floats=False)
            if counts:
                _foreach_copy_(counts, followed_counts)
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold."""
        copy = {f"{COPY}{name}": tensor for name, tensor in self.network.state_dict().items()}
        return {"updates": torch.tensor(self.updates), **copy}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what ``tensors`` gave."""
        self.network.load_state_dict(
            {name.removeprefix(COPY): value for name, value in tensors.items() if name.startswith(COPY)}
        )
        self.updates = int(tensors["updates"])


def _pairs(copy: nn.Module, followed: nn.Module, are_floats: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The weights and statistics of both, or their counts of batches."""
    mine, theirs = (
        [one for one in chain(network.parameters(), network.buffers()) if one.is_floating_point() == are_floats]
        for network in (copy, followed)
    )
    return mine, theirs
