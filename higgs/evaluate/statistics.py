"""How sure a number is, and whether two systems differ.

What is drawn again is the utterance, or a speaker with all of their utterances: takes of one text
with several seeds stay together, since they fail together. Every statistic here is a ratio of sums,
errors over words as well as a mean (then the denominators are ones). Same seed, same result.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROWS_AT_ONCE = 1000  # bounds the memory: 1,000 resamples of 2,000 utterances are 16 MB
METHODS = ("percentile", "bca")
NORMAL = NormalDist()
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number and the interval that holds it."""

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Difference:
    """How much more B has than A: the interval of the difference, and the probability of one as large by chance.

    `n` counts what was paired: utterances, or speakers.
    """

    estimate: float
    low: float
    high: float
    p: float
    n: int
    confidence: float


def bootstrap_interval(
    errors: Sequence[float],
    totals: Sequence[float],
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
    method: str = "percentile",
) -> Interval:
    """[n] errors, [n] totals -> sum(errors) / sum(totals) with its interval.

    One pair for each utterance. Utterances are drawn with replacement, n at a time, errors and
    totals together; the interval cuts off (1 - confidence) / 2 of the resampled ratios at each end
    (linear between order statistics). Source: Bisani and Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation", 2004. With `clusters`, a label for each pair, pairs of
    one label are drawn together: the takes of an utterance, the clips of a speaker. `method="bca"`
    moves the ends for bias and skewness (Efron 1987), which word errors need when they are few; for
    either, `higgs.evaluate.simulate` measures how often the interval holds the truth.

    The interval tells how far the rate depends on the choice of utterances, not on the judge. Where
    all utterances are equal it has no width, which is no certainty: of nothing wrong in n, see
    `wilson_interval`.

    Raises ValueError: fewer than 2 clusters, unequal lengths, errors that are negative or not
    finite, totals that are not positive.
    """
    e, t = _pairs(errors, totals)
    if not (e >= 0).all():
        raise ValueError(f"errors must not be negative, got {e.min()}")
    if not (t > 0).all():
        raise ValueError(f"totals must be positive, got {t.min()}")
    return ratio_interval(e, t, num_resamples, seed, confidence, clusters, method)


def mean_interval(
    values: Sequence[float],
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
    method: str = "percentile",
) -> Interval:
    """[n] -> their mean with its interval, as `bootstrap_interval`; values may be negative."""
    return ratio_interval(
        values, np.ones(len(values)), num_resamples, seed, confidence, clusters, method
    )


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    num_resamples: int,
    seed: int,
    confidence: float,
    clusters: Sequence[Hashable] | None,
    method: str,
) -> Interval:
    """The engine of the two above: numerators may be negative, a denominator 0 if its cluster's sum is not."""
    x, y = _by_cluster(*_pairs(numerators, denominators), clusters)
    low, high = interval_ends(x[None], y[None], num_resamples, seed, confidence, method)
    return Interval(float(x.sum() / y.sum()), float(low[0]), float(high[0]), confidence)


def interval_ends(
    x: Array, y: Array, num_resamples: int, seed: int, confidence: float, method: str
) -> tuple[Array, Array]:
    """[trials, n], [trials, n] -> low [trials], high [trials] of the ratio of sums.

    Trials share their draws, which is what the same seed gives for one after the other.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    _check_settings(num_resamples, confidence)
    ratios = _resampled(x, y, num_resamples, seed)
    tail = (1 - confidence) / 2
    if method == "percentile":
        low, high = np.quantile(ratios, [tail, 1 - tail], axis=0)
        return low, high
    return _bca_ends(ratios, x, y, NORMAL.inv_cdf(1 - tail))


def _resampled(x: Array, y: Array, num_resamples: int, seed: int) -> Array:
    """[trials, n], [trials, n] -> [num_resamples, trials]: ratios of sums over n draws with replacement."""
    n = x.shape[1]
    generator = np.random.default_rng(seed)
    ratios = np.empty((num_resamples, len(x)))
    for start in range(0, num_resamples, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, num_resamples - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        # How often each was drawn, [rows, n]: a product then sums all trials at once.
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        ratios[start : start + rows] = (counts @ x.T) / (counts @ y.T)
    return ratios


def _bca_ends(ratios: Array, x: Array, y: Array, z: float) -> tuple[Array, Array]:
    """[R, trials] resampled ratios -> low and high [trials], corrected for bias and acceleration.

    Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 14; ties with the
    estimate count half. Without any spread the ends are the estimate.
    """
    estimate = x.sum(axis=1) / y.sum(axis=1)
    without = (x.sum(axis=1, keepdims=True) - x) / (y.sum(axis=1, keepdims=True) - y)
    deviation = without.mean(axis=1, keepdims=True) - without
    spread = (deviation**2).sum(axis=1) ** 1.5
    skew = (deviation**3).sum(axis=1)
    acceleration = np.divide(skew, 6 * spread, out=np.zeros_like(skew), where=spread > 0)
    below = ((ratios < estimate).mean(axis=0) + (ratios <= estimate).mean(axis=0)) / 2
    least = 0.5 / len(ratios)
    low, high = np.empty_like(estimate), np.empty_like(estimate)
    for trial, a in enumerate(acceleration):
        bias = NORMAL.inv_cdf(float(np.clip(below[trial], least, 1 - least)))
        shifted = [bias + side * z for side in (-1, 1)]
        shares = [NORMAL.cdf(bias + s / max(1 - a * s, 1e-6)) for s in shifted]
        low[trial], high[trial] = np.quantile(ratios[:, trial], shares)
    return low, high


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    totals_a: Sequence[float] | None = None,
    totals_b: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """Two systems on the same utterances, [n] and [n] -> ratio of B minus ratio of A.

    Totals default to ones: the difference of means. The interval is a paired bootstrap: utterances
    (clusters) are drawn with what both systems made of them. `p` is that of a permutation test:
    under the hypothesis that it does not matter which system spoke, the labels of each cluster are
    swapped with probability 1/2, all ways of it where they are no more than `num_resamples`, else
    as many draws; p is the share of differences at least as large, the observed one included. Two
    copies of one run have p = 1.

    Raises ValueError as `bootstrap_interval` does, and for unequal lengths of A and B.
    """
    if len(a) != len(b):
        raise ValueError(f"systems are compared on the same utterances, got {len(a)} and {len(b)}")
    _check_settings(num_resamples, confidence)
    sums_a = _by_cluster(*_pairs(a, np.ones(len(a)) if totals_a is None else totals_a), clusters)
    sums_b = _by_cluster(*_pairs(b, np.ones(len(b)) if totals_b is None else totals_b), clusters)
    ratios_a = _resampled(sums_a[0][None], sums_a[1][None], num_resamples, seed)
    ratios_b = _resampled(sums_b[0][None], sums_b[1][None], num_resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios_b - ratios_a, [tail, 1 - tail])
    table = np.stack([*sums_a, *sums_b])
    estimate = table[2].sum() / table[3].sum() - table[0].sum() / table[1].sum()
    p = float(permutation_p(table[:, None], num_resamples, seed)[0])
    return Difference(float(estimate), float(low), float(high), p, table.shape[1], confidence)


def permutation_p(table: Array, num_resamples: int, seed: int) -> Array:
    """[4, trials, n]: numerators and denominators of A, then of B -> [trials] two-sided p."""
    n = table.shape[2]
    every = 2**n if n < 60 else num_resamples + 1
    if exact := every <= num_resamples:
        swaps = (np.arange(every)[:, None] >> np.arange(n)) & 1
    else:
        swaps = np.random.default_rng(seed).integers(0, 2, size=(num_resamples, n), dtype=np.int8)
    sums = table.sum(axis=2)
    observed = np.abs(sums[2] / sums[3] - sums[0] / sums[1])
    moved = table[2:] - table[:2]
    same_totals = not moved[1].any()  # as of WER on one set: half of the work
    extreme = np.zeros(table.shape[1])
    for start in range(0, len(swaps), ROWS_AT_ONCE):
        block = swaps[start : start + ROWS_AT_ONCE].astype(np.float64)
        top = block @ moved[0].T
        bottom = 0.0 if same_totals else block @ moved[1].T
        swapped = (sums[2] - top) / (sums[3] - bottom) - (sums[0] + top) / (sums[1] + bottom)
        # Sums in another order differ in their last digit: that is no smaller difference.
        extreme += (np.abs(swapped) >= observed - 1e-12 * (1 + observed)).sum(axis=0)
    return extreme / len(swaps) if exact else (extreme + 1) / (len(swaps) + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p by metric -> p adjusted for having tried them all, in the same order.

    Holm 1979: the k-th smallest of m is multiplied by m - k + 1, never falls below the one before
    it, and stays at most 1.
    """
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """How often in n -> the rate and its interval, which has width even for 0 of n.

    Wilson 1927. It takes the n for independent: of several takes of one text count the text.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 to n successes of n of at least 1, got {successes} of {n}")
    _check_settings(1, confidence)
    z = NORMAL.inv_cdf((1 + confidence) / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    # At the ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(rate, low, high, confidence)


def _pairs(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Array, Array]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"errors and totals must both be [n], got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("errors and totals must be finite")
    return x, y


def _by_cluster(x: Array, y: Array, clusters: Sequence[Hashable] | None) -> tuple[Array, Array]:
    """[n], [n] -> sums over the pairs of each label, in the order in which labels first appear."""
    if clusters is not None:
        if len(clusters) != len(x):
            raise ValueError(f"a label for each of {len(x)} pairs, got {len(clusters)}")
        places = {label: place for place, label in enumerate(dict.fromkeys(clusters))}
        index = [places[label] for label in clusters]
        x, y = (np.bincount(index, weights=values, minlength=len(places)) for values in (x, y))
    if len(x) < 2:
        raise ValueError(f"an interval needs at least 2 utterances, got {len(x)}")
    if not (y > 0).all():
        raise ValueError("every utterance needs a positive total")
    return x, y


def _check_settings(num_resamples: int, confidence: float) -> None:
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"got num_resamples={num_resamples} (at least 1) and confidence={confidence} (0..1)"
        )
