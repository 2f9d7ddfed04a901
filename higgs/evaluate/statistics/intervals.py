"""How sure a number is, and whether two systems differ.

What is drawn again is the text with all of its takes, or a speaker with all of their texts, since what
belongs together fails together. Every statistic is a ratio of sums, errors over words as well as a mean
(then the denominators are ones).

An interval comes from the Bayesian bootstrap (Rubin 1981): each text has an exponential weight in place
of a count. Of a skewed statistic its quantiles are too low by half of an observation as large as
skewness says, m3 / m2 of the influence values, and with half of such an observation added they agree
with the exact interval to second order: for yes and no it is Jeffreys' interval, for rare events that of
a Poisson mean. What a sample does not hold, no resampling shows: where one take in a hundred runs away
until the frame cap ends it, most samples of 40 have none. So at the upper end the half observation is
at least `unseen`, what the largest run-away would add; Gaffke's bound for means (Learned-Miller and
Thomas 2019) does the same with a whole one. `benchmarks.coverage` measures how often all this holds.

Same data and same seed, same result, on every processor: weights and values are rounded to a grid of
binary digits, so that sums of their products are exact in any order.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROWS_AT_ONCE = 1000  # bounds the memory: 1,000 resamples of 2,000 utterances are 16 MB
# Of the risk of an interval with `unseen`, two thirds go to the lower end: of few texts the upper one never errs.
LOWER_RISK = 2 / 3
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
    unseen: float | None = None,
) -> Interval:
    """[n] errors, [n] totals -> sum(errors) / sum(totals) with its interval.

    One pair for each text: with several takes of some texts, the means of their errors and of their
    totals, so that each text counts once however often it was spoken, and further takes only make its
    pair surer. With `clusters`, a label for each pair, pairs of one label are drawn together: the texts
    of a speaker. `unseen` is the ratio of the worst pair that could have come, None without such a one.
    The interval tells how far the rate depends on the choice of texts, not on the judge.

    Raises ValueError: fewer than 2 clusters, unequal lengths, errors that are negative or not
    finite, totals that are not positive.
    """
    e, t = _pairs(errors, totals)
    if not (e >= 0).all():
        raise ValueError(f"errors must not be negative, got {e.min()}")
    return _ratio_interval(e, t, num_resamples, seed, confidence, clusters, unseen)


def mean_interval(
    values: Sequence[float],
    num_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
    unseen: float | None = None,
) -> Interval:
    """[n] -> their mean with its interval, as `bootstrap_interval`; values may be negative."""
    x, y = _pairs(values, np.ones(len(values)))
    return _ratio_interval(x, y, num_resamples, seed, confidence, clusters, unseen)


def _ratio_interval(
    x: Array,
    y: Array,
    num_resamples: int,
    seed: int,
    confidence: float,
    clusters: Sequence[Hashable] | None,
    unseen: float | None,
) -> Interval:
    pairs = len(x)
    x, y = _by_cluster(x, y, clusters)
    table, part = (x[None], y[None]), len(x) / pairs
    ends = interval_ends([table], num_resamples, seed, confidence, unseen, part)
    return Interval(float(x.sum() / y.sum()), float(ends[0][0]), float(ends[1][0]), confidence)


def interval_ends(
    tables: Sequence[tuple[Array, Array]],
    num_resamples: int,
    seed: int,
    confidence: float,
    unseen: float | None = None,
    part: float = 1.0,
) -> tuple[Array, Array]:
    """One (x, y), each [trials, n] -> low, high [trials] of the ratio of sums; of two, second minus first.

    Trials share their draws. `part` of a cluster is the pair that `unseen` speaks of.
    """
    _check_settings(num_resamples, confidence)
    trials, n = tables[0][0].shape
    estimate, influence, columns = np.zeros(trials), np.zeros((trials, n)), []
    for sign, (x, y) in zip((1,) if len(tables) == 1 else (-1, 1), tables, strict=True):
        total = y.sum(axis=1, keepdims=True)
        ratio = x.sum(axis=1, keepdims=True) / total
        estimate += sign * ratio[:, 0]
        influence += sign * (x - ratio * y) * (n / total)  # how far all weight on one would move it
        columns.append((sign * _on_grid(x - ratio * y, 24).T, _on_grid(y, 24).T))
    moved, share = _resampled(columns, num_resamples, seed)
    u = _on_grid(influence, 12)
    square, cube = (u * u).sum(axis=1), (np.abs(u) if len(tables) > 1 else u) * u * u
    skew = np.divide(cube.sum(axis=1), square, out=np.zeros(trials), where=square > 0)
    least, most = -skew if len(tables) > 1 else skew, skew
    if unseen is not None:
        most = np.maximum(skew, (unseen - estimate) * part)
    below = (1 - confidence) * (0.5 if unseen is None else LOWER_RISK)
    low = np.quantile(moved + share * least, _level(below, n), axis=0)
    high = np.quantile(moved + share * most, 1 - _level(1 - confidence - below, n), axis=0)
    return estimate + low, estimate + high


def _resampled(columns: Sequence[tuple[Array, Array]], num_resamples: int, seed: int) -> tuple[Array, Array]:
    """Pairs of [n, trials] -> [R, trials], the ratios of weighted sums, added up over the pairs; and
    [R, 1], the share of half an observation in the sum of all weights.

    Weights are on a grid of 2^-14: with values of 24 binary digits, sums over up to 2^15 fit a float64.
    """
    generator = np.random.default_rng(seed)
    n, trials = columns[0][0].shape
    moved, share = np.zeros((num_resamples, trials)), np.empty((num_resamples, 1))
    for start in range(0, num_resamples, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, num_resamples))
        size = rows.stop - start
        weights = np.rint(generator.standard_exponential((size, n)) * 2**14)
        half = np.rint(generator.standard_normal((size, 1)) ** 2 * 2**13)  # Gamma(1/2)
        share[rows] = half / (weights.sum(axis=1, keepdims=True) + half)
        for x, y in columns:
            moved[rows] += (weights @ x) / (weights @ y)
    return moved, share


def _level(tail: float, n: int) -> float:
    """Where to cut the resamples of n, so that an interval of a normal mean is Student's.

    Hesterberg, "What teachers should know about the bootstrap", 2015 (expanded percentiles); Student's
    quantile by its series in 1 / (n - 1).
    """
    z, v = -NORMAL.inv_cdf(tail), max(1, n - 1)
    student = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v * v)
    return round(NORMAL.cdf(-student * ((n + 1) / v) ** 0.5), 12)


def _on_grid(values: Array, digits: int) -> Array:
    """Rounded to so many binary digits of the largest."""
    step = 2.0 ** (int(np.frexp(np.abs(values).max())[1]) - digits)
    return np.rint(values / step) * step


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

    Totals default to ones: the difference of means. The interval is that of `bootstrap_interval`, with
    one weight for what both systems made of a text (cluster), and half an observation either way, since
    what only one system did the other might have done. `p` is that of a permutation test: under the
    hypothesis that it does not matter which system spoke, the labels of each cluster are swapped with
    probability 1/2, all ways of it where they are no more than `num_resamples`, else as many draws; p is
    the share of differences at least as large, the observed one included. It takes both to have spoken
    each text equally often. Two copies of one run have p = 1.

    Raises ValueError as `bootstrap_interval` does, and for unequal lengths of A and B.
    """
    if len(a) != len(b):
        raise ValueError(f"systems are compared on the same utterances, got {len(a)} and {len(b)}")
    _check_settings(num_resamples, confidence)
    sums_a = _by_cluster(*_pairs(a, np.ones(len(a)) if totals_a is None else totals_a), clusters)
    sums_b = _by_cluster(*_pairs(b, np.ones(len(b)) if totals_b is None else totals_b), clusters)
    tables = [(x[None], y[None]) for x, y in (sums_a, sums_b)]
    low, high = interval_ends(tables, num_resamples, seed, confidence)
    (x, y), (v, w) = sums_a, sums_b
    estimate = v.sum() / w.sum() - x.sum() / y.sum()
    p = permutation_p(np.stack([x, y, v, w])[:, None], num_resamples, seed)
    found = (float(value) for value in (estimate, low[0], high[0], p[0]))
    return Difference(*found, len(x), confidence)


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


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """How often in n independent cases -> rate and interval, with width even for 0 of n. Wilson 1927."""
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


def rate_interval(
    shares: Sequence[float], takes: Sequence[int], confidence: float = 0.95, clusters: Sequence[Hashable] | None = None
) -> Interval:
    """[n] share of the takes of each text, [n] how many takes -> the mean share with Wilson's interval.

    Takes of one text may agree, then they are one case, or not, then they are several: the number of
    independent cases is what the variance between texts (clusters) says, rate (1 - rate) / variance of
    the mean, at least the clusters and at most what independent takes would be worth (the effective
    sample size of Korn and Graubard 1998). Where nothing varies it is the most, of `clusters` the least.
    """
    x, y = _by_cluster(*_pairs(shares, np.ones(len(shares))), clusters, least=1)
    n, most = len(shares), len(shares) ** 2 / sum(1 / k for k in takes)
    rate = min(1.0, max(0.0, float(x.sum() / n)))
    variance = float(((x - rate * y) ** 2).sum()) / n**2
    unknown = most if clusters is None and n > 1 else len(x)
    cases = rate * (1 - rate) / variance if variance > 0 else unknown
    cases = min(most, max(len(x), cases))
    return wilson_interval(rate * cases, cases, confidence)


def seed_share(errors: Sequence[float], totals: Sequence[float], texts: Sequence[Hashable]) -> float | None:
    """[takes] errors, totals and texts -> the share of the seed in the variance of a take's rate, 0 to 1.

    Analysis of variance with unequal groups (Searle 1971, chapter 10) of what a take has more than its
    total lets expect. None where no text has two takes, or nothing varies.
    """
    x, y = _pairs(errors, totals)
    _, index = np.unique(np.asarray(texts), return_inverse=True)
    takes = np.bincount(index).astype(np.float64)
    n, all_takes = len(takes), takes.sum()
    if all_takes == n or n < 2:
        return None
    rest = x - x.sum() / y.sum() * y
    means = np.bincount(index, weights=rest) / takes
    within = ((rest - means[index]) ** 2).sum() / (all_takes - n)
    between = (takes * (means - rest.mean()) ** 2).sum() / (n - 1)
    usual = (all_takes - (takes**2).sum() / all_takes) / (n - 1)
    total = within + max(0.0, (between - within) / usual)
    return float(within / total) if total > 0 else None


def _pairs(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Array, Array]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"errors and totals must both be [n], got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("errors and totals must be finite")
    return x, y


def _by_cluster(x: Array, y: Array, clusters: Sequence[Hashable] | None, least: int = 2) -> tuple[Array, Array]:
    """[n], [n] -> sums over the pairs of each label, in the order in which labels first appear."""
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


def _check_settings(num_resamples: int, confidence: float) -> None:
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"got num_resamples={num_resamples} (at least 1) and confidence={confidence} (0..1)")
