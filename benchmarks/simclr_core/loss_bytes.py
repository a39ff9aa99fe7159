"""What a contrastive loss sends per process and step, compared with lightly's with ``gather_distributed``, counted
alike.

    python -m benchmarks.simclr_core.loss_bytes --json benchmarks/results/FILE.json

Two gloo processes compute each loss and its gradient on the same projections; every collective operation that torch
runs, forward and backward, is counted at what a ring of W processes sends for it (the least there is): W - 1 times the
own part for an all-gather, 2 (W - 1) / W times the tensor for an all-reduce. Loss and gradient have to agree first. The
counts depend on nothing but the shapes.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import measure
from simclr_core.loss.nt_xent import nt_xent

WORLD = 2
IMAGES = 256  # of each process
DIMENSIONS = (64, 128, 256)
TEMPERATURE = 0.1

Loss = Callable[[Tensor, Tensor], Tensor]


class Collectives(TorchDispatchMode):
    """Every operation in which processes talk while this is entered: its name and the bytes that one of them sends."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function.namespace == "c10d":
            self.sent.append((function.overloadpacket.__name__, sent(function.overloadpacket.__name__, args)))
        return function(*args, **(kwargs or {}))


def sent(operation: str, arguments: tuple[Any, ...]) -> int:
    """Bytes that a process sends for one collective, if all stand in a ring."""
    world = dist.get_world_size()
    if operation in ("_allgather_base_", "allgather_"):  # outputs first, then inputs
        return (world - 1) * _bytes(arguments[1])
    assert operation == "allreduce_", f"no cost is known for {operation}"
    return 2 * (world - 1) * _bytes(arguments[0]) // world


def _bytes(tensors: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))


def ours() -> Loss:
    return lambda first, second: nt_xent(first, second, TEMPERATURE)


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    loss: Loss = NTXentLoss(temperature=TEMPERATURE, gather_distributed=True)
    return loss


LOSSES: dict[str, Callable[[], Loss]] = {"simclr-pipeline": ours, "lightly": lightly}


def counted(loss: Loss, first: Tensor, second: Tensor) -> dict[str, Any]:
    """Collectives and bytes of one step, its loss and the gradients of both views."""
    with Collectives() as forward:
        value = loss(first, second)
    with Collectives() as backward:
        gradients = torch.autograd.grad(value, (first, second))
    sizes = [size for _, size in forward.sent + backward.sent]
    return {
        "bytes": sum(sizes),
        "collectives_forward": len(forward.sent),
        "collectives_backward": len(backward.sent),
        "loss": value.detach(),
        "gradients": gradients,
    }


def _process(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    results = []
    for dimension in DIMENSIONS:
        generator = torch.Generator().manual_seed(rank)
        first = torch.randn(IMAGES, dimension, generator=generator)
        second = first + torch.randn(IMAGES, dimension, generator=generator)
        row = {name: counted(make(), first.requires_grad_(), second.requires_grad_()) for name, make in LOSSES.items()}
        mine, theirs = row.values()
        _assert_equal(mine, theirs)
        ratio = round(mine["bytes"] / theirs["bytes"], 4)
        results.append({"images": IMAGES, "dimension": dimension, **row, "ratio": ratio})
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


def _assert_equal(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """lightly's loss is that of a process alone; the gradients of both are those of W times the mean over all."""
    losses = [one.pop("loss") for one in (mine, theirs)]
    for loss in losses:
        dist.all_reduce(loss)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.pop("gradients"), theirs.pop("gradients"), atol=1e-7, rtol=1e-4)


def compared() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (Path(folder),), nprocs=WORLD)  # type: ignore[no-untyped-call]
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    return measure.header("loss_bytes", "torch", "lightly") | {"processes": WORLD, "results": results}


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    results = compared()
    for row in results["results"]:
        print(json.dumps(row), flush=True)
    measure.write(results, arguments.json)


if __name__ == "__main__":
    main()
