"""The weights of a decode step, laid out for it: the audio path alone, in fewer and larger matrices.

The fused matrices replace the model's own, whose weights become views of them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from higgs.model.higgs_audio import HiggsAudio
from higgs.model.llama import rope_table
from higgs.serve.counter_rng import token_hashes


class Int8(NamedTuple):
    """A matrix [in, out] in int8, symmetric, with one scale for each output."""

    values: Tensor  # [out, in] int8
    scales: Tensor  # [out]


Matrix = Tensor | Int8


class FusedLayer(NamedTuple):
    """One layer for audio positions. Matrices are [in, out]."""

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
    norm_floor: Tensor  # [] float32: sqrt(D eps), the epsilon of `rms_norm`
    codebooks: Tensor  # [K] int64: 0 ... K - 1
    codebook_ids: Tensor  # [K] int64: 1 ... K
    token_hashes: Tensor  # [N + 2] int64, of the counter-based RNG

    def map_matrices(self, change: Callable[[Tensor], Matrix], head: Callable[[Tensor], Tensor]) -> "FusedWeights":
        """The same with the layers' matrices and the head changed, each by its function."""
        layers = tuple(FusedLayer(*(change(t) if t.dim() == 2 else t for t in layer)) for layer in self.layers)
        return self._replace(layers=layers, head=head(self.head))


def pack(matrix: Tensor) -> Tensor:
    """A copy in oneDNN's own layout: in bfloat16 on the CPU, small batches take half the time."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix.t())


def quantize(matrix: Tensor) -> Int8:
    """[in, out] -> int8; the largest weight of each output becomes 127 or -127."""
    weight = matrix.t().float()
    scales = (weight.abs().amax(1).clamp(min=1e-12) / 127).to(matrix.dtype)
    steps = (weight / scales.float()[:, None]).round().clamp(-127, 127)
    return Int8(steps.to(torch.int8).contiguous(), scales)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    here = device.type == "cpu" and dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
    return here and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def join(*layers: nn.Linear) -> Tensor:
    """[out_i, in] each -> [in, sum of out_i], over one memory that the layers share from now on.

    In float32 on the CPU it is stored in that order: a product with one vector reads it up to a third faster.
    """
    joined = torch.cat([layer.weight.data for layer in layers])
    if joined.device.type == "cpu" and joined.dtype == torch.float32:
        joined = joined.t().contiguous().t()
    parts = joined.split([layer.out_features for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        layer.weight = nn.Parameter(part, requires_grad=False)
    return joined.t()


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
    """The scale of an RMS norm -> float32, times the root of the width: see `rms_norm`."""
    return weight.data.float() * math.sqrt(weight.numel())


@torch.no_grad()
def fuse(model: HiggsAudio, positions: int) -> FusedWeights:
    """`positions` is the longest sequence that will be decoded."""
    layers = tuple(
        FusedLayer(
            norm_weight(layer.audio_norm.weight),
            join(layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj),
            join(layer.attention.o_proj),
            norm_weight(layer.audio_ffn[0].weight),
            join(layer.audio_ffn[1].gate_proj, layer.audio_ffn[1].up_proj),
            join(layer.audio_ffn[1].down_proj),
        )
        for layer in model.layers
    )
    config, device = model.config, model.device
    heads = torch.arange(config.num_heads + 2 * config.num_kv_heads, device=device)
    floor = math.sqrt(config.hidden_size * config.rms_norm_eps)
    return FusedWeights(
        layers,
        model.audio_embedding.weight.data.unflatten(0, (config.num_codebooks, -1)),
        norm_weight(model.norm.weight),
        join(model.audio_head),
        signed_rope_table(model, positions),
        no_rope=heads >= config.num_heads + config.num_kv_heads,
        norm_floor=torch.tensor(floor, device=device),
        codebooks=torch.arange(config.num_codebooks, device=device),
        codebook_ids=torch.arange(1, config.num_codebooks + 1, device=device),
        token_hashes=token_hashes(config.code_vocab_size, device),
    )
