"""Moonshine, an English speech recogniser whose weights are in a PyPI wheel.

Its model files hold 8-bit weights. In float32 arithmetic (`MoonshineTiny`) inaudible changes of the sound do not change
transcripts. In 8 bits, as in the wheel's own library (`MoonshineTiny8Bit`), the input of each layer is rounded to 256
steps of its range, and another processor or a sample's last bit moves a logit by as much as words differ.
"""

import math
import struct
from pathlib import Path

import numpy as np
import onnxruntime.tools.ort_format_model  # noqa: F401  puts ort_flatbuffers_py on sys.path
import torch
from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
from torch import Tensor

from higgs.evaluate.judges.base import SAMPLE_RATE, Recogniser
from higgs.evaluate.judges.wheels import ADVICE, MetricModelUnavailable, onnx_session, wheel_file

# onnx.TensorProto.DataType of weights: float32, and the two kinds of 8 bits.
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8}
# What reading a damaged file raises: offsets of the format are followed without a check.
DAMAGED = (struct.error, AttributeError, IndexError, KeyError, TypeError, ValueError)


class Moonshine(Recogniser):
    """Moonshine tiny-en of moonshine-voice 0.0.48, 27 million parameters (Jeffries et al. 2024): greedy."""

    WHEEL = ("moonshine-voice", "0.0.48")
    FOLDER = "moonshine_voice/assets/tiny-en"
    ENCODER, DECODER = f"{FOLDER}/encoder_model.ort", f"{FOLDER}/decoder_model_merged.ort"
    MARGIN_SECONDS = 0.5  # of silence before and after a clip: without it first words are misrecognised
    TOKENS_PER_SECOND = 6.5  # the authors' limit, which ends a loop
    START, END = 1, 2

    languages = frozenset({"en"})

    def __init__(self) -> None:
        """Raises MetricModelUnavailable if the wheel is missing."""
        self._vocabulary = read_vocabulary(wheel_file(self.WHEEL, f"{self.FOLDER}/tokenizer.bin"))

    def _transcribe(self, samples: Tensor, language: str) -> str:
        margin = round(self.MARGIN_SECONDS * SAMPLE_RATE)
        padded = torch.nn.functional.pad(samples, (margin, margin))[None]
        max_tokens = math.ceil(padded.shape[1] / SAMPLE_RATE * self.TOKENS_PER_SECOND)
        joined = b"".join(self._vocabulary[token] for token in self._tokens(padded, max_tokens))
        return joined.decode("utf-8", errors="replace").replace("\u2581", " ").strip()

    def _tokens(self, samples: Tensor, max_tokens: int) -> list[int]:
        """[1, L] at 16 kHz -> token ids."""
        raise NotImplementedError


class MoonshineTiny(Moonshine):
    """In float32, by the network of transformers."""

    name = "Moonshine tiny-en, 8-bit weights, float32 arithmetic (PyPI wheel moonshine-voice 0.0.48)"
    short = "Moonshine tiny-en, float32"

    def __init__(self) -> None:
        from transformers import MoonshineConfig, MoonshineForConditionalGeneration  # takes 1.4 s
        from transformers.initialization import no_init_weights

        super().__init__()
        files = [wheel_file(self.WHEEL, path) for path in (self.ENCODER, self.DECODER)]
        with no_init_weights():  # every parameter is loaded; torch's generator is not used
            network = MoonshineForConditionalGeneration(MoonshineConfig())  # the defaults are tiny's
        try:
            encoder, decoder = map(ort_weights, files)
            weights = {f"model.encoder.{name}": weight for name, weight in encoder.items()} | decoder
            network.load_state_dict(weights, assign=True)
        except (ValueError, RuntimeError) as error:
            raise MetricModelUnavailable(f"{error}; {ADVICE}") from error
        self._network = network.eval()

    def _tokens(self, samples: Tensor, max_tokens: int) -> list[int]:
        # Never a batch: the encoder's group norm spans time, so padding would change every frame.
        tokens = self._network.generate(samples, max_new_tokens=max_tokens, do_sample=False, pad_token_id=self.END)
        return [token for token in tokens[0, 1:].tolist() if token != self.END]


class MoonshineTiny8Bit(Moonshine):
    """In 8 bits, by onnxruntime: 2.4 times as fast, but one transcript in six changes with inaudible noise."""

    name = "Moonshine tiny-en, 8-bit (PyPI wheel moonshine-voice 0.0.48)"
    short = "Moonshine tiny-en, 8-bit"

    def __init__(self) -> None:
        super().__init__()
        self._encoder = onnx_session(self.WHEEL, self.ENCODER)
        self._decoder = onnx_session(self.WHEEL, self.DECODER)
        past = [entry for entry in self._decoder.get_inputs() if entry.name.startswith("past_key_values.")]
        self._cache_shapes = {entry.name: (1, entry.shape[1], 0, entry.shape[3]) for entry in past}
        self._outputs = [entry.name for entry in self._decoder.get_outputs()]

    def _tokens(self, samples: Tensor, max_tokens: int) -> list[int]:
        # The decoder's mask counts samples too: the graph reduces it to encoder frames.
        mask = np.ones(samples.shape, dtype=np.int64)
        (states,) = self._encoder.run(None, {"input_values": samples.numpy(), "attention_mask": mask})
        cache = {name: np.zeros(shape, dtype=np.float32) for name, shape in self._cache_shapes.items()}
        tokens = [self.START]
        for step in range(max_tokens):
            inputs = {"input_ids": np.array([tokens[-1:]], dtype=np.int64), "use_cache_branch": np.array([step > 0])}
            inputs |= {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            results = self._decoder.run(None, inputs | cache)
            outputs = dict(zip(self._outputs, results, strict=True))
            for name in cache:
                # The encoder's keys and values come from the first step; later steps return none.
                if step == 0 or ".decoder." in name:
                    cache[name] = outputs[name.replace("past_key_values", "present")]
            token = int(outputs["logits"][0, -1].argmax())
            if token == self.END:
                break
            tokens.append(token)
        return tokens[1:]


def read_vocabulary(path: Path) -> list[bytes]:
    """Moonshine's tokenizer.bin -> the bytes of each token id; control tokens are empty.

    An entry is its length (from 128 two bytes, low seven bits first) and so many bytes. ValueError for a cut file.
    """
    data = path.read_bytes() + b"\0"  # a length of two bytes can be read at the end of a file that is cut off
    entries, position = [], 0
    while position < len(data) - 1:
        length, size = data[position], 1
        if length >= 128:
            length, size = length + 128 * (data[position + 1] - 1), 2
        entry = data[position + size : position + size + length]
        position += size + length
        if position > len(data) - 1:
            raise ValueError(f"{path}: ends within entry {len(entries)} of {length} bytes")
        control = entry in (b"<unk>", b"<s>", b"</s>") or entry.startswith(b"<<ST_")
        entries.append(b"" if control else entry)
    return entries


def ort_weights(file: Path) -> dict[str, Tensor]:
    """A dynamically quantised .ort export -> every parameter in float32, by its name in the PyTorch module.

    The export keeps the names of modules, not those of all weights: the matrix of a Linear is found by the node that
    multiplies with it, and transposed to [out, in]. 8-bit matrices are (code - zero point) * scale. Tied parameters
    are returned under each name. ValueError for another or a damaged file.
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
            name = path.removesuffix("MatMul_quant") + "weight"
            weights[name] = dequantised(codes.removesuffix("_quantized"), transpose=True)
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
