"""Parts of one run, as voices: which are told apart from the best, and is each the voice that was asked for?

And what a comparison of two runs on the same texts could find.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from higgs.evaluate.statistics.intervals import (
    RESAMPLES_AT_ONCE,
    Array,
    Difference,
    Resampling,
    holm,
    paired_difference,
    power_factor,
)
from higgs.evaluate.statistics.paired_runs import ALPHA
from higgs.evaluate.statistics.summary import METRICS, Metric, mean_sample, samples_of
from higgs.evaluate.utterances import NOT_SCORED
from higgs.workflow.tables import Row

WER = METRICS[0]
LEAST_SHARED = 6  # texts: with five the smallest p of a paired permutation test is 2 / 2^5
Parts = Mapping[str, Sequence[Row]]


class FromBest(NamedTuple):
    """The best part and, for every other, p of "no difference from the best" with Holm's correction."""

    best: str | None
    p: dict[str, float]
    paired: bool  # every part shares texts with the best

    def differs(self, name: str) -> bool:
        return self.p.get(name, 1.0) <= ALPHA


@dataclass(frozen=True)
class Detectable:
    """The difference between two runs that is found in 80 % of cases; None where no difference can be found."""

    difference: float | None
    texts: int
    repeated: int  # texts with several samples, from which it is calculated; 0: from the spread between texts


def from_best(parts: Parts, settings: Resampling, metric: Metric = WER) -> FromBest:
    """Each part against the one with the best ratio. Parts with at least two texts are compared.

    Within texts where both have LEAST_SHARED texts in common: labels are swapped text by text. Elsewhere texts are
    shuffled between the two, so that the texts' own difficulty is a part of the difference.
    """
    tables = {name: _by_text(metric, rows) for name, rows in parts.items()}
    tables = {name: table for name, table in tables.items() if len(table) > 1}
    if not tables:
        return FromBest(None, {}, False)
    ratios = {name: sum(x for x, _ in t.values()) / sum(y for _, y in t.values()) for name, t in tables.items()}
    best = (max if metric.better == "higher" else min)(ratios, key=ratios.__getitem__)
    p, paired = {}, True
    for name in tables.keys() - {best}:
        shared = sorted(tables[best].keys() & tables[name].keys())
        if len(shared) >= LEAST_SHARED:
            (x, y), (v, w) = (zip(*(tables[part][text] for text in shared), strict=True) for part in (best, name))
            p[name] = paired_difference(x, v, y, w, settings).p
        else:
            paired = False
            p[name] = shuffled_p(*(np.array(list(tables[part].values())).T for part in (best, name)), settings)
    return FromBest(best, holm(dict(sorted(p.items()))), paired and bool(p))


def shuffled_p(a: Array, b: Array, settings: Resampling) -> float:
    """[2, n] and [2, m] numerators and denominators of texts -> two-sided p of equal ratios of sums.

    A permutation test that shuffles all texts between the two; the observed order counts.
    """
    both, n = np.concatenate([a, b], axis=1), a.shape[1]

    def gap(first: Array) -> Array:
        rest = both.sum(axis=1)[:, None] - first
        return np.abs(first[0] / first[1] - rest[0] / rest[1])

    generator, observed, extreme = np.random.default_rng(settings.seed), float(gap(a.sum(axis=1)[:, None])[0]), 1
    for start in range(0, settings.num_resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, settings.num_resamples - start)
        chosen = generator.random((size, both.shape[1])).argsort(axis=1)[:, :n]
        extreme += int((gap(both[:, chosen].sum(axis=2)) >= observed - 1e-12 * (1 + observed)).sum())
    return extreme / (settings.num_resamples + 1)


def nearer_to_own(parts: Parts, settings: Resampling) -> dict[str, Difference]:
    """Part -> similarity to its own reference minus that to other voices, within texts; p with Holm's correction.

    Parts with both similarities in at least two texts.
    """
    own, others = (next(m for m in METRICS if m.name == name) for name in ("similarity", "similarity_to_others"))
    found = {}
    for name, rows in parts.items():
        scored = [row for row in rows if None not in (row["similarity"], row["similarity_to_others"])]
        pairs = [_by_text(metric, scored) for metric in (others, own)]
        if len(pairs[0]) > 1:
            a, b = ([x for x, _ in table.values()] for table in pairs)
            found[name] = paired_difference(a, b, settings=settings)
    adjusted = holm({name: difference.p for name, difference in found.items()})
    return {name: difference._replace(p=adjusted[name]) for name, difference in found.items()}


def detectable(rows: Sequence[Row], metric: Metric = WER) -> Detectable:
    """What a paired comparison of two runs on these texts finds in 80 % of cases, at p = 0.05, of one metric.

    Calculated: the quantiles of Student's t times the standard error of the difference, which is due to the samples'
    own spread within texts. So it holds for a change that moves all texts alike; without texts with several samples
    the spread between texts takes its place, which is an upper bound.
    """
    samples = samples_of(metric, [row for row in rows if row["status"] not in NOT_SCORED])
    n = len(samples)
    if n < LEAST_SHARED:  # the smallest p of the permutation test is 2 / 2^n
        return Detectable(None, n, 0)
    means = {script: mean_sample(some) for script, some in samples.items()}
    total = sum(y for _, y in means.values())
    ratio = sum(x for x, _ in means.values()) / total
    moved = {s: np.array([(x - ratio * y) * n / total for _, x, y in some]) for s, some in samples.items()}
    several = [values for values in moved.values() if len(values) > 1]
    if several:
        freedom = sum(len(values) - 1 for values in several)
        within = sum(float(((values - values.mean()) ** 2).sum()) for values in several) / freedom
        variance = 2 * within * sum(1 / len(values) for values in moved.values()) / n**2
    else:
        freedom = n - 1
        variance = 2 * float(np.var([values.mean() for values in moved.values()], ddof=1)) / n
    difference = power_factor(ALPHA, freedom) * variance**0.5 if variance > 0 else None  # there is no error to go by
    return Detectable(difference, n, len(several))


def _by_text(metric: Metric, rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Text -> the mean numerator and denominator of its samples."""
    scored = [row | {"script": row["text"]} for row in rows if row["status"] not in NOT_SCORED]
    return {text: mean_sample(some) for text, some in samples_of(metric, scored).items()}
