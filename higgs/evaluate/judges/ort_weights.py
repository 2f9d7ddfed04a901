"""The weights in onnxruntime's .ort files, as those of the PyTorch module.

An export to ONNX keeps the names of modules, but not those of all weights: the matrix of a Linear is found by the node
that multiplies with it. onnxruntime includes the bindings of the format.
"""

import struct
from pathlib import Path

import numpy as np
import onnxruntime.tools.ort_format_model  # noqa: F401  puts ort_flatbuffers_py on sys.path
import torch
from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
from torch import Tensor

# onnx.TensorProto.DataType of weights: float32, and the two kinds of 8 bits.
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8}
# What reading a damaged file raises: offsets of the format are followed without a check.
DAMAGED = (struct.error, AttributeError, IndexError, KeyError, TypeError, ValueError)


def ort_weights(file: Path) -> dict[str, Tensor]:
    """A dynamically quantised export -> every parameter in float32, by its name in the PyTorch module.

    8-bit matrices are (code - zero point) * scale; those of Linear layers are transposed from [in, out] to [out, in].
    Tied parameters are returned under each of their names. Raises ValueError for another or a damaged file.
    """
    try:
        return _parameters(*_read(file.read_bytes()))
    except DAMAGED as error:
        raise ValueError(f"{file} is damaged, or no .ort file of such a model ({error})") from error


def _read(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """-> constants by name, and the inputs of each node by its path with dots."""
    if not InferenceSession.InferenceSessionBufferHasIdentifier(data, 0):
        raise ValueError("wrong file identifier")
    constants, inputs = {}, {}
    graphs = [InferenceSession.GetRootAs(data, 0).Model().Graph()]
    for graph in graphs:  # grows: the branches of an If are graphs too
        for i in range(graph.InitializersLength()):
            entry = graph.Initializers(i)
            if dtype := DTYPES.get(entry.DataType()):
                shape = [entry.Dims(k) for k in range(entry.DimsLength())]
                constants[entry.Name().decode()] = np.frombuffer(entry.RawDataAsNumpy(), dtype).reshape(shape)
        for i in range(graph.NodesLength()):
            node = graph.Nodes(i)
            branches = (node.Attributes(k).G() for k in range(node.AttributesLength()))
            graphs += [branch for branch in branches if branch is not None]
            path = node.Name().decode().strip("/").replace("/", ".")
            inputs[path] = [node.Inputs(k).decode() for k in range(node.InputsLength())]
    return constants, inputs


def _parameters(constants: dict[str, np.ndarray], inputs: dict[str, list[str]]) -> dict[str, Tensor]:
    def as_float(name: str) -> Tensor:
        return torch.from_numpy(constants[name].astype(np.float32))

    def dequantised(name: str, transpose: bool = False) -> Tensor:
        codes = constants[f"{name}_quantized"]
        codes = np.ascontiguousarray(codes.T if transpose else codes).astype(np.float32)
        return torch.from_numpy(codes).sub_(as_float(f"{name}_zero_point")).mul_(as_float(f"{name}_scale"))

    weights = {}
    for path, names in inputs.items():
        if path.endswith(".MatMul_quant"):
            (codes,) = (n for n in names if n.startswith("onnx::") and n.endswith("_quantized"))
            weight = dequantised(codes.removesuffix("_quantized"), transpose=True)
            weights[path.removesuffix("MatMul_quant") + "weight"] = weight
    for name in constants:
        # Constants that the optimiser joined or moved have a suffix; scales and zero points another one.
        bare = name.removesuffix("_add_tensor").removesuffix("_merged_0")
        if bare.endswith((".weight", ".bias")):
            weights[bare] = as_float(name)
        elif bare.endswith(".weight_merged_0_quantized"):
            weights[bare.removesuffix("_merged_0_quantized")] = dequantised(bare.removesuffix("_quantized"))
    # A group norm became a product and a sum, of constants [channels, 1] without a name.
    for parameter, path in (("weight", "groupnorm.Mul"), ("bias", "groupnorm.Add")):
        if path in inputs:
            weights[f"groupnorm.{parameter}"] = as_float(inputs[path][1]).flatten()
    return weights
