"""Where chance comes from: a counter, so that a draw can be repeated alone, or a generator, as in the original.

A draw is a race: the symbol with the largest log(u) / p wins, u uniform in (0, 1) and one for each symbol. That is the
same distribution as drawing from p; and where p changes a little, as by rounding, the winner hardly ever does.
"""

from typing import Protocol

import torch
from torch import Tensor

from higgs.config import SamplingConfig

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
TEXT_STREAM, REDRAW = 1 << 20, 1 << 21


class Noise(Protocol):
    """Draws one symbol from each row of logits; `step` counts the positions of a request from 1."""

    def codes(self, logits: Tensor, step: int) -> Tensor:
        """[K, N + 2] -> [K]; some logits may be -inf."""

    def codes_again(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        """[K, N + 2] -> [K], of which the caller reads only the marked rows [K]."""

    def text(self, logits: Tensor, step: int) -> Tensor:
        """[V] -> []"""


def _signed(value: int) -> int:
    """The int64 with the bits of a number modulo 2^64."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """int64 -> int64: SplitMix64's step and finaliser (Steele, Lea and Flood 2014), equal on every device."""
    first, second, third = (_signed(m) for m in _MULTIPLIERS)
    x = x + first
    x = (x ^ _shift(x, 30)) * second
    x = (x ^ _shift(x, 27)) * third
    return x ^ _shift(x, 31)


def draw_keys(seed: int, steps: Tensor, streams: Tensor) -> Tensor:
    """steps [C], streams [R] int64 -> [C, R, 2]: two numbers for each draw, a function of the three arguments alone."""
    of_seed = mix(torch.full_like(steps, _signed(seed)))
    first = mix(mix(of_seed + steps)[:, None] + streams)
    return torch.stack([first, mix(first)], dim=-1)


def column_keys(seed: int, steps: Tensor, num_codebooks: int) -> Tensor:
    """steps [C] -> [C, 2 K, 2]: for the codes of each column, then for drawing them again."""
    first = torch.arange(num_codebooks, device=steps.device)
    return draw_keys(seed, steps, torch.cat([first, first + REDRAW]))


def symbol_numbers(count: int, device: torch.device) -> Tensor:
    """-> [count] int64: a fixed random number for each symbol."""
    return mix(torch.arange(count, device=device))


def log_uniforms(keys: Tensor, symbols: Tensor) -> Tensor:
    """keys [..., 2], symbols [N] -> [..., N]: logarithms of numbers in (0, 1), 2^23 different ones.

    The upper bits of key * symbol + key: one multiplication for each symbol, and any two are independent of each other
    (Dietzfelbinger 1996).
    """
    factor, offset = keys.unsqueeze(-2).unbind(-1)
    # The upper half of each int64, which comes second in memory; then -2^22 ... 2^22 - 1.
    bits = torch.addcmul(offset, factor, symbols).view(torch.int32)[..., 1::2] >> 9
    return (bits * 2.0**-23 + (0.5 + 2.0**-24)).log()


def race(probabilities: Tensor, log_uniform: Tensor) -> Tensor:
    """[..., N] twice -> [...]: the winner; never a symbol of probability 0."""
    return (log_uniform / probabilities).max(-1).indices  # half the time of argmax on a CPU


class CounterNoise:
    """Draws that depend on (seed, step, codebook) and the logits: not on batch mates, nor on earlier draws."""

    def __init__(self, seed: int, device: torch.device):
        self.seed, self.device = seed, device

    def _log_uniforms(self, step: int, streams: Tensor, count: int) -> Tensor:
        """-> [streams, count]"""
        keys = draw_keys(self.seed, torch.tensor([step], device=self.device), streams)
        return log_uniforms(keys[0], symbol_numbers(count, self.device))

    def codes(self, logits: Tensor, step: int) -> Tensor:
        streams = torch.arange(len(logits), device=self.device)
        return race(logits.softmax(-1), self._log_uniforms(step, streams, logits.shape[-1]))

    def codes_again(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        streams = torch.arange(len(logits), device=self.device) + REDRAW
        return race(logits.softmax(-1), self._log_uniforms(step, streams, logits.shape[-1]))

    def text(self, logits: Tensor, step: int) -> Tensor:
        stream = torch.tensor([TEXT_STREAM], device=self.device)
        return race(logits.softmax(-1), self._log_uniforms(step, stream, len(logits))[0])


class GeneratorNoise:
    """Draws with one `torch.Generator`, in the original's order and shapes: [1, V], [K, N + 2], then [r, N + 2].

    The race is that of `torch.multinomial`: the largest probability / exponential noise wins.
    """

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def _draw(self, logits: Tensor) -> Tensor:
        noise = torch.empty_like(logits).exponential_(generator=self.generator)
        return (logits.softmax(-1) / noise).argmax(-1)

    def codes(self, logits: Tensor, step: int) -> Tensor:
        return self._draw(logits)

    def codes_again(self, logits: Tensor, step: int, rows: Tensor) -> Tensor:
        codes = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        if rows.any():
            codes[rows] = self._draw(logits[rows])
        return codes

    def text(self, logits: Tensor, step: int) -> Tensor:
        return self._draw(logits[None])[0]


def make_noise(config: SamplingConfig, device: torch.device) -> Noise:
    kind = GeneratorNoise if config.parity else CounterNoise
    return kind(config.seed, device)
