"""Intervals and tests: by hand, by other formulas, and by how often they are right on made-up data."""

import itertools
import math

import numpy as np
import pytest

from higgs.evaluate.simulate import Process, coverage, draw, power
from higgs.evaluate.statistics import (
    bootstrap_interval,
    holm,
    mean_interval,
    paired_difference,
    wilson_interval,
)

TRIALS = 2000  # `higgs.evaluate.simulate.study` is the full run


def test_bootstrap_of_equal_utterances_has_no_width():
    interval = bootstrap_interval([1, 2, 3], [10, 20, 30])
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_bootstrap_weighs_utterances_by_length():
    assert bootstrap_interval([2, 0], [1, 7]).estimate == 0.25


def test_bootstrap_agrees_with_the_normal_approximation():
    errors = np.random.default_rng(1).binomial(10, 0.2, size=400)
    interval = bootstrap_interval(errors, np.full(400, 10))
    half = 1.96 * errors.std() / 10 / math.sqrt(400)
    assert interval.low == pytest.approx(interval.estimate - half, abs=half / 10)
    assert interval.high == pytest.approx(interval.estimate + half, abs=half / 10)
    narrower = bootstrap_interval(errors, np.full(400, 10), confidence=0.5)
    assert interval.low < narrower.low < interval.estimate < narrower.high < interval.high


def test_bootstrap_of_two_utterances_by_hand():
    # The resampled ratio is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1], [1, 1], confidence=0.95).low == 0
    assert bootstrap_interval([0, 1], [1, 1], confidence=0.4).low == 0.5
    assert bootstrap_interval([0, 1], [1, 1], confidence=0.4).high == 0.5


def test_bootstrap_repeats_and_keeps_pairs_together():
    errors, totals = [0, 3, 1, 9, 2], [10, 12, 7, 9, 4]
    first, again, other = (bootstrap_interval(errors, totals, 500, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    # every utterance has the rate 1/2: drawn as pairs, so has every resample
    paired = bootstrap_interval([1, 50], [2, 100])
    assert (paired.low, paired.high) == (0.5, 0.5)


def test_bootstrap_refuses():
    for errors, totals, message in (
        ([1], [2], "at least 2"),
        ([1, 2], [2], "shapes"),
        ([1, 2], [2, 0], "positive"),
        ([1, -1], [2, 2], "negative"),
        ([1, math.nan], [2, 2], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(errors, totals)
    with pytest.raises(ValueError, match="num_resamples=0"):
        bootstrap_interval([1, 2], [2, 2], num_resamples=0)


def test_clusters_are_drawn_whole():
    # Three takes of each of 50 texts that agree to the digit: no more than 50 texts are known.
    errors = np.random.default_rng(0).binomial(10, 0.2, size=50)
    texts = bootstrap_interval(errors, np.full(50, 10))
    takes = bootstrap_interval(
        np.tile(errors, 3), np.full(150, 10), clusters=[*map(str, range(50))] * 3
    )
    assert (takes.estimate, takes.low, takes.high) == pytest.approx(
        (texts.estimate, texts.low, texts.high)
    )
    apart = bootstrap_interval(np.tile(errors, 3), np.full(150, 10))
    assert (apart.high - apart.low) * math.sqrt(3) == pytest.approx(texts.high - texts.low, rel=0.1)
    with pytest.raises(ValueError, match="a label for each of 3"):
        bootstrap_interval([1, 2, 3], [4, 5, 6], clusters=["a"])
    with pytest.raises(ValueError, match="at least 2 utterances, got 1"):
        bootstrap_interval([1, 2, 3], [4, 5, 6], clusters=["a"] * 3)


def test_bca_leans_to_the_long_tail_and_agrees_where_there_is_none():
    skewed = np.zeros(60)
    skewed[[3, 17, 25, 40, 51, 55]] = 1, 2, 2, 3, 5, 8
    percentile, bca = (
        bootstrap_interval(skewed, np.full(60, 10), method=m) for m in ("percentile", "bca")
    )
    assert bca.low > percentile.low and bca.high > percentile.high
    even = np.random.default_rng(0).normal(5, 1, size=200)
    percentile, bca = (mean_interval(even, method=m) for m in ("percentile", "bca"))
    assert (bca.low, bca.high) == pytest.approx((percentile.low, percentile.high), abs=0.02)
    equal = mean_interval([3.0] * 10, method="bca")
    assert (equal.estimate, equal.low, equal.high) == (3, 3, 3)
    with pytest.raises(ValueError, match="percentile, bca, got 'normal'"):
        mean_interval([1, 2], method="normal")


def test_bca_by_its_formula():
    # Efron and Tibshirani 1993, chapter 14, written out for a mean; resamples of 4 values are all 256 of them.
    from statistics import NormalDist

    values, normal = np.array([0.0, 0.0, 1.0, 5.0]), NormalDist()
    means = np.array([np.mean(some) for some in itertools.product(values, repeat=4)])
    bias = normal.inv_cdf(((means < 1.5).mean() + (means <= 1.5).mean()) / 2)
    left_out = np.array([np.delete(values, i).mean() for i in range(4)])
    d = left_out.mean() - left_out
    a = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    shares = [normal.cdf(bias + (bias + z) / (1 - a * (bias + z))) for z in (-1.0, 1.0)]
    found = mean_interval(values, 100_000, confidence=normal.cdf(1) - normal.cdf(-1), method="bca")
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, shares)), abs=0.01)


def test_means_may_be_negative():
    found = mean_interval([-1.0, -2.0, -3.0])
    assert found.low < found.estimate == -2 < found.high < 0


def test_two_copies_do_not_differ():
    errors, words = [3, 0, 2, 9, 0, 1, 0, 0, 4, 1, 0, 2, 0, 5, 7, 0], [9] * 16
    same = paired_difference(errors, errors, words, words)
    assert (same.estimate, same.low, same.high, same.p, same.n) == (0, 0, 0, 1.0, 16)
    short = paired_difference([0.1, 0.2, 0.7], [0.1, 0.2, 0.7])
    assert (short.estimate, short.p) == (0, 1.0)


def test_permutation_of_few_is_exact():
    # All differences point one way: of 2^5 ways to swap labels, two are as extreme.
    found = paired_difference([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert (found.estimate, found.p, found.n) == (3, 2 / 32, 5)
    # By hand, ratios with unequal totals: every way to swap, one by one.
    a, b, t, u = [1, 0, 4], [2, 3, 4], [10, 5, 8], [9, 5, 20]
    ways = []
    for swap in itertools.product((0, 1), repeat=3):
        pairs = [
            ((y, v), (x, w)) if s else ((x, w), (y, v))
            for s, x, y, w, v in zip(swap, a, b, t, u, strict=True)
        ]
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        ways.append(
            sum(x for x, _ in second) / sum(w for _, w in second)
            - sum(x for x, _ in first) / sum(w for _, w in first)
        )
    found = paired_difference(a, b, t, u)
    assert found.estimate == pytest.approx(ways[0])
    assert found.p == sum(abs(way) >= abs(ways[0]) - 1e-12 for way in ways) / 8


def test_paired_interval_is_that_of_the_differences():
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 5, size=300)  # how hard the text is: far more than systems differ
    a, b = (hard + generator.normal(shift, 1, size=300) for shift in (0, 0.3))
    found = paired_difference(a, b)
    half = 1.96 * (b - a).std() / math.sqrt(300)
    assert found.low == pytest.approx(found.estimate - half, abs=half / 10)
    assert found.high == pytest.approx(found.estimate + half, abs=half / 10)
    assert found.p < 0.01
    back = paired_difference(b, a)
    assert (back.estimate, back.p) == (pytest.approx(-found.estimate), found.p)


def test_takes_of_a_text_are_one_pair():
    a, b = [1, 2, 3, 4] * 3, [2, 2, 4, 3] * 3
    takes = paired_difference(a, b, clusters=[*"wxyz"] * 3)
    texts = paired_difference(a[:4], b[:4])
    assert (takes.n, takes.p, takes.estimate) == (4, texts.p, texts.estimate)
    with pytest.raises(ValueError, match="same utterances, got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 and 0.04 * 1, none below the one before
    assert holm({"b": 0.02, "a": 0.01, "d": 0.04, "c": 0.03}) == pytest.approx(
        {"b": 0.06, "a": 0.04, "d": 0.06, "c": 0.06}
    )
    assert holm({"a": 1.0, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_wilson_by_hand():
    # Wilson 1927 as Newcombe 1998 tabulates it, his examples 1 to 4.
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson_interval(successes, n)
        assert (found.estimate, found.low, found.high) == pytest.approx(
            (successes / n, low, high), abs=5e-5
        )
    assert wilson_interval(20, 20).high == 1.0
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson_interval(3, 2)


# ---- made-up word errors


def test_made_up_errors_look_like_word_errors():
    process = Process()
    (errors,), words = draw([process], 1, 200_000, np.random.default_rng(0))
    assert errors.sum() / words.sum() == pytest.approx(process.wer, rel=0.02)
    assert (errors == 0).mean() > 0.5  # three takes without an error
    assert 0.01 < (errors > words / 3).mean() < 0.1  # about three takes times 1.5 %
    assert errors.max() / words[0, errors[0].argmax()] > 1


def test_intervals_hold_the_truth():
    """The documentation names these: with 40 texts and a run-away now and then an interval promises too much."""
    few, many = coverage(40, TRIALS), coverage(400, TRIALS)
    for row in (few, many):
        print({name: round(value, 1) for name, value in row.items()})
    assert many["percentile_coverage_percent"] >= 93
    assert many["bca_coverage_percent"] >= 93
    assert 75 < few["percentile_coverage_percent"] < few["bca_coverage_percent"] < 90
    usual = coverage(40, TRIALS, process=Process(run_away=1e-9))
    assert usual["bca_coverage_percent"] > 90


def test_paired_test_keeps_its_size_and_has_its_power():
    rows = [power(400, change, TRIALS) for change in ({}, {"run_away": 0.03}, {"factor": 2.0})]
    for row in rows:
        print({name: value for name, value in row.items()})
    size, *found = rows
    assert size["true_difference_points"] == pytest.approx(0, abs=0.1)
    assert 4 <= size["found_percent"] <= 6
    for row in found:
        assert row["found_percent"] == pytest.approx(row["theory_percent"], abs=5)
        assert 30 < row["theory_percent"] < 90
