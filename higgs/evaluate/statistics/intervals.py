"""Confidence intervals of ratios, and paired tests between two systems.

Every statistic is a ratio of sums: errors over words, or a mean, whose denominators are ones. Texts with all of their
samples are resampled, or speakers with all of their texts, because errors within one are correlated.

Intervals are from the Bayesian bootstrap (Rubin 1981): exponential weights in place of counts. For a skewed statistic
its quantiles are too low by half of an observation as large as the skewness, m3 / m2 of the influence values. With it
added they agree with the exact interval to second order: Jeffreys' for binary outcomes, that of a Poisson mean for rare
events. Most sets of 40 texts have none of the run-aways that are one generation in a hundred; so at the upper end the
half observation is at least `unseen`, the ratio of the largest run-away. Gaffke's bound for means (Learned-Miller and
Thomas 2019) does the same with a whole one. `benchmarks/coverage.py` measures the coverage.

Weights and values are rounded to a grid of binary digits: sums of their products are exact in any order, and equal on
every processor.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES_AT_ONCE = 1000  # bounds the memory: 1,000 resamples of 2,000 utterances are 16 MB
# The lower end's share of the risk of an interval with `unseen`: with few texts the upper end is never too low.
LOWER_RISK = 2 / 3
NORMAL = NormalDist()
Array = NDArray[np.float64]
Values = Sequence[float]


class Interval(NamedTuple):
    """An estimate and its confidence interval; of one text, which says nothing of others, without ends."""

    estimate: float
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """B minus A with its interval, and the p value of "no difference"; `n` counts pairs, texts or clusters of texts.

    `standard_error` is that of the estimate, to first order.
    """

    estimate: float
    low: float
    high: float
    p: float
    n: int
    standard_error: float = 0.0


@dataclass(frozen=True)
class Resampling:
    """How many resamples or permutations, and from which seed."""

    num_resamples: int = 10_000
    seed: int = 0


def bootstrap_interval(
    errors: Values, totals: Values | None = None, settings: Resampling = Resampling(), unseen: float | None = None
) -> Interval:
    """[n] errors, [n] totals -> sum(errors) / sum(totals) with its interval; without totals, the mean of any values.

    One pair for each text: of several samples of a text, the means of their errors and totals. `unseen` is the ratio of
    the worst pair that could have been observed. The interval is about the choice of texts, not errors of the judge.

    ValueError: fewer than 2 pairs, unequal lengths, values not finite, totals not positive, negative errors of totals.
    """
    x, y = _sums(errors, totals)
    if totals is not None and min(errors) < 0:
        raise ValueError(f"errors must not be negative, got {min(errors)}")
    low, high = interval_ends([(x[None], y[None])], settings, unseen)
    return Interval(float(x.sum() / y.sum()), float(low[0]), float(high[0]))


def interval_ends(
    tables: Sequence[tuple[Array, Array]], settings: Resampling, unseen: float | None = None
) -> tuple[Array, Array]:
    """One (x, y), each [trials, n] -> low, high [trials] of the ratio of sums; of two, second minus first."""
    trials, n = tables[0][0].shape
    estimate, influence, columns = np.zeros(trials), np.zeros((trials, n)), []
    for sign, (x, y) in zip((1,) if len(tables) == 1 else (-1, 1), tables, strict=True):
        total = y.sum(axis=1, keepdims=True)
        ratio = x.sum(axis=1, keepdims=True) / total
        estimate += sign * ratio[:, 0]
        influence += sign * (x - ratio * y) * (n / total)  # how far all weight on one would move it
        columns.append((sign * _on_grid(x - ratio * y, 24).T, _on_grid(y, 24).T))
    moved, share = _resampled(columns, settings)
    u = _on_grid(influence, 12)
    square, cube = (u * u).sum(axis=1), (np.abs(u) if len(tables) > 1 else u) * u * u
    skew = np.divide(cube.sum(axis=1), square, out=np.zeros(trials), where=square > 0)
    least, most = -skew if len(tables) > 1 else skew, skew
    if unseen is not None:
        most = np.maximum(skew, unseen - estimate)
    risk = 1 - CONFIDENCE
    below = risk * (0.5 if unseen is None else LOWER_RISK)
    low = np.quantile(moved + share * least, _level(below, n), axis=0)
    high = np.quantile(moved + share * most, 1 - _level(risk - below, n), axis=0)
    return estimate + low, estimate + high


def _resampled(columns: Sequence[tuple[Array, Array]], settings: Resampling) -> tuple[Array, Array]:
    """Pairs of [n, trials] -> [R, trials] sums of the ratios of weighted sums; [R, 1] shares of half an observation.

    Weights are on a grid of 2^-14: with values of 24 binary digits, sums over up to 2^15 fit a float64.
    """
    generator = np.random.default_rng(settings.seed)
    n, trials = columns[0][0].shape
    moved, share = np.zeros((settings.num_resamples, trials)), np.empty((settings.num_resamples, 1))
    for start in range(0, settings.num_resamples, RESAMPLES_AT_ONCE):
        rows = slice(start, min(start + RESAMPLES_AT_ONCE, settings.num_resamples))
        size = rows.stop - start
        weights = np.rint(generator.standard_exponential((size, n)) * 2**14)
        half = np.rint(generator.standard_normal((size, 1)) ** 2 * 2**13)  # Gamma(1/2)
        share[rows] = half / (weights.sum(axis=1, keepdims=True) + half)
        for x, y in columns:
            moved[rows] += (weights @ x) / (weights @ y)
    return moved, share


def _level(tail: float, n: int) -> float:
    """The quantile that makes the interval of a normal mean Student's, by its series in 1 / (n - 1).

    Hesterberg, "What teachers should know about the bootstrap", 2015 (expanded percentiles).
    """
    z, v = -NORMAL.inv_cdf(tail), max(1, n - 1)
    student = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v * v)
    return round(NORMAL.cdf(-student * ((n + 1) / v) ** 0.5), 12)


def _on_grid(values: Array, digits: int) -> Array:
    """Rounded to so many binary digits of the largest."""
    step = 2.0 ** (int(np.frexp(np.abs(values).max())[1]) - digits)
    return np.rint(values / step) * step


def paired_difference(
    a: Values,
    b: Values,
    totals_a: Values | None = None,
    totals_b: Values | None = None,
    settings: Resampling = Resampling(),
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """Two systems on the same utterances, [n] and [n] -> ratio of B minus ratio of A; without totals, of means.

    The interval is that of `bootstrap_interval`, with one weight for both systems' values of a cluster, and half an
    observation at either end. `p` is that of a permutation test, which swaps the labels of clusters: in all ways where
    these are at most `num_resamples`, else in as many random ones. The observed one counts: of copies p = 1.

    ValueError as `bootstrap_interval`, and for unequal lengths of A and B.
    """
    if len(a) != len(b):
        raise ValueError(f"systems are compared on the same utterances, got {len(a)} and {len(b)}")
    (x, y), (v, w) = (_sums(*pair, clusters) for pair in ((a, totals_a), (b, totals_b)))
    low, high = interval_ends([(x[None], y[None]), (v[None], w[None])], settings)
    estimate = v.sum() / w.sum() - x.sum() / y.sum()
    p = permutation_p(np.stack([x, y, v, w])[:, None], settings)
    influence = (v - v.sum() / w.sum() * w) / w.mean() - (x - x.sum() / y.sum() * y) / y.mean()
    error = float(influence.std(ddof=1)) / len(x) ** 0.5
    return Difference(float(estimate), float(low[0]), float(high[0]), float(p[0]), len(x), error)


def smallest_p(n: int, settings: Resampling = Resampling()) -> float:
    """The smallest p that the permutation test of n pairs can give: of the observed labels and their mirror image."""
    return 2 / 2**n if n < 60 and 2**n <= settings.num_resamples else 1 / (settings.num_resamples + 1)


def detectable_difference(
    standard_error: float, n: int, tests: int, settings: Resampling = Resampling()
) -> float | None:
    """The true difference that would be found in 80 % of sets like this one, of n pairs, among so many tests.

    Student's quantiles at 5 % over `tests` (Holm's first step) and at 80 % (Cohen 1988). None where no p is small
    enough, or where nothing varies, so that there is no error to go by.
    """
    level = (1 - CONFIDENCE) / tests
    if standard_error <= 0 or smallest_p(n, settings) > level:
        return None
    return standard_error * power_factor(level, n - 1)


def power_factor(level: float, freedom: int) -> float:
    """How many standard errors a difference has that a two-sided t test at `level` finds in 80 % of cases."""
    return float(student.ppf(1 - level / 2, freedom) + student.ppf(POWER, freedom))


def permutation_p(table: Array, settings: Resampling) -> Array:
    """[4, trials, n]: numerators and denominators of A, then of B -> [trials] two-sided p."""
    n = table.shape[2]
    every = 2**n if n < 60 else settings.num_resamples + 1
    if exact := every <= settings.num_resamples:
        swaps = (np.arange(every)[:, None] >> np.arange(n)) & 1
    else:
        generator = np.random.default_rng(settings.seed)
        swaps = generator.integers(0, 2, size=(settings.num_resamples, n), dtype=np.int8)
    sums, moved = table.sum(axis=2), table[2:] - table[:2]
    observed = np.abs(sums[2] / sums[3] - sums[0] / sums[1])
    same_totals = not moved[1].any()  # WER on one set: saves half of the work
    extreme = np.zeros(table.shape[1])
    for start in range(0, len(swaps), RESAMPLES_AT_ONCE):
        block = swaps[start : start + RESAMPLES_AT_ONCE].astype(np.float64)
        top = block @ moved[0].T
        bottom = 0.0 if same_totals else block @ moved[1].T
        swapped = (sums[2] - top) / (sums[3] - bottom) - (sums[0] + top) / (sums[1] + bottom)
        # The tolerance: sums in another order differ in their last digits.
        extreme += (np.abs(swapped) >= observed - 1e-12 * (1 + observed)).sum(axis=0)
    return extreme / len(swaps) if exact else (extreme + 1) / (len(swaps) + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p by metric -> p adjusted for multiple comparisons, in the same order (Holm 1979). NaN, no test, stays NaN."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted, largest = dict.fromkeys(p_values, math.nan), 0.0
    for rank, (p, name) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[name] = largest
    return adjusted


def wilson_interval(successes: float, n: float) -> Interval:
    """Successes in n independent trials -> rate and 95 % interval, which has a width for 0 of n too. Wilson 1927."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 to n successes of n of at least 1, got {successes} of {n}")
    z = NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    # At the ends the formula gives 0 and 1 up to rounding.
    return Interval(rate, 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def rate_interval(shares: Sequence[float], counts: Sequence[int]) -> Interval:
    """[n] share of positive samples of each text, [n] number of samples -> the mean share with Wilson's 95 % interval.

    The effective sample size (Korn and Graubard 1998) is rate (1 - rate) / variance of the mean between texts: from the
    number of texts, where samples of a text agree, to that of independent samples, as where nothing varies.
    """
    x, _ = _sums(shares, None, least=1)
    n, most = len(shares), len(shares) ** 2 / sum(1 / k for k in counts)
    rate = min(1.0, max(0.0, float(x.sum() / n)))
    variance = float(((x - rate) ** 2).sum()) / n**2
    effective = rate * (1 - rate) / variance if variance > 0 else most if n > 1 else n
    effective = min(most, max(n, effective))
    return wilson_interval(rate * effective, effective)


def seed_share(errors: Sequence[float], totals: Sequence[float], texts: Sequence[Hashable]) -> float | None:
    """[samples] errors, totals and texts -> the share of the seed in the variance of a sample's rate, 0 to 1.

    One-way analysis of variance with unequal groups (Searle 1971, chapter 10) of the errors above the mean rate. None
    where no text has two samples, or nothing varies.
    """
    x, y = _sums(errors, totals, least=1)
    _, index = np.unique(np.asarray(texts), return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    n, samples = len(counts), counts.sum()
    if samples == n or n < 2:
        return None
    residuals = x - x.sum() / y.sum() * y
    means = np.bincount(index, weights=residuals) / counts
    within = ((residuals - means[index]) ** 2).sum() / (samples - n)
    between = (counts * (means - residuals.mean()) ** 2).sum() / (n - 1)
    mean_count = (samples - (counts**2).sum() / samples) / (n - 1)
    total = within + max(0.0, (between - within) / mean_count)
    return float(within / total) if total > 0 else None


def _sums(
    numerators: ArrayLike, denominators: ArrayLike | None, clusters: Sequence[Hashable] | None = None, least: int = 2
) -> tuple[Array, Array]:
    """[n], [n] or None for ones -> sums over the pairs of each label, in the order in which labels first appear."""
    x = np.asarray(numerators, dtype=np.float64)
    y = np.ones_like(x) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"errors and totals must both be [n], got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("errors and totals must be finite")
    if clusters is not None:
        if len(clusters) != len(x):
            raise ValueError(f"a label for each of {len(x)} pairs, got {len(clusters)}")
        places = {label: place for place, label in enumerate(dict.fromkeys(clusters))}
        index = [places[label] for label in clusters]
        x, y = (np.bincount(index, weights=values, minlength=len(places)) for values in (x, y))
    if len(x) < least:
        raise ValueError(f"an interval needs at least {least} utterances, got {len(x)}")
    if not (y > 0).all():
        raise ValueError("every utterance needs a positive total")
    return x, y
