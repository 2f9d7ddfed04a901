"""What the evaluate notebook shows: tables as people read them, utterances to hear, and the closing numbers."""

import hashlib
import html
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer

from higgs.audio import load_audio
from higgs.evaluate.judges.registry import Panel
from higgs.evaluate.metrics.error_rates import normalize
from higgs.evaluate.report.gather import GENERATED, RECORDED, ROUND_TRIP, Results, read_csv
from higgs.evaluate.statistics.summary import METRICS, length_class, summarise, titles, with_interval
from higgs.evaluate.utterances import FAILED, NOT_SCORED
from higgs.workflow.outputs import audio_player, picture
from higgs.workflow.plots import png, small_spectrogram
from higgs.workflow.tables import Row

PACKAGES = ("torch", "transformers", "onnxruntime", "jiwer")
COUNTS = {
    "n": "utterances", "scripts": "texts", "seeds": "seeds", "words": "words", "seconds": "seconds of sound",
    "missing": "missing", "silent": "silent", "unreadable": "unreadable", "too_long": "too long, judged in part",
    "not_scored": "not scored: a fault of the set or the judge", "empty_transcripts": "nothing was heard",
    "above_50": "WER above 50 %", "cap_hits": "stopped by the frame cap", "retried": "spoken again by a guard",
}  # fmt: skip
BRIEF = {
    "wer_percent": "WER %", "cer_percent": "CER %", "similarity": "similarity", "similarity_to_others": "to others",
    "mos_overall": "quality", "length_ratio": "length", "cap_hit_percent": "cap %",
}  # fmt: skip
SHORT = {RECORDED: "recordings", ROUND_TRIP: "codec", GENERATED: "generated"}
FLAT = (
    "wer_percent", "cer_percent", "seedtts_wer_percent", "above_50_percent", "similarity", "similarity_to_others",
    "mos_overall", "length_ratio", "cap_hit_percent",
)  # fmt: skip


class Html:
    """Ready-made HTML as a cell of a table, or the value of a notebook's cell."""

    def __init__(self, content: str):
        self.content = content

    def __repr__(self) -> str:
        return "Html"  # the usual one has an address, which no second run repeats

    def _repr_html_(self) -> str:
        return self.content


def provenance(results: Results, panel: Panel) -> dict[str, Any]:
    """Everything that the numbers depend on, by name or by hash."""
    given, recordings = results.generated, Path(results.tokenized["recordings"])
    return given["provenance"] | {
        "recordings": hashlib.sha256(recordings.read_bytes()).hexdigest()[:16],
        "sampling": {k: v for k, v in given["sampling"].items() if k != "seed"},
        "seeds": given["seeds"],
        "repeated_texts": given.get("repeated_texts"),
        "judges": panel.names(),
        "versions": {name: version(name).partition("+")[0] for name in PACKAGES},
    }


def opening(origin: Mapping[str, Any], absent: Sequence[str]) -> Html:
    """What was run, by whom it was judged, and what is missing."""
    judges = [name for name in origin["judges"].values() if name]
    what = (
        "the small default, made to show and to test the workflow. What the released 3B checkpoint can do is not "
        "measured here"
        if origin["checkpoint"] == "nano"
        else "as named in params.yaml"
    )
    first, *more = map(str, origin["seeds"])
    seeds, repeated = f"seed {first}", origin.get("repeated_texts")
    if more:
        some = "" if repeated is None else f" of {repeated} texts"
        seeds += f", and {', '.join(more)}{some}"
    lines = [
        f"<b>Checkpoint: {html.escape(origin['checkpoint'])}</b>, {what}.",
        f"Set <code>{html.escape(str(origin['set']))}</code>, {seeds}; first samples count.",
        f"Judges: {html.escape('; '.join(judges)) or 'none'}. Numbers of other judges do not compare.",
        *(f"<b>Not judged</b>, {html.escape(note)}" for note in absent),
    ]
    return Html("".join(f"<p>{line}</p>" for line in lines))


def by_metric(summary: Sequence[Row], judges: Mapping[str, str | None]) -> list[Row]:
    """The summary turned round: a row for each metric that some group has, a column for each group."""
    names = titles(judges)
    chosen = [metric for metric in METRICS if any(row[metric.name] is not None for row in summary)]
    return [
        {"metric": names[metric.name]} | {row["group"]: with_interval(row, metric) for row in summary}
        for metric in chosen
    ]  # fmt: skip


def by_group(summary: Sequence[Row], judges: Mapping[str, str | None]) -> tuple[list[Row], str]:
    """A row for each group under short titles -> the rows, and the caption that says what the titles mean."""
    used = {m.name: m for m in METRICS if m.name in BRIEF and known(summary, m.name)}
    rows = [
        {"group": row["group"], "n": row["n"], "texts": row["scripts"]}
        | {BRIEF[name]: with_interval(row, metric) for name, metric in used.items()}
        for row in summary
    ]
    heard = [judges[kind] for kind in dict.fromkeys(m.judge for m in used.values()) if kind]
    said = "estimate [95 % interval, run-aways as likely in every group]"
    return rows, f"{said}; judges: {', '.join(map(str, heard))}"


def by_count(summary: Sequence[Row]) -> list[Row]:
    """How many utterances there are, and what became of them, a column for each group."""
    rows = [{"count": title} | {row["group"]: row[name] for row in summary} for name, title in COUNTS.items()]
    for row in rows:
        row |= {k: round(v) for k, v in row.items() if isinstance(v, float)}
    return rows


def of_group(rows: Sequence[Row], group: str) -> list[Row]:
    return [row for row in rows if row["group"] == group]


def known(rows: Sequence[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column] is not None]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The generated utterances that are scored, from the worst WER down; longer texts first among equals."""
    scored = [row for row in of_group(rows, GENERATED) if row["wer_percent"] is not None]
    return sorted(scored, key=lambda row: (-row["wer_percent"], -row["words"], row["name"]))


def best(order: Sequence[Row], count: int) -> list[Row]:
    """Those heard without an error, the longest texts first."""
    return sorted(order, key=lambda row: (row["wer_percent"], -row["words"], row["name"]))[:count]


def by_speaker(summary: Sequence[Row]) -> list[Row]:
    """What `summarise_dialogues` says, under short titles."""
    rows = []
    for row in summary:
        share = row["attributed_right_percent"]
        ends = [row[f"attributed_right_{end}"] for end in ("low", "high")]
        rows.append(
            {
                "speaker": row["speaker"],
                "turns": row["turns"],
                "WER %": row["wer_percent"],
                "similarity": row["similarity"],
                "within": row["similarity_within"],
                "apart": row["dissimilarity"],
                "right voice %": None if share is None else f"{share:.0f} [{ends[0]:.0f}, {ends[1]:.0f}]",
            }
        )
    return rows


def faults(rows: Sequence[Row]) -> list[Row]:
    """Utterances that something is said of: what is missing, could not be judged, or was judged in part."""
    return [
        {name: row[name] for name in ("group", "name", "status", "note")}
        for row in rows
        if row["note"] or row["status"] in (*FAILED, *NOT_SCORED)
    ]


def transcript_diff(text: str, heard: str | None, language: str = "en") -> Html:
    """What was said, with words that were not heard struck out and what was heard instead behind them."""
    wanted, got = (normalize(words or "", language).split() for words in (text, heard))
    if not wanted or not got:
        return Html(f"<del>{html.escape(' '.join(wanted) or text)}</del> <ins>{html.escape(' '.join(got))}</ins>")
    (parts,) = jiwer.process_words(" ".join(wanted), " ".join(got)).alignments
    pieces = []
    for part in parts:
        old = html.escape(" ".join(wanted[part.ref_start_idx : part.ref_end_idx]))
        new = html.escape(" ".join(got[part.hyp_start_idx : part.hyp_end_idx]))
        if part.type == "equal":
            pieces.append(old)
            continue
        pieces += [f"<del>{old}</del>"] if old else []
        pieces += [f"<ins>{new}</ins>"] if new else []
    return Html(" ".join(pieces))


def cards(rows: Sequence[Row]) -> Html:
    """Utterances one below the other, to read and to hear."""
    return Html("".join(_card(row) for row in rows))


def _card(row: Row) -> str:
    """Without sound there is no player and no spectrogram."""
    numbers = [f"WER {row['wer_percent']:.0f} %"]
    if row["similarity"] is not None:
        numbers.append(f"similarity {row['similarity']:.2f}")
    if row["length_ratio"] is not None:
        numbers.append(f"length {row['length_ratio']:.2f}")
    facts = ", ".join(fact for fact in (row["form"], row["voice"], *numbers) if fact)
    sound = "<p>no sound</p>"
    if row["seconds"]:
        heard = load_audio(row["path"])
        drawn = picture(png(small_spectrogram(*heard)), f"spectrogram of {row['name']}")
        sound = audio_player(*heard)._repr_html_() + drawn._repr_html_()
    words = transcript_diff(row["text"], row["heard"], row["language"])._repr_html_()
    return (
        f'<div class="card"><div><b>{html.escape(row["name"])}</b> <small>{html.escape(facts)}</small>'
        f"<p>{html.escape(row['text'])}</p><p>{words}</p></div><div>{sound}</div></div>"
    )


def parts_of(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, list[Row]]:
    """The generated utterances summed up by voice, by form of prompt, and by length of text."""
    keys = {
        "voice": lambda row: row["voice"] or "described, two speakers",
        "form": lambda row: row["form"],
        "length": length_class,
    }
    generated = of_group(rows, GENERATED)
    return {name: summarise(sorted(generated, key=key), resamples, seed, key) for name, key in keys.items()}


def headline(summary: Sequence[Row]) -> Html:
    """The one sentence that somebody in a hurry reads."""
    said = [
        f"{row['group']} {row['wer_percent']:.1f} % ({row['wer_percent_low']:.1f} to {row['wer_percent_high']:.1f})"
        for row in summary
        if row["wer_percent"] is not None
    ]
    if not said:
        return Html("<p>No words were judged.</p>")
    return Html(f"<p><b>Words misheard</b> (95 % interval), {html.escape(', '.join(said))}.</p>")


def coverage_note(row: Row, seeds: tuple[float | None, int]) -> Html:
    """What intervals over these texts are worth, on data whose truth is known; what of the variance is the seed's."""
    held = [f"{row[f'{name}_coverage_percent']:.0f} %" for name in ("wer", "similarity", "rate")]
    share, several = seeds
    said = [
        f"Intervals over {row['n']} texts in {row['takes']} takes that are called 95 % held the true WER in {held[0]} "
        f"of {row['trials']} made-up sets (many texts without an error, a long tail, 1.5 % run-aways), the "
        f"similarity in {held[1]}, the share of utterances with an error in {held[2]}. The upper end of a WER allows "
        "for run-aways that the set does not hold, and the fewer the texts, the more. See "
        "<code>notebooks/statistics.ipynb</code>."
    ]
    if share is not None:
        said.append(
            f"Of the variance of word errors from take to take {100 * share:.0f} % is the seed's, the rest that of the "
            f"text ({several} texts with several takes)."
        )
    return Html("".join(f"<p>{line}</p>" for line in said))


def metrics(results: Results, summary: Sequence[Row], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The flat numbers that `dvc metrics` and `dvc exp show` list, and where they come from."""
    flat: dict[str, Any] = {}
    for row in summary:
        name = SHORT.get(row["group"], row["group"].replace(": ", "_").replace(" ", "_"))
        flat |= {f"{name}_{metric}": row[metric] for metric in FLAT if row[metric] is not None}
        flat[f"{name}_n"] = row["n"]
    languages = results.tokenized["languages"]
    clips = sum(row["clips"] for row in languages)
    for column in ("mel_db", "stft", "si_sdr_db"):
        flat[f"codec_{column}"] = sum(row[column] * row["clips"] for row in languages) / clips
    flat["generated_without_sound"] = results.generated["empty"]
    flat["generated_mean_seconds"] = results.generated["mean_seconds"]
    return flat | {"provenance": dict(origin)}


def codec_tables(results: Results) -> tuple[list[Row], list[Row]]:
    """What the tokenize stage measured: mean distances by the number of codebooks, and how evenly codes are used."""
    folder, columns = results.folder / "tokenize", ("mel_db", "stft", "si_sdr_db", "stoi")
    rows = [
        {name: _number(row[name]) for name in ("codebooks", *columns)}
        for row in read_csv(folder / "reconstruction.csv")
    ]
    distances = []
    for count in sorted({row["codebooks"] for row in rows}):
        some = [row for row in rows if row["codebooks"] == count]
        means: Row = {"codebooks": count, "clips": len(some)}
        for name in columns:
            values = known(some, name)
            means[name] = sum(values) / len(values) if values else None
        distances.append(means)
    usage = [{name: _number(value) for name, value in row.items()} for row in read_csv(folder / "usage.csv")]
    return distances, usage


def _number(cell: str) -> int | float | None:
    """A cell of a table of numbers; empty where nothing is known."""
    if not cell:
        return None
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)
