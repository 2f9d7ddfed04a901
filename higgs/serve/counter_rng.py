"""Random numbers: a counter-based generator, so that any draw can be repeated alone, or a `torch.Generator`.

A draw is an exponential race (Gumbel-max sampling): the token with the largest log(u) / p is drawn, with u uniform in
(0, 1), one for each token. The distribution is p; and where p changes a little, as by rounding, the same token is
nearly always drawn.
"""

import torch
from torch import Tensor

from higgs.config import SamplingConfig

TEXT_STREAM, REDRAW = 1 << 20, 1 << 21


def _signed(value: int) -> int:
    """The int64 with the bits of a number modulo 2^64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


_MULTIPLIERS = [_signed(m) for m in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """int64 -> int64: SplitMix64's step and finaliser (Steele, Lea and Flood 2014), equal on every device."""
    x = x + _MULTIPLIERS[0]
    x = (x ^ _shift(x, 30)) * _MULTIPLIERS[1]
    x = (x ^ _shift(x, 27)) * _MULTIPLIERS[2]
    return x ^ _shift(x, 31)


def draw_keys(seed: int, steps: Tensor, streams: Tensor) -> Tensor:
    """steps [C], streams [R] int64 -> [C, R, 2]: two numbers for each draw, a function of the three arguments alone."""
    seeds = mix(torch.full_like(steps, _signed(seed)))
    first = mix(mix(seeds + steps)[:, None] + streams)
    return torch.stack([first, mix(first)], dim=-1)


def step_keys(seed: int, steps: Tensor, num_codebooks: int) -> Tensor:
    """steps [C] -> [C, 2 K, 2]: for the codes of each step, then for drawing them again."""
    codebooks = torch.arange(num_codebooks, device=steps.device)
    return draw_keys(seed, steps, torch.cat([codebooks, codebooks + REDRAW]))


def token_hashes(count: int, device: torch.device) -> Tensor:
    """-> [count] int64: a fixed random number for each token id."""
    return mix(torch.arange(count, device=device))


def log_uniforms(keys: Tensor, hashes: Tensor) -> Tensor:
    """keys [..., 2], hashes [N] -> [..., N]: logarithms of numbers in (0, 1), 2^23 different ones.

    The upper bits of key * hash + key: one multiplication for each token, and any two are independent of each other
    (Dietzfelbinger 1996).
    """
    factor, offset = keys.unsqueeze(-2).unbind(-1)
    # The upper half of each int64, which comes second in memory; then -2^22 ... 2^22 - 1.
    bits = torch.addcmul(offset, factor, hashes).view(torch.int32)[..., 1::2] >> 9
    return (bits * 2.0**-23 + (0.5 + 2.0**-24)).log()


def exponential_race(probabilities: Tensor, log_uniform: Tensor) -> Tensor:
    """[..., N] twice -> [...]: the token drawn; never one of probability 0."""
    return (log_uniform / probabilities).max(-1).indices  # half the time of argmax on a CPU


class CounterRng:
    """Draws that depend on (seed, step, codebook) and the logits: not on batch mates, nor on earlier draws.

    `step` counts the positions of a request from 1. Logits may be -inf.
    """

    def __init__(self, seed: int, device: torch.device):
        self.seed, self.device = seed, device

    def _draw(self, logits: Tensor, step: int, streams: Tensor) -> Tensor:
        keys = draw_keys(self.seed, torch.tensor([step], device=self.device), streams)
        uniform = log_uniforms(keys[0], token_hashes(logits.shape[-1], self.device))
        return exponential_race(logits.softmax(-1), uniform)

    def codes(self, logits: Tensor, step: int) -> Tensor:
        """[K, N + 2] -> [K]"""
        return self._draw(logits, step, torch.arange(len(logits), device=self.device))

    def redraw(self, logits: Tensor, step: int, codebooks: Tensor) -> Tensor:
        """[K, N + 2] -> [K], of which the caller reads only the marked codebooks [K]."""
        return self._draw(logits, step, torch.arange(len(logits), device=self.device) + REDRAW)

    def text(self, logits: Tensor, step: int) -> Tensor:
        """[V] -> []"""
        return self._draw(logits[None], step, torch.tensor([TEXT_STREAM], device=self.device))[0]


class TorchRng:
    """Draws with one `torch.Generator`, in the order and shapes of the reference implementation (boson-ai/higgs-audio).

    Shapes are [1, V], [K, N + 2], [r, N + 2]. As `torch.multinomial`: the largest probability / exponential noise.
    """

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def codes(self, logits: Tensor, step: int) -> Tensor:
        noise = torch.empty_like(logits).exponential_(generator=self.generator)
        return (logits.softmax(-1) / noise).argmax(-1)

    def redraw(self, logits: Tensor, step: int, codebooks: Tensor) -> Tensor:
        codes = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        if codebooks.any():
            codes[codebooks] = self.codes(logits[codebooks], step)
        return codes

    def text(self, logits: Tensor, step: int) -> Tensor:
        return self.codes(logits[None], step)[0]


Rng = CounterRng | TorchRng


def make_rng(config: SamplingConfig, device: torch.device) -> Rng:
    return (TorchRng if config.parity else CounterRng)(config.seed, device)
