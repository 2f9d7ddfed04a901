"""A decode step of the model's own modules, with its weights as they are, in place of the fused one.

What `HiggsAudio.decode_step` computes, with a position for each slot and fixed shapes, so that it can be compiled and
captured as the fused step is. If both are as fast on a GPU, the fused one is needed on the CPU only.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from higgs.model.higgs_audio import HiggsAudio
from higgs.model.llama import ModalityMask
from higgs.serve.batching.slots import SlotDecoder, compiled_copy
from higgs.serve.batching.state import DecodeState
from higgs.serve.batching.step import advance, delay, sample
from higgs.serve.counter_rng import log_uniforms


class PlainWeights(NamedTuple):
    model: HiggsAudio
    token_hashes: Tensor
    codebook_ids: Tensor


class PlacedCache:
    """As KVCache for one step: layers [2, B, kv heads, capacity, d], written at `positions` [B], read to `kv_len`."""

    def __init__(self, layers: Sequence[Tensor], slots: Tensor, positions: Tensor, kv_len: int):
        self.layers, self.slots, self.positions, self.kv_len = layers, slots, positions, kv_len

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, kv heads, 1, d] twice -> all keys and values of this layer."""
        k, v = self.layers[layer]
        k[self.slots, :, self.positions] = keys[:, :, 0]
        v[self.slots, :, self.positions] = values[:, :, 0]
        return k[:, :, : self.kv_len], v[:, :, : self.kv_len]

    def advance(self, count: int) -> None:
        """The state knows the positions."""


def plain_step(
    weights: PlainWeights, cache: Sequence[Tensor], state: DecodeState, kv_len: int, full_vocab: bool
) -> None:
    """As `higgs.serve.batching.step.decode_step` with one `kv_len` for all slots."""
    model, positions = weights.model, state.position[:, None]
    mask = (torch.arange(kv_len, device=positions.device) <= positions)[:, None, None]
    placed = PlacedCache(cache, state.slots, state.position, kv_len)
    x = model.embed_codes(state.codes)[:, None]
    hidden, _ = model.run_layers(x, ModalityMask(True), positions, mask, placed)
    logits = model.audio_logits(hidden[:, 0])
    logits[..., -2:].add_(state.logit_bias)
    log_uniform = log_uniforms(state.keys[state.slots, state.step], weights.token_hashes)
    codes = sample(logits, state, log_uniform, full_vocab)
    advance(state, *delay(codes, state, weights.codebook_ids, logits.shape[-1] - 2))


class PlainDecoder(SlotDecoder):
    """A SlotDecoder whose steps are plain ones."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.exact = False

    def _program(self, key: tuple[int, int, bool]) -> Callable[..., None]:
        if key not in self._programs:
            self._programs[key] = compiled_copy(plain_step, self.model.device) if self.compiled else plain_step
        return self._programs[key]

    def _view(self, slots: int) -> tuple[PlainWeights, list[Tensor], DecodeState]:
        if slots not in self._views:
            _, cache, state = super()._view(slots)
            weights = PlainWeights(self.model, self.weights.token_hashes, self.weights.codebook_ids)
            self._views[slots] = weights, cache, state
        return self._views[slots]
