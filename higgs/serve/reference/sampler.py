"""Choosing tokens: temperature, top-k, top-p and repetition-aware sampling. Pure functions of logits and an RNG."""

import torch
from torch import Tensor

from higgs.config import SamplingConfig
from higgs.serve.counter_rng import Rng


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


def sample_codes(logits: Tensor, history: Tensor, step: int, config: SamplingConfig, rng: Rng) -> Tensor:
    """logits [K, N + 2] float32, history [K, steps so far] -> one code for each codebook [K].

    Repetition-aware sampling (Chen et al. 2024, VALL-E 2): a code that occurs `ras_max_repeats` times or more in the
    last `ras_window` steps is drawn again from the untempered, unfiltered distribution; in greedy mode too, as in the
    reference implementation (boson-ai/higgs-audio).
    """
    if config.greedy:
        codes = logits.argmax(-1)
    else:
        codes = rng.codes(process_logits(logits, config), step)
    if config.ras_window is None:
        return codes
    repeats = (history[:, -config.ras_window :] == codes[:, None]).sum(1)
    repeated = repeats >= config.ras_max_repeats
    return torch.where(repeated, rng.redraw(logits, step, repeated), codes)


def sample_text(logits: Tensor, step: int, config: SamplingConfig, rng: Rng) -> Tensor:
    """[V] float32 -> [] int64"""
    if config.greedy:
        return logits.argmax(-1)
    return rng.text(process_logits(logits, config), step)
