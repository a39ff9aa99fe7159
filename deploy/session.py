"""Start an onnxruntime session with the requested threads and execution providers, or raise an error.

On its own onnxruntime counts the cores of the host instead of those that the container may use, and silently falls back
to the CPU if a provider does not load.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import FP16, Bundle, graph_promise
from deploy.errors import (
    BundleError,
    BundleFormatError,
    BundleInterfaceError,
    ModelMemoryError,
    ProviderError,
    require_positive,
)
from deploy.graph_policy import check_graph

MOST_THREADS = 4096  # onnxruntime starts each at once, and is not heard of again with 100,000
METADATA = "simclr_pipeline"
"""Metadata key under which the ONNX file repeats the interface of its bundle."""


def open_session(bundle: Bundle, variant: str, threads: int, providers: Sequence[str]) -> Any:
    """Start an ``onnxruntime.InferenceSession`` on a variant of the bundle's model and check its interface.

    Raises:
        ArgumentError: ``threads`` is not an integer of 1 to MOST_THREADS.
        ProviderError: a provider is not installed, or the session started without it.
        BundleFormatError: the model is not a plain ONNX graph; see ``deploy.graph_policy``.
        BundleInterfaceError: onnxruntime refuses the graph, or the graph does not match bundle.json.
        ModelMemoryError: there is not enough memory for the graph.
    """
    import onnxruntime

    require_positive(MOST_THREADS, threads=threads)
    model, name = bundle.variant(variant).model, f"{bundle.card['name']}, {variant}"
    try:
        check_graph(model)
    except BundleFormatError as error:
        raise BundleFormatError(f"{name}: {error}; export the bundle again") from None
    installed = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in installed]
    if missing or not providers:
        raise ProviderError(f"providers {list(providers)}: not installed: {missing}; choose from {installed}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while they wait for work take CPU time from decoding and from other processes, also between
    # requests. Sleeping costs a tiny encoder 0.07 ms an image, others nothing, and saves 20 to 90 % of the CPU time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings are about its own optimizer
    if variant == FP16:
        # The next level rewrites graphs for CPUs only, and there onnxruntime 1.31 crashes on a float16 transformer.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # Without this, onnxruntime reads bytes that contain the mark of ORT's flatbuffers in that format, which the policy
    # does not check.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # onnxruntime's errors have no common base class
        raise refusal(name, error) from error
    started = session.get_providers()
    if started[: len(providers)] != list(providers):
        raise ProviderError(f"asked for {list(providers)}, got {started}; install what {providers[0]} needs")
    _check_interface(session, bundle)
    return session


def refusal(name: str, error: Exception) -> BundleError:
    """Return the error that says why onnxruntime did not load or run a model, which only its message tells."""
    import onnxruntime

    if isinstance(error, MemoryError) or re.search(r"bad_alloc|[Ff]ailed to allocate|bad allocation", str(error)):
        return ModelMemoryError(f"{name}: onnxruntime gets no memory for the model: {error}; give it more")
    return BundleInterfaceError(f"{name}: onnxruntime {onnxruntime.__version__} refuses the model: {error}")


def available_cpus() -> int:
    """Return how many cores this process may use: the smaller of CPU affinity and control group quota, rounded up."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.ceil(min(cpu_quota(), affinity))))


def cpu_quota(root: Path = Path("/")) -> float:
    """Return the cores that control groups (versions 1 and 2) grant: the smallest quota of this group and its parents.

    Infinite without a limit or without control groups. ``root`` is the folder that contains /proc and /sys.
    """
    quotas = [math.inf]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # In a container, /proc often gives the host's path of the group, which does not exist here; then the quota of
        # the container is at the top.
        directory = top / group.lstrip("/")
        for level in [directory, *directory.parents]:
            quotas.append(_quota(level))
            if level == top:
                break
    return min(quotas)


def _quota(group: Path) -> float:
    limit = " ".join(_lines(group / "cpu.max")).split()
    if not limit:
        limit = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    unlimited = len(limit) != 2 or limit[0] in ("max", "-1")
    return math.inf if unlimited else int(limit[0]) / int(limit[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _check_interface(session: Any, bundle: Bundle) -> None:
    preprocessing = bundle.preprocessing
    size, bands, kind = preprocessing.size, preprocessing.bands, np.dtype(preprocessing.dtype).name
    inputs = [(value.type, _per_image(value.shape)) for value in session.get_inputs()]
    outputs = [(value.type, _per_image(value.shape)) for value in session.get_outputs()]
    if (inputs, outputs) != ([(f"tensor({kind})", [size, size, bands])], [("tensor(float)", [bundle.dim])]):
        raise BundleInterfaceError(
            f"{bundle.card['name']}: the graph takes {_describe(session.get_inputs())} and gives "
            f"{_describe(session.get_outputs())}, bundle.json says {kind} [batch, {size}, {size}, {bands}] and float "
            f"[batch, {bundle.dim}]; export the bundle again"
        )
    found = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if found != graph_promise(bundle.card):
        raise BundleInterfaceError(
            f"{bundle.card['name']}: the graph was exported as {found}, bundle.json says {graph_promise(bundle.card)}; "
            "export the bundle again"
        )


def _per_image(shape: list[str | int | None]) -> list[str | int | None] | None:
    """Return the shape without its first side if that is the number of images, which a model leaves open."""
    return shape[1:] if shape and isinstance(shape[0], str) else None


def _describe(values: Sequence[Any]) -> str:
    return ", ".join(f"{value.type} {value.shape}" for value in values)
