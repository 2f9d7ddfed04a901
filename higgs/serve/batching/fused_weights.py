"""The weights of a decode step, laid out for it: the audio path alone, in fewer and larger matrices.

The fused matrices replace the model's own, which become views of them, or share them (`MatrixLinear`).
"""

import ctypes
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from higgs.arithmetic import pinned
from higgs.config import ModelConfig
from higgs.model import matrices
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.llama import rope_table
from higgs.model.matrices import Matrix, MatrixLinear, Quantized, can_pack, pack
from higgs.serve.counter_rng import token_hashes


class FusedLayer(NamedTuple):
    """One layer for audio positions. Matrices are [in, out], or of another form."""

    attention_norm: Tensor  # [D]
    qkv: Matrix  # [D, (H + 2 kv heads) d]
    out: Matrix  # [H d, D]
    ffn_norm: Tensor  # [D]
    gate_up: Matrix  # [D, 2 F]
    down: Matrix  # [F, D]


class FusedWeights(NamedTuple):
    layers: tuple[FusedLayer, ...]
    embedding: Tensor  # [K, N + 2, D]
    norm: Tensor  # [D]
    head: Tensor  # [D, K (N + 2)]
    rope: Tensor  # [positions + 1, 2, d]: cos and signed sin; the last entry is the identity
    no_rope: Tensor  # [H + 2 kv heads] bool: the heads of values, which are not rotated
    norm_epsilon: Tensor  # [] float32, of `rms_norm`
    codebooks: Tensor  # [K] int64: 0 ... K - 1
    codebook_ids: Tensor  # [K] int64: 1 ... K
    token_hashes: Tensor  # [N + 2] int64, of the counter-based RNG
    native: "NativeLayers | None" = None  # what runs the layers instead of torch's operators

    def expand(self, slots: int) -> "FusedWeights":
        """The same with batch-expanded matrices [slots, in, out] (stride 0), but for quantised ones."""

        def change(t: Matrix) -> Matrix:
            return t if isinstance(t, Quantized) or t.dim() == 1 else t.expand(slots, -1, -1)

        layers = tuple(FusedLayer(*map(change, layer)) for layer in self.layers)
        return self._replace(layers=layers, head=change(self.head))


class NativeLayers:
    """The layers of a step, and in float32 its head, as one call of `decode` in matvec.c: it never waits for Python."""

    def __init__(self, weights: FusedWeights, config: ModelConfig):
        """`weights` must outlive this, which holds addresses of its tensors alone."""
        qkv, half = weights.layers[0].qkv, weights.norm.dtype == torch.bfloat16
        tensors = [weights.rope, weights.norm, None if half else weights.head, weights.norm_epsilon]
        for attention_norm, first, second, ffn_norm, *others in weights.layers:
            for norm, pair in ((attention_norm, (first, second)), (ffn_norm, others)):
                tensors.append(norm)
                for matrix in pair:
                    tensors += matrix if isinstance(matrix, Quantized) else (matrix, None)
        c = config
        sizes = (c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size)
        bits = qkv.bits if isinstance(qkv, Quantized) else 32
        table = [*sizes, weights.head.shape[-1], bits, half, *(0 if t is None else t.data_ptr() for t in tensors)]
        self.table, self.positions = (ctypes.c_int64 * len(table))(*table), len(weights.rope) - 1
        self.outputs = weights.norm.numel() if half else weights.head.shape[-1]

    def __call__(self, x: Tensor, cache: Sequence[Tensor], position: Tensor) -> Tensor:
        """x [B, 1, D], cache of [2, B, kv heads, capacity, d], position [B] -> logits, or in 16 bits the head's input.

        IndexError, before anything is written, for a position that the cache or the rotation does not have.
        """
        slots, first = len(x), cache[0]
        x, out = x.contiguous(), x.new_empty(slots, 1, self.outputs)
        kv = (ctypes.c_void_p * len(cache))(*(layer.data_ptr() for layer in cache))
        strides = (ctypes.c_int64 * 3)(*first.stride()[:3])
        limit, tensors = min(self.positions, first.shape[3]), (kv, position.data_ptr(), out.data_ptr(), slots)
        decode = matrices.kernel().decode
        failed = decode(self.table, x.data_ptr(), *tensors, limit, strides, torch.get_num_threads())
        if failed == 2:
            raise IndexError(f"positions {position.tolist()}: expected 0 to {limit - 1}, for which there is room")
        if failed:
            raise MemoryError(f"no memory for a step of {slots} slots")
        return out


def is_native(model: HiggsAudio) -> bool:
    """Whether `NativeLayers` can run this model's steps, and may: pinned float32 has the same bits on every processor.

    bfloat16 that is not rounded further has the bits of transformers, by oneDNN's products.
    """
    first = model.layers[0].attention.o_proj
    quantized = isinstance(first, MatrixLinear) and isinstance(first.matrix, Quantized)
    may = model.dtype == torch.float32 and not pinned() or quantized and model.dtype == torch.bfloat16
    return model.device.type == "cpu" and may and matrices.kernel() is not None


def join(parent: nn.Module, *names: str, packed: bool, transposed: bool) -> Matrix:
    """Layers [out_i, in] -> one matrix [in, sum of out_i], which takes the place of their own.

    `transposed`: stored in that order, of which PyTorch's product with one vector in float32 reads up to a third more
    on the CPU. `packed` is for the CPU in bfloat16. Quantised layers stay [out, in].
    """
    layers = [getattr(parent, name) for name in names]
    if isinstance(first := layers[0], MatrixLinear):
        if first is not layers[-1]:
            parts = zip(*(layer.matrix for layer in layers), strict=True)
            first = MatrixLinear(Quantized(*map(torch.cat, parts)), tuple(len(layer.matrix.values) for layer in layers))
        elif isinstance(first.matrix, Tensor) and not packed:
            first.matrix = first.matrix.to_dense() if first.matrix.is_mkldnn else first.matrix
    else:
        joined = torch.cat([layer.weight.data for layer in layers])
        if not packed:
            if transposed:
                joined = joined.t().contiguous().t()
            parts = joined.split([layer.out_features for layer in layers])
            for layer, part in zip(layers, parts, strict=True):
                layer.weight = nn.Parameter(part, requires_grad=False)
            return joined.t()
        first = MatrixLinear(pack(joined), tuple(layer.out_features for layer in layers))
    for name in names:
        setattr(parent, name, first)
    matrix = first.matrix
    return matrix if isinstance(matrix, Quantized) or matrix.is_mkldnn else matrix.t()


def signed_rope_table(model: HiggsAudio, positions: int) -> Tensor:
    """-> [positions + 1, 2, d] in the model's dtype; see `FusedWeights.rope`."""
    config = model.config
    every = torch.arange(positions, device=model.device)[None]
    cos, sin = (t[0, 0] for t in rope_table(config.rope, config.head_dim, every, model.dtype))
    sign = torch.ones_like(sin[0])
    sign[: config.head_dim // 2] = -1
    identity = torch.stack([torch.ones_like(sign), torch.zeros_like(sign)])
    return torch.cat([torch.stack([cos, sin * sign], dim=1), identity[None]])


def norm_weight(weight: Tensor) -> Tensor:
    """The scale of an RMS norm; in float32 times the root of the width: see `rms_norm`."""
    return weight.data * math.sqrt(weight.numel()) if weight.dtype == torch.float32 else weight.data


@torch.no_grad()
def fuse(model: HiggsAudio, positions: int, compiled: bool = False) -> FusedWeights:
    """`positions` is the longest sequence that will be decoded. How the step multiplies is decided here, once.

    `compiled`: for torch.compile, which sees through none but torch's own products.
    """
    config, device = model.config, model.device
    native = not compiled and is_native(model)
    transposed = device.type == "cpu" and model.dtype == torch.float32 and not native
    joined = partial(join, packed=not compiled and can_pack(device, model.dtype), transposed=transposed)
    layers = tuple(
        FusedLayer(
            norm_weight(layer.audio_norm.weight),
            joined(layer.attention, "q_proj", "k_proj", "v_proj"),
            joined(layer.attention, "o_proj"),
            norm_weight(layer.audio_ffn[0].weight),
            joined(layer.audio_ffn[1], "gate_proj", "up_proj"),
            joined(layer.audio_ffn[1], "down_proj"),
        )
        for layer in model.layers
    )
    heads = torch.arange(config.num_heads + 2 * config.num_kv_heads, device=device)
    epsilon = config.rms_norm_eps
    if model.dtype == torch.float32:
        epsilon = math.sqrt(config.hidden_size * epsilon)
    weights = FusedWeights(
        layers,
        model.audio_embedding.weight.data.unflatten(0, (config.num_codebooks, -1)),
        norm_weight(model.norm.weight),
        joined(model, "audio_head"),
        signed_rope_table(model, positions),
        no_rope=heads >= config.num_heads + config.num_kv_heads,
        norm_epsilon=torch.tensor(epsilon, device=device),
        codebooks=torch.arange(config.num_codebooks, device=device),
        codebook_ids=torch.arange(1, config.num_codebooks + 1, device=device),
        token_hashes=token_hashes(config.code_vocab_size, device),
    )
    return weights._replace(native=NativeLayers(weights, config)) if native else weights
