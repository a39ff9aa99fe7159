"""Choose the variant of an encoder for this machine: int8 is faster only where the processor has 8-bit dot products.

The choice follows the flags that the operating system reports, never a processor's model name: Skylake servers, often
listed as processors with VNNI, lack it and run int8 no faster than float32 (onnxruntime issue 17389).
"""

import ctypes
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from deploy.bundle import FP16, FP32, INT8
from deploy.errors import ArgumentError

AUTO = "auto"
CPU_PROVIDER = "CPUExecutionProvider"
INSTRUCTIONS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
"""Flags of Linux for 8-bit dot products, on x86-64 and on ARM; onnxruntime has kernels for each."""

_APPLE_FLAGS = {"hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_DotProd": "asimddp"}


def choose_variant(asked: str, available: Collection[str], providers: Sequence[str]) -> tuple[str, str]:
    """Return the variant to run, and the reason in one sentence.

    "auto" chooses int8 on a CPU with 8-bit dot products, fp16 on a GPU, and fp32 everywhere else or if the bundle lacks
    that variant.

    Raises:
        ArgumentError: the bundle does not have this variant, or the providers are not a list.
    """
    if isinstance(providers, str | bytes) or not isinstance(providers, Sequence):
        raise ArgumentError(f"providers={providers!r:.80}; give a list of names, such as ['CPUExecutionProvider']")
    if not isinstance(asked, str) or asked != AUTO:
        if not isinstance(asked, str) or asked not in available:
            raise ArgumentError(f"variant={asked!r:.80}; this bundle has {', '.join(available)}; or give auto")
        return asked, "requested"
    if tuple(providers[:1]) != (CPU_PROVIDER,):
        chosen = FP16 if FP16 in available else FP32
        return chosen, f"auto: {providers[0] if providers else 'no provider'} computes in float"
    instruction = int8_instruction()
    if instruction is None:
        return FP32, "auto: this processor reports no 8-bit dot product"
    if INT8 not in available:
        return FP32, f"auto: this processor has {instruction}, but the bundle has no int8"
    return INT8, f"auto: this processor has {instruction}"


def int8_instruction(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the first of INSTRUCTIONS that this processor has; None if it has none or the system does not say."""
    found = _apple_flags() if sys.platform == "darwin" else _linux_flags(cpuinfo)
    return next((name for name in INSTRUCTIONS if name in found), None)


def _linux_flags(cpuinfo: Path) -> set[str]:
    """Return the flags that all cores have: a thread may run on any core."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    cores = [set(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))]
    return set.intersection(*cores) if cores else set()


def _apple_flags() -> set[str]:
    library = ctypes.CDLL(None)

    def reports(name: str) -> bool:
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        failed = library.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return not failed and value.value == 1

    return {flag for name, flag in _APPLE_FLAGS.items() if reports(name)}
