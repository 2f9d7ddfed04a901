"""What word errors of a speech generator look like, made up, so that the truth is known.

Most utterances are heard without an error, some have a few, and now and then a take runs away until
the frame cap ends it. On such data the intervals and the tests of `higgs.evaluate.statistics` show
what they are worth: how often an interval holds the truth, how often a test finds a difference that
is there, or none that is not.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from higgs.evaluate.statistics import METHODS, NORMAL, Array, interval_ends, permutation_p


@dataclass(frozen=True)
class Process:
    """How errors come about. Words, and how hard a text is, belong to the text; all else to the take."""

    seeds: int = 3
    words: tuple[int, int] = (4, 20)
    never_wrong: float = 0.55  # share of texts that are always understood
    difficulty: tuple[float, float] = (
        0.8,
        9.0,
    )  # Beta: chance of an error in each word of the rest
    factor: float = 1.0  # on that chance: how much worse one system is than another
    run_away: float = 0.015  # share of takes
    run_away_spread: float = 30.0  # Beta over texts with that mean: some texts provoke run-aways
    run_away_factor: tuple[int, int] = (1, 5)  # errors for each word, as many as the cap lets in

    @property
    def wer(self) -> float:
        """What the corpus WER of infinitely many utterances is, as a share; exact for factors up to 1."""
        alpha, beta = self.difficulty
        usual = (1 - self.never_wrong) * self.factor * alpha / (alpha + beta)
        return (1 - self.run_away) * usual + self.run_away * sum(self.run_away_factor) / 2


def draw(
    systems: list[Process], trials: int, n: int, generator: np.random.Generator
) -> tuple[list[Array], Array]:
    """-> for each system errors [trials, n], and words [trials, n], both summed over seeds.

    Systems speak the same texts: words and difficulty are those of the first, whatever the others say.
    """
    texts = systems[0]
    words = generator.integers(texts.words[0], texts.words[1] + 1, size=(trials, n))
    chance = generator.beta(*texts.difficulty, size=(trials, n))
    chance = np.where(generator.random((trials, n)) < texts.never_wrong, 0.0, chance)
    errors = [_errors(system, words, chance, generator) for system in systems]
    return errors, (words * texts.seeds).astype(np.float64)


def _errors(
    system: Process, words: np.ndarray, chance: Array, generator: np.random.Generator
) -> Array:
    spread, mean = system.run_away_spread, system.run_away
    tendency = generator.beta(spread * mean, spread * (1 - mean), size=words.shape)
    least, most = system.run_away_factor
    total = np.zeros(words.shape)
    for _ in range(system.seeds):
        usual = generator.binomial(words, np.minimum(1.0, chance * system.factor))
        lost = words * generator.integers(least, most + 1, size=words.shape)
        total += np.where(generator.random(words.shape) < tendency, lost, usual)
    return total


def coverage(
    n: int,
    trials: int = 5000,
    num_resamples: int = 1000,
    seed: int = 0,
    process: Process = Process(),
) -> dict[str, Any]:
    """How often 95 % intervals of the WER of n utterances hold the truth, by method."""
    (errors,), words = draw([process], trials, n, np.random.default_rng([seed, n]))
    row: dict[str, Any] = {"n": n, "trials": trials, "true_wer_percent": 100 * process.wer}
    for method in METHODS:
        low, high = interval_ends(errors, words, num_resamples, seed, 0.95, method)
        held = (low <= process.wer) & (process.wer <= high)
        row[f"{method}_coverage_percent"] = 100 * float(held.mean())
        row[f"{method}_width_points"] = 100 * float((high - low).mean())
    return row


def power(
    n: int,
    change: dict[str, float],
    trials: int = 5000,
    num_resamples: int = 1000,
    seed: int = 0,
    process: Process = Process(),
) -> dict[str, Any]:
    """How often the paired test finds (p <= 0.05) that B is `process` with `change`; without one, its size.

    Theory: the normal approximation from the mean and the standard deviation of the paired
    differences, which are measured on 400,000 texts.
    """
    systems = [process, replace(process, **change)]
    (a, b), words = draw(systems, trials, n, np.random.default_rng([seed, n]))
    p = permutation_p(np.stack([a, words, b, words]), num_resamples, seed)
    (many_a, many_b), many_words = draw(systems, 1, 400_000, np.random.default_rng([seed, 1]))
    differences = many_b - many_a
    effect = math.sqrt(n) * float(differences.mean() / differences.std()) if change else 0.0
    z = NORMAL.inv_cdf(0.975)
    return {
        "n": n,
        "trials": trials,
        "change": ", ".join(f"{name} {value:g}" for name, value in change.items()) or "none",
        "true_difference_points": 100 * float(differences.sum() / many_words.sum()),
        "found_percent": 100 * float((p <= 0.05).mean()),
        "theory_percent": 100 * (NORMAL.cdf(effect - z) + NORMAL.cdf(-effect - z)),
    }


CHANGES: tuple[dict[str, float], ...] = ({}, {"run_away": 0.03}, {"factor": 2.0}, {"factor": 3.0})


def study(trials: int = 10_000, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """The full run, a minute on one core -> rows of coverage, rows of the paired test."""
    covered = [coverage(n, trials, seed=seed) for n in (40, 120, 400, 1000)]
    return covered, [power(n, change, trials, seed=seed) for n in (40, 400) for change in CHANGES]
