"""Choosing tokens: temperature, top-k, top-p, and repetition-aware sampling. Pure functions of logits and noise.

A draw is an argmax of probability / noise with exponential noise, one number for each symbol: the same distribution as
drawing from the probabilities, and what `torch.multinomial` does inside.
"""

from typing import Protocol

import torch
from torch import Tensor

from higgs.config import SamplingConfig


class Noise(Protocol):
    """Exponential noise for one draw; `step` counts the positions of a request from 0."""

    def codes(self, step: int, shape: torch.Size, rows: Tensor | None) -> Tensor: ...

    def text(self, step: int, shape: torch.Size) -> Tensor: ...


_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
TEXT_STREAM, REDRAW = 1 << 20, 1 << 21


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_uniform(seed: Tensor, step: Tensor, stream: Tensor, width: int) -> Tensor:
    """seed, step, stream [...] int64 -> [..., width] float32 in (0, 1): SplitMix64's finaliser of a counter.

    A function of its arguments alone, on any device (Steele, Lea and Flood 2014).
    """
    first, second, third = (_signed(m) for m in _MULTIPLIERS)

    def mix(x: Tensor) -> Tensor:
        x = (x ^ _shift(x, 30)) * second
        x = (x ^ _shift(x, 27)) * third
        return x ^ _shift(x, 31)

    key = mix(mix(mix(seed * first + 1) + step * first) + stream * second)
    counter = torch.arange(1, width + 1, device=key.device, dtype=torch.int64)
    bits = mix(key[..., None] + counter * first)
    # 23 bits: with 24 the largest would round to 1, whose logarithm is 0, and no noise may be 0.
    return (_shift(bits, 41).float() + 0.5) * 2.0**-23


class CounterNoise:
    """Noise that depends on (seed, step, codebook) and nothing else: not on batch mates, nor on earlier draws."""

    def __init__(self, seed: int, device: torch.device):
        self.seed = torch.tensor(_signed(seed % (1 << 64)), device=device)

    def _exponential(self, step: int, streams: Tensor, width: int) -> Tensor:
        position = torch.full_like(streams, step)
        uniform = hash_uniform(self.seed.expand_as(streams), position, streams, width)
        return -uniform.log()

    def codes(self, step: int, shape: torch.Size, rows: Tensor | None) -> Tensor:
        """-> [K, N + 2]; a redraw (`rows` given) reads another stream."""
        streams = torch.arange(shape[0], device=self.seed.device)
        return self._exponential(step, streams if rows is None else streams + REDRAW, shape[-1])

    def text(self, step: int, shape: torch.Size) -> Tensor:
        """-> [V]"""
        stream = torch.tensor([TEXT_STREAM], device=self.seed.device)
        return self._exponential(step, stream, shape[-1])[0]


class GeneratorNoise:
    """Noise from one `torch.Generator`, in the original's order and shapes: [1, V], [K, N + 2], then [r, N + 2]."""

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.device = device

    def _exponential(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.device).exponential_(generator=self.generator)

    def codes(self, step: int, shape: torch.Size, rows: Tensor | None) -> Tensor:
        if rows is None:
            return self._exponential(*shape)
        noise = torch.ones(shape, device=self.device)
        count = int(rows.sum())
        if count:
            noise[rows] = self._exponential(count, shape[-1])
        return noise

    def text(self, step: int, shape: torch.Size) -> Tensor:
        return self._exponential(1, shape[-1])[0]


def make_noise(config: SamplingConfig, device: torch.device) -> Noise:
    kind = GeneratorNoise if config.parity else CounterNoise
    return kind(config.seed, device)


def process_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """[..., N] -> [..., N]: divided by the temperature; what top-k and then top-p leave out is -inf.

    Ties with the k-th largest stay. Top-p drops the smallest whose probabilities sum to at most 1 - p.
    """
    if config.temperature not in (0, 1):
        logits = logits / config.temperature
    if config.top_k is not None:
        least = logits.topk(min(config.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if config.top_p < 1:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - config.top_p
        drop[..., -1] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """[..., N] twice -> [...]: one draw from softmax(logits) for each row."""
    return (logits.softmax(-1) / noise).argmax(-1)


def sample_codes(
    logits: Tensor, history: Tensor, step: int, config: SamplingConfig, noise: Noise
) -> Tensor:
    """logits [K, N + 2] float32, history [K, columns so far] -> one code for each codebook [K].

    Repetition-aware sampling (Chen et al. 2024, VALL-E 2): a code that already stands `ras_max_repeats` times in
    the last `ras_window` columns is drawn again from the untempered, unfiltered distribution; in greedy mode too, as in
    the original.
    """
    if config.temperature == 0:
        codes = logits.argmax(-1)
    else:
        codes = draw(process_logits(logits, config), noise.codes(step, logits.shape, None))
    if config.ras_window is None:
        return codes
    repeats = (history[:, -config.ras_window :] == codes[:, None]).sum(1)
    rows = repeats >= config.ras_max_repeats
    again = draw(logits, noise.codes(step, logits.shape, rows))
    return torch.where(rows, again, codes)


def sample_text(logits: Tensor, step: int, config: SamplingConfig, noise: Noise) -> Tensor:
    """[V] float32 -> [] int64"""
    if config.temperature == 0:
        return logits.argmax(-1)
    return draw(process_logits(logits, config), noise.text(step, logits.shape))
