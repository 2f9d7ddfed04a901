"""Llama's modules, and the dual-FFN layer of Higgs: shared attention, one FFN for text and one for audio.

         x [B, S, D]
         |------------------------------.
text: RMSNorm      audio: RMSNorm       |     each position takes the norm of its modality
         '-------. .-------'            |
             attention                  |     shared: one causal attention, one KV cache
                 + <--------------------'
                 |----------------------.
text: RMSNorm, FFN   audio: RMSNorm, FFN|     each position takes the FFN of its modality
         '-------. .-------'            |
                 + <--------------------'
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from higgs.config import ModelConfig, RopeConfig
from higgs.model.kv_cache import KVCache
from higgs.model.matrices import project

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@lru_cache(maxsize=8)
def rope_frequencies(rope: RopeConfig, head_dim: int, device: torch.device) -> Tensor:
    """-> [head_dim / 2] float32: Llama-3's frequencies, the slow ones divided by `factor`, a blend in between."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    base = 1.0 / (rope.theta**exponent)
    wavelength = 2 * math.pi / base
    slow, fast = rope.original_context / rope.low_factor, rope.original_context / rope.high_factor
    blend = (rope.original_context / wavelength - rope.low_factor) / (rope.high_factor - rope.low_factor)
    mixed = (1 - blend) * base / rope.factor + blend * base
    scaled = torch.where(wavelength > slow, base / rope.factor, base)
    between = ~(wavelength < fast) & ~(wavelength > slow)
    return torch.where(between, mixed, scaled).to(device)


def rope_table(rope: RopeConfig, head_dim: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """positions [B, S] -> cos, sin [B, 1, S, head_dim]; angles in float32 whatever the dtype."""
    angles = positions[..., None].float() * rope_frequencies(rope, head_dim, positions.device)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, H, S, d]: the first half of the channels is paired with the second."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[B, H, S, d], [B, kv heads, S', d] twice, mask [B, 1, S, S'] bool or None (attend to all) -> [B, H, S, d]"""
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


class RMSNorm(nn.Module):
    """Normalised in float32, cast back, then scaled: the order matters in bfloat16."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate) * up)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.attend: Attend = attend

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """[B, S, D] -> [B, S, D]"""
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (heads.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for heads in projected)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        return self.o_proj(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


class ModalityMask:
    """Which positions are audio: a mask [B, S], or one bool where all positions have the same modality."""

    def __init__(self, audio: Tensor | bool):
        self.mask = audio if isinstance(audio, Tensor) else None
        self.all_audio = audio is True
        if self.mask is not None:
            flat = self.mask.flatten()
            self.audio_positions, self.text_positions = flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]

    def norm(self, x: Tensor, text: RMSNorm, audio: RMSNorm) -> Tensor:
        if self.mask is None:
            return audio(x) if self.all_audio else text(x)
        return torch.where(self.mask[..., None], audio(x), text(x))

    def feed_forward(self, x: Tensor, text: nn.Sequential, audio: nn.Sequential) -> Tensor:
        """Each position through the FFN of its modality only."""
        if self.mask is None:
            return audio(x) if self.all_audio else text(x)
        flat = x.flatten(0, 1)
        out = torch.empty_like(flat)
        for positions, ffn in ((self.text_positions, text), (self.audio_positions, audio)):
            out[positions] = ffn(flat[positions]).to(out.dtype)
        return out.view_as(x)


class DualFFNLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        width, hidden, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        self.attention = Attention(config, layer)
        self.text_norm, self.audio_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.text_ffn = nn.Sequential(RMSNorm(width, eps), FeedForward(width, hidden))
        self.audio_ffn = nn.Sequential(RMSNorm(width, eps), FeedForward(width, hidden))

    def forward(
        self, x: Tensor, modality: ModalityMask, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        x = x + self.attention(modality.norm(x, self.text_norm, self.audio_norm), rope, mask, cache)
        return x + modality.feed_forward(x, self.text_ffn, self.audio_ffn)
