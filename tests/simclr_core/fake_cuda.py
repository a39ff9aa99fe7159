"""A GPU on a machine without one: tensors on ``cuda:0`` that have no memory, and a count of what is asked of it.

    with fake_cuda() as device:
        network = build().to(device)
        counts = count(lambda: step(network))

``FakeTensorMode`` computes shapes, types and devices. Numbers are not there: each that is read is 1, each boolean True.
autograd's engine wants a driver for tensors on ``cuda``: ``torch.autograd.backward`` and ``torch.autograd.grad`` walk
the same graph in Python here, without the hooks of tensors and of DistributedDataParallel. A mode belongs to a thread:
other threads compute as always.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHAPED_BY_VALUES = (
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"),
)
READ = ("_local_scalar_dense", "equal", *SHAPED_BY_VALUES)
PINS = ("is_pinned", "pin_memory", "_pin_memory")
WITHOUT_WORK = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "resize_")
COLLECTIVES = ("c10d", "_c10d_functional")


@dataclass(frozen=True)
class Counts:
    """What a function asked of the GPU; ``names`` are the operators, by kind, for the message of a failed test.

    kernels: operators that compute there. One over a list of tensors is one, though it may launch several.
    blocking_copies: from the processor's memory, unless that is pinned and the copy ``non_blocking``.
    read_backs: of a number, or of a shape that depends on numbers: the processor waits for all that is queued.
    waits: for an event, a stream or the device. A number that was copied before and is looked at late is such a wait.
    collectives: exchanges with other processes.
    """

    kernels: int
    blocking_copies: int
    read_backs: int
    waits: int
    collectives: int
    names: Mapping[str, int]


def count(function: Callable[[], object]) -> Counts:
    """Call ``function``, inside ``fake_cuda``, and return what it asked of the GPU."""
    (gpu,) = _open
    before = Counter(gpu.tally)
    function()
    tally = gpu.tally - before
    kinds: Counter[str] = Counter()
    for (kind, _), times in tally.items():
        kinds[kind] += times
    names = {f"{kind}: {name}": times for (kind, name), times in sorted(tally.items())}
    ordered = (kinds[kind] for kind in ("kernels", "blocking_copies", "read_backs", "waits", "collectives"))
    return Counts(*ordered, names)


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside, this thread has a GPU."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        gpu = stack.enter_context(_Gpu())
        replaced = {
            "torch.autograd.backward": backward,
            "torch.autograd.grad": gradients,
            "torch.cuda.Event": lambda *_, **__: _Event(gpu),
            "torch.cuda.Stream": lambda *_, **__: _Event(gpu),
            "torch.cuda.current_stream": lambda *_: _Event(gpu),
            "torch.cuda.stream": lambda _: ExitStack(),
            "torch.cuda.synchronize": lambda *_: _Event(gpu).synchronize(),
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.nn.Module._apply": _apply,
        }
        for name, ours in replaced.items():
            stack.enter_context(patch(name, ours))
        _open.append(gpu)
        stack.callback(_open.remove, gpu)
        yield torch.device("cuda", 0)


_open: list["_Gpu"] = []


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What ``Module.to`` calls, with new parameters: torch exchanges their content, which a mode that has seen them
    does not allow."""
    for one in module.modules():
        for name, parameter in one._parameters.items():
            if parameter is not None:
                one._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
        for name, buffer in one._buffers.items():
            one._buffers[name] = None if buffer is None else function(buffer)
    return module


class _Gpu(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.tally: Counter[tuple[str, str]] = Counter()
        self._pinned: dict[int, Any] = {}  # storages, by address; kept, so that no other takes the place of one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if func.namespace == "prim" or func.namespace in COLLECTIVES:
            return self._exchanged(func, name, args, kwargs)
        if name in PINS:
            return self._is_pinned(args[0]) if name == "is_pinned" else self._pin(args[0].clone())
        if name in ("_to_copy", "copy_"):
            return self._copied(func, name, args, kwargs)
        if name in READ:
            return self._read(func, name, args, kwargs)
        if name in ("index", "index_put_", "index_put"):
            args = self._without_masks(name, args)
        on_gpu = any(map(_is_on_gpu, given))
        if on_gpu and any(one.ndim and not _is_on_gpu(one) for one in given):
            self.tally["blocking_copies", name] += 1
        if name.startswith(("_fused_", "_amp_")):  # of optimizers and scalers: not all have a kernel for shapes
            self.tally["kernels", name] += on_gpu
            return args[0] if func._schema.returns else None
        if name == "record_stream":
            return None
        pins = kwargs.pop("pin_memory", False)
        output = func(*args, **kwargs)
        if on_gpu or any(map(_is_on_gpu, tree_leaves(output))):
            self.tally["kernels", name] += _computes(func, name, output)
        return self._pin(output) if pins else output

    def waited(self) -> None:
        self.tally["waits", "synchronize"] += 1

    def _exchanged(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        self.tally["collectives", name] += func.namespace != "prim" and name != "wait_tensor"
        if func.namespace != "c10d":  # prim: the device, the layout
            return func(*args, **kwargs)
        work = FakeWork().boxed()
        return work if len(func._schema.returns) == 1 else (args[0], work)

    def _copied(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        source = args[1] if name == "copy_" else args[0]
        asynchronous = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if not _is_on_gpu(source) and not _is_on_gpu(output):
            return output
        if _is_on_gpu(source) and _is_on_gpu(output):
            self.tally["kernels", name] += output.numel() > 0
        elif _is_on_gpu(output):
            self.tally["blocking_copies", name] += not (asynchronous and self._is_pinned(source))
        elif asynchronous and (name == "_to_copy" or self._is_pinned(output)):
            return self._pin(output)  # as torch does
        else:
            self.tally["read_backs", name] += 1
        return output

    def _read(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        given: Tensor = args[0]
        self.tally["read_backs", name] += _is_on_gpu(given)
        if not _is_on_gpu(given):
            try:
                return func(*args, **kwargs)
            except RuntimeError:  # it came from the GPU, and has no number
                pass
        if name == "_local_scalar_dense":
            return True if given.dtype == torch.bool else 1.0 if given.is_floating_point() else 1
        if name == "equal":
            return True
        rows = [given.numel(), given.ndim] if name == "nonzero" else [given.numel()]
        return given.new_empty(rows, dtype=torch.int64 if name == "nonzero" else given.dtype)

    def _without_masks(self, name: str, args: Any) -> Any:
        """Each mask as the indices of all its places. To fill by a mask, with one number, reads nothing back."""
        if name != "index" and args[2].numel() == 1:
            return args
        masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
        self.tally["read_backs", f"{name} by a mask"] += any(map(_is_on_gpu, masks))
        indices: list[Tensor | None] = []
        for one in args[1]:
            is_mask = any(one is mask for mask in masks)
            indices += [one.new_empty(one.numel(), dtype=torch.int64)] * one.ndim if is_mask else [one]
        return (args[0], indices, *args[2:])

    def _pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = storage
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned


class _Event:
    """What is used of ``torch.cuda.Event`` and ``torch.cuda.Stream``."""

    def __init__(self, gpu: _Gpu) -> None:
        self._gpu = gpu

    def synchronize(self) -> None:
        self._gpu.waited()

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: object) -> float:
        return 0.0

    def record(self, *_: object) -> None: ...

    def wait(self, *_: object) -> None: ...

    wait_event = wait_stream = wait

    def record_event(self, *_: object) -> "_Event":
        return self


def _is_on_gpu(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _computes(func: Any, name: str, output: Any) -> bool:
    is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
    tensors = [one for one in tree_leaves(output) if isinstance(one, Tensor)]
    return not is_view and name not in WITHOUT_WORK and (not tensors or any(one.numel() for one in tensors))


def backward(
    tensors: Tensor | Sequence[Tensor], grad_tensors: Tensor | Sequence[Tensor | None] | None = None, *_: Any, **__: Any
) -> None:
    """``torch.autograd.backward``."""
    _walk(*_paired(tensors, grad_tensors), ())


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    *_: Any,
    **__: Any,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad``."""
    wanted = [inputs] if isinstance(inputs, Tensor) else inputs
    return _walk(*_paired(outputs, grad_outputs), wanted)


def _paired(tensors: Any, pulls: Any) -> tuple[list[Tensor], list[Tensor]]:
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    given = [pulls] * len(roots) if pulls is None or isinstance(pulls, Tensor) else list(pulls)
    return roots, [torch.ones_like(root) if pull is None else pull for root, pull in zip(roots, given, strict=True)]


@torch.no_grad()
def _walk(roots: Iterable[Tensor], pulls: Iterable[Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Run the nodes of the graph, each when all that leads to it has run. With ``wanted`` no leaf is changed."""
    arriving: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    edges = [torch.autograd.graph.get_gradient_edge(root) for root in roots]
    for edge, pull in zip(edges, pulls, strict=True):
        _add(arriving, edge.node, edge.output_nr, pull)
    outstanding = _edges_into([edge.node for edge in edges])
    ready = list(dict.fromkeys(edge.node for edge in edges if not outstanding[edge.node]))
    found: dict[tuple[Any, int], Tensor] = {}
    while ready:
        node = ready.pop()
        given = arriving.pop(node, {})
        found.update({(node, number): pull for number, pull in given.items()})
        for (following, number), pull in zip(node.next_functions, _run(node, given, bool(wanted)), strict=False):
            if following is None:
                continue
            if pull is not None:
                _add(arriving, following, number, pull)
            outstanding[following] -= 1
            if not outstanding[following]:
                ready.append(following)
    places = [torch.autograd.graph.get_gradient_edge(one) for one in wanted]
    return tuple(found.get((place.node, place.output_nr)) for place in places)


def _edges_into(nodes: Iterable[Any]) -> Counter[Any]:
    """How many edges lead to each node that can be reached."""
    edges: Counter[Any] = Counter()
    seen, to_see = set(nodes), list(nodes)
    while to_see:
        for following, _ in to_see.pop().next_functions:
            if following is not None:
                edges[following] += 1
                if following not in seen:
                    seen.add(following)
                    to_see.append(following)
    return edges


def _add(arriving: dict[Any, dict[int, Tensor]], node: Any, number: int, pull: Tensor) -> None:
    """In the shape and type of what the node made, as the engine does it."""
    made = node._input_metadata[number]
    pull = pull.sum_to_size(made.shape).to(made.dtype)
    before = arriving[node].get(number)
    arriving[node][number] = pull if before is None else before + pull


def _run(node: Any, given: Mapping[int, Tensor], leaves_stay: bool) -> Sequence[Tensor | None]:
    if hasattr(node, "variable"):  # the end of a path: a leaf
        if given and not leaves_stay:
            leaf, pull = node.variable, given[0]
            leaf.grad = pull if leaf.grad is None else leaf.grad.add_(pull)
        return ()
    if not given:
        return (None,) * len(node.next_functions)
    pulls = [given.get(number) for number in range(len(node._input_metadata))]
    outputs = node.apply(*pulls) if hasattr(node, "apply") else node(*pulls)
    return outputs if isinstance(outputs, tuple) else (outputs,)
