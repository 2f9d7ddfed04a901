"""Arithmetic that gives the same bits on every x86-64 processor with AVX2.

Numerical libraries choose their kernels by the processor they find, and kernels add in different orders. The settings
here pin each of them to kernels that all such processors have, at a price in speed (BENCHMARKS.md). Most are read from
the environment when a library is loaded or first computes, so a stage's runner sets them before its kernel starts.
"""

import os
import platform
from pathlib import Path

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
PINNED = {
    "MKL_CBWR": "COMPATIBLE",  # of PyTorch's matrix products and Fourier transforms
    "ATEN_CPU_CAPABILITY": "avx2",  # of PyTorch's own kernels
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # of numpy's logarithms and exponentials
    "OPENBLAS_CORETYPE": "Haswell",  # of numpy's matrix products
}
_pinned = False  # what `set_arithmetic` did to this process


def can_pin() -> bool:
    """Whether this processor has what the pinned kernels need."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    described = Path("/proc/cpuinfo")
    return not described.is_file() or "avx2" in described.read_text().split()


def environment(repeatable: bool) -> dict[str, str]:
    """The variables of a process that is to compute in one thread, pinned where `repeatable`."""
    return ONE_THREAD | (PINNED if repeatable and can_pin() else {})


def set_arithmetic(repeatable: bool) -> bool:
    """Makes this process, and the workers that it starts, compute in one thread -> whether its bits are pinned.

    Call it before anything is computed. Raises RuntimeError where PyTorch has chosen its kernels already, or was told
    to take others.
    """
    import torch

    global _pinned
    os.environ.update(environment(repeatable))
    torch.set_num_threads(1)
    if not repeatable or not can_pin():
        return False
    # oneDNN and NNPACK choose by the processor and by the shape, and have no setting that pins them.
    torch.backends.mkldnn.enabled = False
    torch.backends.nnpack.set_flags(False)
    if (found := torch.backends.cpu.get_cpu_capability()) != "AVX2":
        raise RuntimeError(
            f"PyTorch computes with {found} kernels already: start anew, and set the arithmetic before anything else"
        )
    _pinned = True
    return True


def pinned() -> bool:
    return _pinned
