"""Rows of utterances -> rates and means with intervals, one row for each group.

Word errors come in two scorings that never share a column: all errors over all words, as Whisper
normalises text, and SeedTTS-Eval's mean of utterances. Every title names its judge.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from higgs.evaluate.metrics import seedtts
from higgs.evaluate.report.gather import RECORDED
from higgs.evaluate.statistics.intervals import Interval, bootstrap_interval, mean_interval, rate_interval, seed_share
from higgs.evaluate.utterances import HEARD, MISSING, NOT_SCORED, SILENT, TOO_LONG, UNREADABLE
from higgs.workflow.tables import Row


@dataclass(frozen=True)
class Metric:
    """A column of the summary: the mean of a column of rows, or the ratio of the sums of two.

    `judge` is the kind of judge that it comes from; `better` is "lower", "higher", or "" where
    neither is. A rate is the share of rows that say True. `unseen` is what a take that runs away until
    the frame cap is worth at most, None where it is worth no more than another.
    """

    name: str
    column: str
    title: str
    better: str
    judge: str = ""
    per: str = ""
    scale: float = 1.0
    rate: bool = False
    unseen: float | None = None


# The cap of 400 frames is 16 s, five times a sentence of nine words: five errors for each of its words.
RUN_AWAY = 5.0
LISTENERS, VOICES, SCORES = "recogniser", "speaker", "naturalness"
METRICS = (
    Metric("wer_percent", "word_errors", "WER %, all errors over all words, Whisper's normaliser",
           "lower", LISTENERS, per="words", scale=100, unseen=100 * RUN_AWAY),
    Metric("cer_percent", "character_errors", "CER %, all errors over all characters, Whisper's normaliser",
           "lower", LISTENERS, per="characters", scale=100, unseen=100 * RUN_AWAY),
    Metric("seedtts_wer_percent", "seedtts_wer_percent", "WER %, mean of utterances, SeedTTS-Eval's scoring",
           "lower", LISTENERS, unseen=100 * RUN_AWAY),
    Metric("above_50_percent", "above_50", "utterances with WER above 50 %", "lower", LISTENERS, scale=100, rate=True),
    Metric("similarity", "similarity", "similarity to the reference voice", "higher", VOICES),
    Metric("similarity_to_others", "similarity_to_others", "similarity to other voices", "", VOICES),
    Metric("mos_overall", "mos_overall", "predicted overall quality (1 to 5)", "higher", SCORES),
    Metric("mos_signal", "mos_signal", "predicted speech quality (1 to 5)", "higher", SCORES),
    Metric("mos_background", "mos_background", "predicted quietness of background (1 to 5)", "higher", SCORES),
    Metric("mos_p808", "mos_p808", "predicted quality, P.808 (1 to 5)", "higher", SCORES),
    Metric("length_ratio", "length_ratio", "length, 1 is the pace of the recordings", "", unseen=RUN_AWAY),
    Metric("silence_share", "silence_share", "share of silence", ""),
    Metric("cap_hit_percent", "cap_hit", "stopped by the frame cap, %", "lower", scale=100, rate=True),
)  # fmt: skip


def takes_of(metric: Metric, rows: Iterable[Row]) -> dict[str, list[tuple[int | None, float, float]]]:
    """Script -> seed, numerator and denominator of each take that has a value of this metric."""
    takes: dict[str, list[tuple[int | None, float, float]]] = {}
    for row in rows:
        if row.get(metric.column) is not None and (not metric.per or row.get(metric.per)):
            x, y = metric.scale * float(row[metric.column]), 1.0
            y = float(row[metric.per]) if metric.per else y
            takes.setdefault(row["script"], []).append((row["seed"], x, y))
    return takes


def mean_take(takes: Sequence[tuple[int | None, float, float]]) -> tuple[float, float]:
    """The mean numerator and denominator: a text counts once, however often it was spoken.

    With equal numbers of takes that is the ratio of all sums. With three takes of some texts and one of
    the rest, sums would give a third of the texts the weight of three, and the variance with it.
    """
    return sum(x for _, x, _ in takes) / len(takes), sum(y for _, _, y in takes) / len(takes)


def measure(
    metric: Metric, rows: Sequence[Row], resamples: int, seed: int, cluster: str = "script", among: float = 0
) -> Interval | None:
    """The metric over the rows, with its 95 % interval; None where no row has it.

    What is drawn again are clusters: scripts with all of their takes, or what another column names
    ("speaker"). With one cluster the ends are the estimate. People do not run away: only where speech
    was generated does the interval allow for what was not seen, one take of a text of usual many. Rows
    that are a part of what a system spoke share that with the rest: it is spread over `among` texts,
    since run-aways are taken to be as likely in every part.
    """
    takes = takes_of(metric, rows)
    if not takes:
        return None
    x, y = (list(column) for column in zip(*map(mean_take, takes.values()), strict=True))
    counts = [len(some) for some in takes.values()]
    names = {row["script"]: row[cluster] for row in rows}
    clusters = None if cluster == "script" else [names[script] for script in takes]
    if metric.rate:
        share = rate_interval([v / metric.scale for v in x], counts, clusters=clusters)
        return Interval(*(metric.scale * v for v in (share.estimate, share.low, share.high)), 0.95)
    estimate, unseen = sum(x) / sum(y), None
    if len(set(clusters or takes)) < 2:
        return Interval(estimate, estimate, estimate, 0.95)
    if metric.unseen is not None and not all(row["group"].startswith(RECORDED) for row in rows):
        one_take = metric.unseen * sum(k**-2 for k in counts) / sum(1 / k for k in counts)
        unseen = estimate + (one_take - estimate) * len(takes) / max(len(takes), among)
    if metric.per:
        return bootstrap_interval(x, y, resamples, seed, clusters=clusters, unseen=unseen)
    return mean_interval(x, resamples, seed, clusters=clusters, unseen=unseen)


def share_of_seeds(rows: Sequence[Row]) -> tuple[float | None, int]:
    """-> the share of the seed in the variance of the WER of a take, and how many texts have several."""
    takes = takes_of(METRICS[0], rows)
    every = [(script, x, y) for script, some in takes.items() for _, x, y in some]
    several = sum(len(some) > 1 for some in takes.values())
    if not several:
        return None, 0
    scripts, x, y = zip(*every, strict=True)
    return seed_share(x, y, scripts), several


def summarise_group(
    group: str, rows: Sequence[Row], resamples: int, seed: int, cluster: str = "script", among: float = 0
) -> Row:
    """One row: how many there are and what became of them, then each metric with `_low` and `_high`."""
    states = [row["status"] for row in rows]
    judged = [row for row in rows if row["status"] not in NOT_SCORED]
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    official = [r["seedtts_wer_percent"] for r in judged if r["seedtts_wer_percent"] is not None]
    summary: Row = {
        "group": group,
        "n": len(rows),
        "scripts": len({row["script"] for row in rows}),
        "seeds": ", ".join(map(str, seeds)),
        "heard": sum(state in HEARD for state in states),
        "missing": states.count(MISSING),
        "silent": states.count(SILENT),
        "unreadable": states.count(UNREADABLE),
        "too_long": states.count(TOO_LONG),
        "not_scored": len(rows) - len(judged),
        "empty_transcripts": sum(row["heard"] == "" for row in judged),
        "above_50": sum(bool(row["above_50"]) for row in judged),
        "cap_hits": _total(judged, "cap_hit"),
        "retried": _total(judged, "retries", lambda count: count > 0),
        "words": sum(row["words"] or 0 for row in judged),
        "seconds": sum(row["seconds"] or 0.0 for row in judged),
    }
    for metric in METRICS:
        found = measure(metric, judged, resamples, seed, cluster, among)
        summary[metric.name] = found.estimate if found else None
        summary[f"{metric.name}_low"] = found.low if found else None
        summary[f"{metric.name}_high"] = found.high if found else None
    below = seedtts.score([rate / 100 for rate in official]).wer_below_50 if official else None
    summary["seedtts_wer_below_50_percent"] = None if below is None else 100 * below
    return summary


def summarise(
    rows: Sequence[Row],
    resamples: int,
    seed: int,
    key: Callable[[Row], str] = lambda row: row["group"],
    cluster: str = "script",
) -> list[Row]:
    """One summary for each group, in the order in which groups first appear; `key` says which group a row is in."""
    groups: dict[str, list[Row]] = {}
    systems: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
        systems.setdefault(row["group"], []).append(row)
    among = {name: _texts_for_a_run_away(some) for name, some in systems.items()}
    return [
        summarise_group(name, some, resamples, seed, cluster, among[some[0]["group"]]) for name, some in groups.items()
    ]


def _texts_for_a_run_away(rows: Sequence[Row]) -> float:
    """How many texts a system spoke for half a run-away: all of them, and that for each that was seen."""
    ran = sum(bool(r["cap_hit"]) or (r["word_errors"] or 0) > (r["words"] or 0) for r in rows)
    return len({row["script"] for row in rows}) / (1 + 2 * ran)


def length_class(row: Mapping[str, Any]) -> str:
    """How long the text of a row is, as a group."""
    words = row["words"] or 0
    return "up to 5 words" if words <= 5 else "6 to 12 words" if words <= 12 else "13 words and more"


def titles(judges: Mapping[str, str | None]) -> dict[str, str]:
    """Metric -> the title of its column, which names the judge (`Panel.names(short=True)`)."""
    return {
        metric.name: f"{metric.title} ({judges[metric.judge]})" if judges.get(metric.judge) else metric.title
        for metric in METRICS
    }


def with_interval(row: Row, metric: Metric) -> str | None:
    """ "estimate [low, high]" as people read it; None where the group has no such metric."""
    estimate, low, high = (row[f"{metric.name}{end}"] for end in ("", "_low", "_high"))
    if estimate is None:
        return None
    digits = 1 if metric.scale == 100 or metric.name.endswith("percent") else 2
    if low == high:
        return f"{estimate:.{digits}f}"
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _total(rows: Sequence[Row], column: str, holds: Callable[[Any], bool] = bool) -> int | None:
    """How many rows hold; None where no row says."""
    known = [row[column] for row in rows if row[column] is not None]
    return sum(map(holds, known)) if known else None
