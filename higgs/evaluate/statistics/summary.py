"""Utterance records -> rates and means with intervals, one record for each condition (column "group").

Word errors are scored in two ways: all errors over all words with Whisper's text normaliser, and SeedTTS-Eval's mean of
utterances.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from higgs.evaluate.report.gather import RECORDED
from higgs.evaluate.statistics.intervals import Interval, Resampling, bootstrap_interval, rate_interval, seed_share
from higgs.evaluate.utterances import MISSING, NOT_SCORED, SILENT, TOO_LONG, TRANSCRIBED, UNREADABLE
from higgs.workflow.tables import Row, grouped


@dataclass(frozen=True)
class Metric:
    """A column of the summary: the mean of the utterances' `column`, or its sum over that of `per`."""

    name: str
    column: str
    title: str
    better: str  # "lower", "higher", or "" where neither is
    judge: str = ""  # its kind
    per: str = ""
    scale: float = 1.0
    rate: bool = False  # the share of utterances with True
    unseen: float | None = None  # the largest value of a run-away until the frame cap; None where others are as large


# The cap of 400 frames is 16 s, five times a sentence of nine words: five errors for each of its words.
RUN_AWAY = 5.0
RECOGNISER, SPEAKER, NATURALNESS = "recogniser", "speaker", "naturalness"
METRICS = (
    Metric("wer_percent", "word_errors", "WER %, all errors over all words, Whisper's normaliser",
           "lower", RECOGNISER, per="words", scale=100, unseen=100 * RUN_AWAY),
    Metric("cer_percent", "character_errors", "CER %, all errors over all characters, Whisper's normaliser",
           "lower", RECOGNISER, per="characters", scale=100, unseen=100 * RUN_AWAY),
    Metric("seedtts_wer_percent", "seedtts_wer_percent", "WER %, mean of utterances, SeedTTS-Eval's scoring",
           "lower", RECOGNISER, unseen=100 * RUN_AWAY),
    Metric("above_50_percent", "above_50", "utterances with WER above 50 %", "lower", RECOGNISER, scale=100, rate=True),
    Metric("similarity", "similarity", "similarity to the reference voice", "higher", SPEAKER),
    Metric("similarity_to_others", "similarity_to_others", "similarity to other voices", "", SPEAKER),
    Metric("mos_overall", "mos_overall", "predicted overall quality (1 to 5)", "higher", NATURALNESS),
    Metric("mos_signal", "mos_signal", "predicted speech quality (1 to 5)", "higher", NATURALNESS),
    Metric("mos_background", "mos_background", "predicted quietness of background (1 to 5)", "higher", NATURALNESS),
    Metric("mos_p808", "mos_p808", "predicted quality, P.808 (1 to 5)", "higher", NATURALNESS),
    Metric("length_ratio", "length_ratio", "duration ratio, 1 is the speaking rate of recordings", "", unseen=RUN_AWAY),
    Metric("silence_share", "silence_share", "share of silence", ""),
    Metric("cap_hit_percent", "cap_hit", "stopped by the frame cap, %", "lower", scale=100, rate=True),
)  # fmt: skip
ENDS = ("", "_low", "_high")
LENGTHS = ("up to 5 words", "6 to 12 words", "13 words and more")  # the shortest first
Sample = tuple[int | None, float, float]  # seed, numerator, denominator


def samples_of(metric: Metric, rows: Iterable[Row]) -> dict[str, list[Sample]]:
    """Script -> its samples that have a value of this metric."""
    samples: dict[str, list[Sample]] = {}
    for row in rows:
        if row.get(metric.column) is not None and (not metric.per or row.get(metric.per)):
            total = float(row[metric.per]) if metric.per else 1.0
            samples.setdefault(row["script"], []).append((row["seed"], metric.scale * float(row[metric.column]), total))
    return samples


def mean_sample(samples: Sequence[Sample]) -> tuple[float, float]:
    """The mean numerator and denominator, so that a text counts once, however many samples it has."""
    return sum(x for _, x, _ in samples) / len(samples), sum(y for _, _, y in samples) / len(samples)


def measure(metric: Metric, rows: Sequence[Row], settings: Resampling, shared_by: float = 0) -> Interval | None:
    """The metric over the rows, with its 95 % interval; None where no row has it.

    With one script there are no ends, except of a rate. For generated speech the interval allows for an unseen
    run-away: one sample of a text with a typical number of them. Parts of a system share it: it is divided over
    `shared_by` texts.
    """
    samples = samples_of(metric, rows)
    if not samples:
        return None
    x, y = (list(values) for values in zip(*map(mean_sample, samples.values()), strict=True))
    counts = [len(some) for some in samples.values()]
    if metric.rate:
        share = rate_interval([v / metric.scale for v in x], counts)
        return Interval(*(metric.scale * end for end in share))
    estimate, unseen = sum(x) / sum(y), None
    if len(samples) < 2:
        return Interval(estimate, None, None)
    if metric.unseen is not None and not all(row["group"].startswith(RECORDED) for row in rows):
        one_sample = metric.unseen * sum(k**-2 for k in counts) / sum(1 / k for k in counts)
        unseen = estimate + (one_sample - estimate) * len(samples) / max(len(samples), shared_by)
    return bootstrap_interval(x, y if metric.per else None, settings, unseen)


def share_of_seeds(rows: Sequence[Row]) -> tuple[float | None, int]:
    """-> the share of the seed in the variance of the WER of a sample, and how many texts have several samples."""
    samples = samples_of(METRICS[0], rows)
    if not (several := sum(len(some) > 1 for some in samples.values())):
        return None, 0
    every = [(x, y, script) for script, some in samples.items() for _, x, y in some]
    return seed_share(*zip(*every, strict=True)), several


def _summary(name: str, rows: Sequence[Row], settings: Resampling, shared_by: float) -> Row:
    """Counts of each status, then each metric with `_low` and `_high`."""
    statuses = [row["status"] for row in rows]
    scored = [row for row in rows if row["status"] not in NOT_SCORED]
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    official = [row["seedtts_wer_percent"] / 100 for row in scored if row["seedtts_wer_percent"] is not None]
    below = [rate for rate in official if rate <= 0.5]  # without run-aways
    summary: Row = {"group": name, "n": len(rows), "scripts": len({row["script"] for row in rows})}
    summary |= {"seeds": ", ".join(map(str, seeds)), "heard": sum(status in TRANSCRIBED for status in statuses)}
    summary |= {status.replace(" ", "_"): statuses.count(status) for status in (MISSING, SILENT, UNREADABLE, TOO_LONG)}
    summary |= {"not_scored": len(rows) - len(scored), "empty_transcripts": sum(row["heard"] == "" for row in scored)}
    summary |= {"above_50": sum(bool(row["above_50"]) for row in scored), "cap_hits": _count(scored, "cap_hit")}
    summary |= {"retried": _count(scored, "retries"), "words": sum(row["words"] or 0 for row in scored)}
    summary["seconds"] = sum(row["seconds"] or 0.0 for row in scored)
    for metric in METRICS:
        interval = measure(metric, scored, settings, shared_by) or (None, None, None)
        summary |= {f"{metric.name}{end}": value for end, value in zip(ENDS, interval, strict=True)}
    return summary | {"seedtts_wer_below_50_percent": 100 * (sum(below) / len(below)) if below else None}


def summarise(
    rows: Sequence[Row], resamples: int, seed: int, key: Callable[[Row], str] = itemgetter("group")
) -> list[Row]:
    """One summary for each value of `key`, in the order of first appearance."""
    systems, settings = grouped(rows, itemgetter("group")), Resampling(resamples, seed)
    shared_by = {name: _texts_for_a_run_away(some) for name, some in systems.items()}
    return [_summary(name, some, settings, shared_by[some[0]["group"]]) for name, some in grouped(rows, key).items()]


def _texts_for_a_run_away(rows: Sequence[Row]) -> float:
    """How many texts of a system there are for half a run-away, counting those that were observed."""
    ran = sum(bool(r["cap_hit"]) or (r["word_errors"] or 0) > (r["words"] or 0) for r in rows)
    return len({row["script"] for row in rows}) / (1 + 2 * ran)


def length_class(row: Row) -> str:
    """A class of text lengths, to summarise by."""
    words = row["words"] or 0
    return LENGTHS[(words > 5) + (words > 12)]


def with_interval(row: Row, metric: Metric) -> str | None:
    """ "estimate [low, high]", or "estimate (one text)"; None where the summary has no such metric."""
    estimate, low, high = (row[f"{metric.name}{end}"] for end in ENDS)
    if estimate is None:
        return None
    digits = 1 if metric.name.endswith("percent") else 2
    if low is None:
        return f"{estimate:.{digits}f} (one text)"
    interval = "" if low == high else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{estimate:.{digits}f}{interval}"


def _count(rows: Sequence[Row], column: str) -> int | None:
    """How many rows have a true or positive value; None where no row has any."""
    values = [row[column] for row in rows if row[column] is not None]
    return sum(bool(value) for value in values) if values else None
