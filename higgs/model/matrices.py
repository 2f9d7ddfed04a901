"""The matrix of a linear layer in other forms than [out, in] floats: oneDNN's own layout, int8 and int4.

They replace the layer's weight: the prompt and the decode step read the same memory. int8 has one scale for each
output; int4 one for each 64 inputs, of which a byte holds two: input i of the first 32 in its low
half, i + 32 above, each with 8 added.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

BITS = {"int8": 8, "int4": 4}
GROUP = 64  # weights with one scale in int4
QUANTIZED_AT_ONCE, WIDENED_AT_ONCE = 1 << 20, 1 << 23  # weights
FEW = 16  # inputs; more are multiplied as floats
SOURCE = Path(__file__).with_name("matvec.c")
FLAGS = ("-O3", "-shared", "-fPIC", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")


class Quantized(NamedTuple):
    """Rounded weights: value times scale."""

    values: Tensor  # int8: [out, in]; int4: [out, in / 2], two in a byte
    scales: Tensor  # bfloat16: [out]; [out, in / 64]

    @property
    def bits(self) -> int:
        return 8 if self.scales.dim() == 1 else 4


Matrix = Tensor | Quantized


def quantize(weight: Tensor, bits: int) -> Quantized:
    """[out, in] -> 8 or 4 bits, symmetric: the largest weight becomes 127 or -127, in int4 -8."""
    multiple = 32 if bits == 8 else GROUP
    if weight.shape[1] % multiple:
        raise ValueError(f"int{bits} needs inputs in multiples of {multiple}, got a weight of {list(weight.shape)}")
    out, inputs = weight.shape
    values = weight.new_empty(out, inputs * bits // 8, dtype=torch.int8)
    scales = weight.new_empty((out,) if bits == 8 else (out, inputs // GROUP), dtype=torch.bfloat16)
    # In small chunks, into what stays: large temporaries would leave holes in the heap.
    size = max(1, QUANTIZED_AT_ONCE // inputs)
    for start in range(0, out, size):
        part = slice(start, start + size)
        values[part], scales[part] = _quantize(weight[part].float(), bits)
    return Quantized(values, scales)


def _quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    groups = weight if bits == 8 else weight.unflatten(1, (-1, GROUP))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (largest.abs() / 127 if bits == 8 else largest / -8).bfloat16()
    steps = (groups / scales.float().where(scales != 0, 1)).round_()
    if bits == 8:
        return steps.clamp_(-127, 127).to(torch.int8), scales[..., 0]
    low, high = steps.clamp_(-8, 7).add_(8).to(torch.int8).chunk(2, -1)
    return (low | (high << 4)).flatten(1), scales[..., 0]


def rounded_bytes(shape: torch.Size, bits: int) -> int:
    """Of a matrix with its scales."""
    return shape.numel() * bits // 8 + 2 * (shape[0] if bits == 8 else shape.numel() // GROUP)


def dequantize(matrix: Quantized, dtype: torch.dtype) -> Tensor:
    """-> [out, in]"""
    values, scales = matrix.values, matrix.scales.to(dtype)[..., None]
    if matrix.bits == 8:
        return values.to(dtype) * scales
    both = values.unflatten(1, (-1, GROUP // 2))
    return (((torch.cat([both, both >> 4], -1) & 15) - 8).to(dtype) * scales).flatten(1)


def linear(x: Tensor, matrix: Matrix) -> Tensor:
    """[..., in] -> [..., out]"""
    if isinstance(matrix, Tensor):
        if matrix.is_mkldnn:
            return torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], "")
        return F.linear(x, matrix)
    if few(x):
        if torch.compiler.is_compiling():
            return matvec(x, *matrix)
        if kernel():
            return multiply(x, matrix)
        _warn()
        if matrix.bits == 8 and x.dtype == torch.bfloat16:
            return torch._weight_int8pack_mm(x.flatten(0, -2), *matrix).unflatten(0, x.shape[:-1])
    size = max(1, WIDENED_AT_ONCE // x.shape[-1])
    chunks = zip(*(part.split(size) for part in matrix), strict=True)
    products = [F.linear(x, dequantize(Quantized(*chunk), x.dtype)) for chunk in chunks]
    return products[0] if len(products) == 1 else torch.cat(products, -1)


def few(x: Tensor) -> bool:
    """So few inputs, on the CPU, that a product takes as long as reading the matrix."""
    return x.device.type == "cpu" and x.numel() <= FEW * x.shape[-1]


def multiply(x: Tensor, matrix: Quantized) -> Tensor:
    """[..., in] -> [..., out] by the kernel."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return multiply(x.float(), matrix).to(x.dtype)
    (*places, inputs), outputs = x.shape, len(matrix.values)
    x, out = x.contiguous(), x.new_empty(*places, outputs)
    pointers = [t.data_ptr() for t in (x, *matrix, out)]
    form = (matrix.bits, x.dtype == torch.bfloat16, torch.get_num_threads())
    if kernel().multiply(*pointers, out.numel() // outputs, inputs, outputs, *form):
        raise MemoryError(f"no memory for a product of {list(x.shape)}")
    return out


@torch.library.custom_op("higgs::matvec", mutates_args=())
def matvec(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """`linear` for torch.compile, which cannot look into the kernel."""
    return linear(x, Quantized(values, scales))


@matvec.register_fake
def _(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(values))


def kernel() -> ctypes.CDLL | None:
    """matvec.c; None where it cannot be compiled."""
    return found if isinstance(found := build_kernel(), ctypes.CDLL) else None


@cache
def _warn() -> None:
    cause = f"their kernel was not compiled ({build_kernel()})"
    warnings.warn(f"int8 and int4 are slow on this CPU: {cause}", stacklevel=3)


@cache
def build_kernel() -> ctypes.CDLL | str:
    """matvec.c, compiled on its first use, or why it cannot be."""
    compiler = shutil.which("cc")
    cpuinfo = Path("/proc/cpuinfo")
    flags = next((line for line in cpuinfo.open() if line.startswith("flags")), "") if cpuinfo.is_file() else ""
    openmp = torch.__config__.parallel_info().find("OpenMP") >= 0
    options = [*FLAGS, *(["-fopenmp"] * openmp)]
    about = repr((SOURCE.read_text(), options, compiler, platform.machine(), flags))
    folder = Path(os.environ.get("HIGGS_CACHE", Path.home() / ".cache" / "higgs"))
    file = folder / f"matvec-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                command = [compiler or "cc", *options, str(SOURCE), "-o", f"{scratch}/matvec.so", "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
                os.replace(f"{scratch}/matvec.so", file)
        if file.stat().st_uid != os.getuid():
            raise PermissionError(f"{file} belongs to somebody else, and is not run")
        loaded = ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        return str(getattr(error, "stderr", None) or error)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.multiply.argtypes = [pointer] * 4 + [size] * 3 + [ctypes.c_int] * 3
    loaded.decode.argtypes = [pointer] * 5 + [size] * 2 + [pointer, ctypes.c_int]
    return loaded


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    here = device.type == "cpu" and dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
    return here and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack(weight: Tensor) -> Tensor:
    """[out, in] -> oneDNN's own layout: in bfloat16 on the CPU small batches take half the time, the bits are equal."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


class MatrixLinear(nn.Module):
    """In place of layers without bias that read the same input: their matrices, in any form, are one.

    It has no parameters: such a model is for inference.
    """

    def __init__(self, matrix: Matrix, sizes: tuple[int, ...]):
        super().__init__()
        self.matrix, self.sizes = matrix, sizes

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.matrix)


class QuantizedEmbedding(nn.Module):
    def __init__(self, matrix: Quantized, dtype: torch.dtype):
        super().__init__()
        self.matrix, self.dtype = matrix, dtype

    def forward(self, ids: Tensor) -> Tensor:
        selected = Quantized(*(part[ids.flatten()] for part in self.matrix))
        return dequantize(selected, self.dtype).unflatten(0, ids.shape)


class Offloaded(nn.Module):
    """A module whose weights stay where they are, in a mapped file: they come to the input, each time it is called.

    Of an embedding only the vectors that are asked for come.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.module, nn.Embedding):
            return self.module(x.cpu()).to(x.device, self.dtype)
        weights = {name: weight.to(x.device, x.dtype) for name, weight in self.module.named_parameters()}
        return functional_call(self.module, weights, x)


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """The same input through several layers: one product where they share a matrix."""
    first = layers[0]
    if isinstance(first, MatrixLinear) and all(layer is first for layer in layers):
        return first(x).split(first.sizes, -1)
    return tuple(layer(x) for layer in layers)
