"""What the evaluate notebook shows beside the answer and the utterances: tables, and its numbers in two files."""

import html
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from operator import itemgetter
from typing import Any

from IPython.display import HTML

from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.long_form import ACCURACY
from higgs.evaluate.report.gather import GENERATED, RECONSTRUCTED, RECORDED, Results
from higgs.evaluate.statistics.summary import LENGTHS, METRICS, length_class, summarise, with_interval
from higgs.evaluate.utterances import FAILED, NOT_SCORED
from higgs.files import sha256
from higgs.workflow.outputs import table
from higgs.workflow.tables import Row, grouped, mean_known, read_rows

PACKAGES = ("torch", "transformers", "onnxruntime", "jiwer")
COUNTS = {
    "n": "utterances", "scripts": "texts", "seeds": "seeds", "words": "words", "seconds": "seconds of audio",
    "missing": "missing", "silent": "silent", "unreadable": "unreadable", "too_long": "too long, judged in part",
    "not_scored": "not scored: a fault of the set or the judge", "empty_transcripts": "empty hypothesis",
    "above_50": "WER above 50 %", "cap_hits": "stopped by the frame cap", "retried": "generated again after a run-away",
}  # fmt: skip
BRIEF = {
    "wer_percent": "WER %", "cer_percent": "CER %", "similarity": "similarity", "similarity_to_others": "to others",
    "mos_overall": "quality", "length_ratio": "duration", "cap_hit_percent": "cap %",
}  # fmt: skip
BY_SPEAKER = {
    "speaker": "speaker", "turns": "turns", "wer_percent": "WER %", "similarity": "similarity",
    "similarity_within": "within", "dissimilarity": "apart",
}  # fmt: skip
SHORT = {RECORDED: "recordings", RECONSTRUCTED: "codec", GENERATED: "generated"}
FLAT = (
    "wer_percent", "cer_percent", "seedtts_wer_percent", "above_50_percent", "similarity", "similarity_to_others",
    "mos_overall", "length_ratio", "cap_hit_percent",
)  # fmt: skip
# What `dvc exp show` lists: the anchors, and what an experiment changes.
HEADLINE = (
    "recordings_wer_percent", "codec_wer_percent", "codec_similarity", "generated_wer_percent",
    "generated_above_50_percent", "generated_similarity", "generated_mos_overall", "generated_length_ratio",
)  # fmt: skip


def provenance(results: Results, metric_models: MetricModels) -> dict[str, Any]:
    """Everything that the numbers depend on, by name or by hash."""
    generated, tokenized = results.generated, results.tokenized
    return generated["provenance"] | {
        "recordings": (tokenized.get("corpus") or sha256(tokenized["recordings"]))[:16],
        "sampling": {k: v for k, v in generated["sampling"].items() if k != "seed"},
        "seeds": generated["seeds"],
        "repeated_texts": generated.get("repeated_texts"),
        "judges": metric_models.names(),
        "versions": {name: version(name).partition("+")[0] for name in PACKAGES},
    }


def paragraphs(lines: Sequence[str]) -> HTML:
    return HTML("".join(f"<p>{line}</p>" for line in lines))


def opening(origin: Mapping[str, Any], absent: Sequence[str]) -> HTML:
    """The checkpoint, the set, the judges, and which judges are missing."""
    judges = [name for name in origin["judges"].values() if name]
    nano = (
        "the small default, which shows and tests the workflow. What the released 3B checkpoint can do is not measured"
    )
    what = f"{nano} here" if origin["checkpoint"] == "nano" else "as named in params.yaml"
    first, *more = map(str, origin["seeds"])
    seeds, repeated = f"seed {first}", origin.get("repeated_texts")
    if more:
        seeds += f", and {', '.join(more)}" + ("" if repeated is None else f" of {repeated} texts")
    return paragraphs(
        [
            f"<b>Checkpoint: {html.escape(origin['checkpoint'])}</b>, {what}.",
            f"Set <code>{html.escape(str(origin['set']))}</code>, {seeds}; first samples count.",
            f"Judges: {html.escape('; '.join(judges)) or 'none'}. Numbers of other judges do not compare.",
            *(f"<b>Not judged</b>, {html.escape(note)}" for note in absent),
        ]
    )


def by_metric(summary: Sequence[Row], judges: Mapping[str, str | None]) -> list[Row]:
    """The summary transposed: a row for each metric, whose title names its judge, a column for each condition."""
    rows = []
    for metric in (m for m in METRICS if any(row[m.name] is not None for row in summary)):
        judge = judges.get(metric.judge)
        title = f"{metric.title} ({judge})" if judge else metric.title
        rows.append({"metric": title} | {row["group"]: with_interval(row, metric) for row in summary})
    return rows


def by_group(summary: Sequence[Row], judges: Mapping[str, str | None]) -> tuple[list[Row], str]:
    """A row for each value of "group" under short titles -> the rows, and a caption that explains the titles."""
    used = {m.name: m for m in METRICS if m.name in BRIEF and any(row[m.name] is not None for row in summary)}
    rows = [{"group": row["group"], "n": row["n"], "texts": row["scripts"]} for row in summary]
    for line, row in zip(rows, summary, strict=True):
        line |= {BRIEF[name]: with_interval(row, metric) for name, metric in used.items()}
    kinds = dict.fromkeys(metric.judge for metric in used.values() if metric.judge)
    caption = "estimate [95 % interval, run-aways as likely in every group]"
    return rows, f"{caption}; judges: {', '.join(str(judges[kind]) for kind in kinds)}"


def similarity_note(rows: Sequence[Row]) -> HTML:
    """Why generated speech may be more similar to its reference than recordings through the codec are to theirs."""
    generated = [row for row in of_group(rows, GENERATED) if row["similarity"] is not None]
    described = sum(row["form"] != "voice_clone" for row in generated)
    if not described:
        return paragraphs([])
    return paragraphs(
        [
            "<b>Similarities have two kinds of targets</b>, so the codec's number is no ceiling of the others: "
            "a recording is compared with another recording of the same person, and so is it after the codec, which "
            f"takes a part of that person's voice away. {described} of {len(generated)} generated samples have a "
            "described voice: their target is a clip of the speaker whom <i>nano</i> learned it from."
        ]
    )


def by_length(parts: Sequence[Row]) -> list[Row]:
    """Summaries by length of text, the shortest first."""
    return sorted(parts, key=lambda row: LENGTHS.index(row["group"]))


def by_count(summary: Sequence[Row]) -> list[Row]:
    """The numbers of utterances by status, a column for each condition."""
    whole = [{k: round(v) if isinstance(v, float) else v for k, v in row.items()} for row in summary]
    return [{"count": title} | {row["group"]: row[name] for row in whole} for name, title in COUNTS.items()]


def of_group(rows: Sequence[Row], group: str) -> list[Row]:
    return [row for row in rows if row["group"] == group]


def known(rows: Sequence[Row], column: str, group: str) -> list[tuple[int, float]]:
    """Number of the row, value: of the rows of a condition that have one."""
    of_it = ((i, row[column]) for i, row in enumerate(rows) if row["group"] == group)
    return [(i, float(value)) for i, value in of_it if value is not None]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The generated utterances that are scored, from the worst WER down; longer texts first among equals."""
    scored = [row for row in of_group(rows, GENERATED) if row["wer_percent"] is not None]
    return sorted(scored, key=lambda row: (-row["wer_percent"], -row["words"], row["name"]))


def best(rows: Sequence[Row], count: int) -> list[Row]:
    """Those with the lowest WER, the longest texts first."""
    return sorted(rows, key=lambda row: (row["wer_percent"], -row["words"], row["name"]))[:count]


def by_speaker(summary: Sequence[Row]) -> list[Row]:
    """`summarise_dialogues` under short titles."""
    rows = []
    for row in summary:
        accuracy, low, high = (row[name] for name in ACCURACY)
        titled = {title: row[name] for name, title in BY_SPEAKER.items()}
        rows.append(titled | {"right voice %": None if accuracy is None else f"{accuracy:.0f} [{low:.0f}, {high:.0f}]"})
    return rows


def dialogue_note(voices: Sequence[Row], speakers: Sequence[Row]) -> HTML:
    """Why dialogues have another WER here than by voice, where there is one of both."""
    names = {speaker["speaker"] for speaker in speakers}
    whole = [row for row in voices if " " in row["group"] and names.issuperset(row["group"].split())]
    total = speakers[-1]["WER %"] if speakers else None
    if total is None or not whole or whole[0]["wer_percent"] is None:
        return paragraphs([])
    rates = ", ".join(f"{html.escape(row['group'])} {row['wer_percent']:.1f} %" for row in whole)
    return paragraphs(
        [
            f"By voice, dialogues of these speakers have another word error rate ({rates}) than here ({total:.1f} %): "
            "there the recogniser hears a whole dialogue at once, here each turn by itself, with less to go by."
        ]
    )


def provenance_table(origin: Mapping[str, Any]) -> HTML:
    """Every setting in a line of its own, folded."""
    lines = []
    for name, value in origin.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        lines += [{"what": f"{name}: {key}" if key else name, "value": _shown(some)} for key, some in inner]
    shown = table(lines, "What the numbers depend on").data
    return HTML(f"<details><summary>provenance</summary>{shown}</details>")


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def faults(rows: Sequence[Row]) -> list[Row]:
    """Utterances with a note, or that failed or could not be judged."""
    faulty = [row for row in rows if row["note"] or row["status"] in (*FAILED, *NOT_SCORED)]
    return [{name: row[name] for name in ("group", "name", "status", "note")} for row in faulty]


def voice_of(row: Row) -> str:
    return row["voice"] or "described, two speakers"


def voices_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The generated utterances of each voice."""
    return grouped(of_group(rows, GENERATED), voice_of)


def parts_of(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, list[Row]]:
    """Summaries of the generated utterances by voice, by form of prompt, and by length of text."""
    keys = {"voice": voice_of, "form": itemgetter("form"), "length": length_class}
    generated = of_group(rows, GENERATED)
    return {name: summarise(sorted(generated, key=key), resamples, seed, key) for name, key in keys.items()}


def coverage_note(coverage: Row, seeds: tuple[float | None, int]) -> HTML:
    """The coverage of intervals over these texts on synthetic data, and the seed's share in the variance."""
    held = [f"{coverage[f'{name}_coverage_percent']:.0f} %" for name in ("wer", "similarity", "rate")]
    share, several = seeds
    lines = [
        f"The 95 % intervals over {coverage['n']} texts in {coverage['takes']} samples held the true WER in {held[0]} "
        f"of {coverage['trials']} synthetic sets (many texts without an error, a long tail, 1.5 % run-aways), the "
        f"similarity in {held[1]}, the share of utterances with an error in {held[2]}. The upper end of a WER allows "
        "for run-aways that the set does not have, the more the fewer the texts. See "
        "<code>notebooks/statistics.ipynb</code>."
    ]
    if share is not None:
        variance = f"Of the variance of word errors between samples {100 * share:.0f} % is the seed's"
        lines.append(f"{variance}, the rest that of the text ({several} texts with several samples).")
    return paragraphs(lines)


def metrics(results: Results, summary: Sequence[Row], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of evaluation.json, and their provenance; those of HEADLINE are metrics.json."""
    flat: dict[str, Any] = {}
    for row in summary:
        name = SHORT.get(row["group"], row["group"].replace(": ", "_").replace(" ", "_"))
        flat |= {f"{name}_{metric}": row[metric] for metric in FLAT if row[metric] is not None}
        flat[f"{name}_n"] = row["n"]
    languages, generated = results.tokenized["languages"], results.generated
    for column in ("mel_db", "stft", "si_sdr_db"):
        if known := [(row[column], row["clips"]) for row in languages if row[column] is not None]:
            flat[f"codec_{column}"] = sum(mean * n for mean, n in known) / sum(n for _, n in known)
    flat |= {"generated_without_sound": generated["empty"], "generated_mean_seconds": generated["mean_seconds"]}
    return flat | {"provenance": dict(origin)}


def codec_tables(results: Results) -> tuple[list[Row], list[Row]]:
    """The tables of the tokenize stage: mean distances by the number of codebooks, and the use of each codebook."""
    folder = results.folder / "tokenize"
    rows, distances = read_rows(folder / "reconstruction.parquet"), []
    for count, some in sorted(grouped(rows, itemgetter("codebooks")).items()):
        means = {name: mean_known(some, name) for name in ("mel_db", "stft", "si_sdr_db", "stoi")}
        distances.append({"codebooks": count, "clips": len(some)} | means)
    return distances, read_rows(folder / "usage.parquet")
