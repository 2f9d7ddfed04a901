"""Statistics of listeners' answers: an exact test of preferences, and how far raters agree."""

from collections.abc import Sequence

import numpy as np


def sign_flip_p(values: Sequence[int]) -> float:
    """[n] sums of preferences, of texts or of listeners -> the exact two-sided p of "either sign is as likely".

    The share of all 2^n signs whose sum is at least as far from zero, by convolution. Of signs alone (-1, 0, 1) this is
    the sign test.
    """
    sizes = [abs(int(value)) for value in values if value]
    chances = np.ones(1)
    for size in sizes:
        wider = np.zeros(len(chances) + 2 * size)
        wider[: len(chances)] += chances / 2
        wider[2 * size :] += chances / 2
        chances = wider
    centre = (len(chances) - 1) // 2
    distance = abs(np.arange(len(chances)) - centre)
    return min(1.0, float(chances[distance >= abs(sum(values))].sum()))


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """[units] of the values that raters gave -> alpha for interval data: 1 is agreement, 0 that of chance.

    Units with one value count for nothing. None where no unit has two, or all values are equal. Krippendorff,
    "Computing Krippendorff's Alpha-Reliability", 2011.
    """
    pairable = [np.asarray(values, dtype=np.float64) for values in units if len(values) > 1]
    if not pairable:
        return None
    every = np.concatenate(pairable)
    expected = 2 * len(every) * ((every - every.mean()) ** 2).sum()
    if expected <= 0:
        return None
    # The sum over all ordered pairs of (x - y)^2 is 2 m times the sum of squares about the mean.
    observed = sum(2 * len(v) * ((v - v.mean()) ** 2).sum() / (len(v) - 1) for v in pairable)
    return float(1 - (len(every) - 1) * observed / expected)
