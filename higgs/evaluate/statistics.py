"""How sure a rate is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 1000  # bounds the memory: 1,000 resamples of 2,000 utterances are 16 MB


@dataclass(frozen=True)
class Interval:
    """A rate and the interval that holds it."""

    estimate: float
    low: float
    high: float
    confidence: float


def bootstrap_interval(
    errors: Sequence[float],
    totals: Sequence[float],
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """[n] errors, [n] totals -> sum(errors) / sum(totals) with its percentile interval.

    One pair for each utterance. Utterances are drawn with replacement, n at a time, errors and
    totals together; the interval cuts off (1 - confidence) / 2 of the resampled ratios at each end
    (linear between order statistics). Source: Bisani and Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation", 2004. It tells how far the rate depends on the choice
    of utterances, not on the seed of generation or on the judge. Several takes of an utterance or
    many clips of one speaker are not independent: add them up to one pair first. Same seed, same
    interval.

    Raises ValueError: fewer than 2 utterances, unequal lengths, errors that are negative or not
    finite, totals that are not positive.
    """
    e, t = np.asarray(errors, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if e.ndim != 1 or e.shape != t.shape:
        raise ValueError(f"errors and totals must both be [n], got shapes {e.shape} and {t.shape}")
    if len(e) < 2:
        raise ValueError(f"an interval needs at least 2 utterances, got {len(e)}")
    if not (np.isfinite(e).all() and (e >= 0).all()):
        raise ValueError(f"errors must be finite and not negative, got {e.min()} to {e.max()}")
    if not (np.isfinite(t).all() and (t > 0).all()):
        raise ValueError(f"totals must be finite and positive, got {t.min()} to {t.max()}")
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"got num_resamples={num_resamples} (at least 1) and confidence={confidence} (0..1)"
        )
    generator = np.random.default_rng(seed)
    ratios = np.empty(num_resamples)
    for start in range(0, num_resamples, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, num_resamples - start)
        drawn = generator.integers(len(e), size=(rows, len(e)))
        ratios[start : start + rows] = e[drawn].sum(axis=1) / t[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(e.sum() / t.sum()), float(low), float(high), confidence)
