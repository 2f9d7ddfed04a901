"""Arithmetic that gives the same bits on every x86-64 processor with AVX2.

Libraries choose kernels by processor, and kernels add in different orders. These settings pin kernels that all such
processors have, at a price in speed (BENCHMARKS.md). Most are read when a library is loaded or first computes.
"""

import os
import platform
from pathlib import Path

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
PINNED = {
    "MKL_CBWR": "COMPATIBLE",  # PyTorch's matrix products and Fourier transforms
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # numpy's logarithms and exponentials
    "OPENBLAS_CORETYPE": "Haswell",  # numpy's matrix products
}
_pinned = False


def can_pin() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return not cpuinfo.is_file() or "avx2" in cpuinfo.read_text().split()


def environment(repeatable: bool) -> dict[str, str]:
    """The variables of a process that computes in one thread, with pinned kernels where `repeatable`."""
    return ONE_THREAD | (PINNED if repeatable and can_pin() else {})


def set_arithmetic(repeatable: bool) -> None:
    """One thread in this process and its workers, with pinned kernels where `repeatable`.

    To be called before anything is computed: RuntimeError where PyTorch has chosen other kernels already.
    """
    import torch

    global _pinned
    variables = environment(repeatable)
    os.environ.update(variables)
    torch.set_num_threads(1)
    if variables == ONE_THREAD:
        return
    # oneDNN and NNPACK choose by processor and shape, and have no setting that pins them.
    torch.backends.mkldnn.enabled = False
    torch.backends.nnpack.set_flags(False)
    if (kernels := torch.backends.cpu.get_cpu_capability()) != "AVX2":
        raise RuntimeError(f"PyTorch computes with {kernels} kernels already: call set_arithmetic in a new process")
    _pinned = True


def pinned() -> bool:
    """Whether `set_arithmetic` has pinned the kernels of this process."""
    return _pinned
