"""The weights of a decode step, laid out for it: the audio path alone, in fewer and larger matrices.

The fused matrices replace the model's own, which become views of them, or share them (`MatrixLinear`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from higgs.model.higgs_audio import HiggsAudio
from higgs.model.llama import rope_table
from higgs.model.matrices import Matrix, MatrixLinear, Quantized, pack
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

    def expand(self, slots: int) -> "FusedWeights":
        """The same with batch-expanded matrices [slots, in, out] (stride 0), but for quantised ones."""

        def change(t: Matrix) -> Matrix:
            return t if isinstance(t, Quantized) or t.dim() == 1 else t.expand(slots, -1, -1)

        layers = tuple(FusedLayer(*map(change, layer)) for layer in self.layers)
        return self._replace(layers=layers, head=change(self.head))


def join(parent: nn.Module, *names: str, packed: bool) -> Matrix:
    """Layers [out_i, in] -> one matrix [in, sum of out_i], which takes the place of their own.

    In float32 on the CPU it is stored in that order: a product with one vector reads it up to a third faster. `packed`
    is for the CPU in bfloat16. Quantised layers stay [out, in].
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
            if joined.device.type == "cpu" and joined.dtype == torch.float32:
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
def fuse(model: HiggsAudio, positions: int, packed: bool = False) -> FusedWeights:
    """`positions` is the longest sequence that will be decoded; `packed` as in `join`."""
    layers = tuple(
        FusedLayer(
            norm_weight(layer.audio_norm.weight),
            join(layer.attention, "q_proj", "k_proj", "v_proj", packed=packed),
            join(layer.attention, "o_proj", packed=packed),
            norm_weight(layer.audio_ffn[0].weight),
            join(layer.audio_ffn[1], "gate_proj", "up_proj", packed=packed),
            join(layer.audio_ffn[1], "down_proj", packed=packed),
        )
        for layer in model.layers
    )
    config, device = model.config, model.device
    heads = torch.arange(config.num_heads + 2 * config.num_kv_heads, device=device)
    epsilon = config.rms_norm_eps
    if model.dtype == torch.float32:
        epsilon = math.sqrt(config.hidden_size * epsilon)
    return FusedWeights(
        layers,
        model.audio_embedding.weight.data.unflatten(0, (config.num_codebooks, -1)),
        norm_weight(model.norm.weight),
        join(model, "audio_head", packed=packed),
        signed_rope_table(model, positions),
        no_rope=heads >= config.num_heads + config.num_kv_heads,
        norm_epsilon=torch.tensor(epsilon, device=device),
        codebooks=torch.arange(config.num_codebooks, device=device),
        codebook_ids=torch.arange(1, config.num_codebooks + 1, device=device),
        token_hashes=token_hashes(config.code_vocab_size, device),
    )
