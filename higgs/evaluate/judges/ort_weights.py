"""The weights in onnxruntime's .ort files, read back as PyTorch's.

An export of a PyTorch model to ONNX keeps the names of modules, but not all of those of weights: a matrix
that is a Linear's is known by the node that multiplies with it. The bindings of the file's format come with
onnxruntime.
"""

import struct
from pathlib import Path

import numpy as np
import onnxruntime.tools.ort_format_model  # noqa: F401  puts ort_flatbuffers_py on sys.path
import torch
from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
from torch import Tensor

# onnx.TensorProto.DataType -> what holds weights: float32, and the two kinds of 8 bits.
KINDS = {1: np.float32, 2: np.uint8, 3: np.int8}
# What reading a damaged file ends in: offsets of the format are followed without a check.
DAMAGED = (struct.error, AttributeError, IndexError, KeyError, TypeError, ValueError)


def ort_weights(file: Path) -> dict[str, Tensor]:
    """A dynamically quantised export -> every parameter in float32, by its name in the PyTorch module.

    8-bit matrices are (code - zero point) * scale; those of Linear layers are turned from the file's [in, out]
    to [out, in]. Parameters that are tied in the module come out once for each name. Raises ValueError for a
    file that is something else, or is damaged.
    """
    try:
        return _named(*_read(file.read_bytes()))
    except DAMAGED as error:
        raise ValueError(f"{file} is damaged, or no .ort file of such a model ({error})") from error


def _read(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """-> constants by name, and what goes into each node, by its path with dots."""
    if not InferenceSession.InferenceSessionBufferHasIdentifier(data, 0):
        raise ValueError("it does not begin as one")
    stored, inputs = {}, {}
    graphs = [InferenceSession.GetRootAs(data, 0).Model().Graph()]
    for graph in graphs:  # grows: the branches of an If are graphs too
        for i in range(graph.InitializersLength()):
            entry = graph.Initializers(i)
            if kind := KINDS.get(entry.DataType()):
                shape = [entry.Dims(k) for k in range(entry.DimsLength())]
                values = np.frombuffer(entry.RawDataAsNumpy(), kind)
                stored[entry.Name().decode()] = values.reshape(shape)
        for i in range(graph.NodesLength()):
            node = graph.Nodes(i)
            branches = (node.Attributes(k).G() for k in range(node.AttributesLength()))
            graphs += [branch for branch in branches if branch is not None]
            path = node.Name().decode().strip("/").replace("/", ".")
            inputs[path] = [node.Inputs(k).decode() for k in range(node.InputsLength())]
    return stored, inputs


def _named(stored: dict[str, np.ndarray], inputs: dict[str, list[str]]) -> dict[str, Tensor]:
    def plain(name: str) -> Tensor:
        return torch.from_numpy(stored[name].astype(np.float32))

    def dequantised(name: str, turned: bool = False) -> Tensor:
        codes = stored[f"{name}_quantized"]
        codes = np.ascontiguousarray(codes.T if turned else codes).astype(np.float32)
        scale, zero = plain(f"{name}_scale"), plain(f"{name}_zero_point")
        return torch.from_numpy(codes).sub_(zero).mul_(scale)

    weights = {}
    for path, names in inputs.items():
        if path.endswith(".MatMul_quant"):
            (codes,) = (n for n in names if n.startswith("onnx::") and n.endswith("_quantized"))
            weight = dequantised(codes.removesuffix("_quantized"), turned=True)
            weights[path.removesuffix("MatMul_quant") + "weight"] = weight
    for name in stored:
        # Constants that the optimiser joined or moved have a suffix; scales and zero points another one.
        bare = name.removesuffix("_add_tensor").removesuffix("_merged_0")
        if bare.endswith((".weight", ".bias")):
            weights[bare] = plain(name)
        elif bare.endswith(".weight_merged_0_quantized"):
            bare = bare.removesuffix("_merged_0_quantized")
            weights[bare] = dequantised(f"{bare}_merged_0")
    # A group norm became a product and a sum, of constants [channels, 1] without a name.
    for parameter, path in (("weight", "groupnorm.Mul"), ("bias", "groupnorm.Add")):
        if path in inputs:
            weights[f"groupnorm.{parameter}"] = plain(inputs[path][1]).flatten()
    return weights
