"""The table of all utterances: records for the page's script, the sounds that go with them, and links into it."""

import html
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import jiwer
from IPython.display import HTML

from higgs.evaluate.metrics.error_rates import normalize
from higgs.evaluate.report.gather import GENERATED
from higgs.workflow.outputs import SOUNDS, in_script
from higgs.workflow.tables import Row

COPIED = ("group", "name", "script", "voice", "form", "seed", "text", "heard", "seconds", "note", "path", "similarity")
Words = list[list[str]]


class Listing(HTML):
    """The records as HTML, and the audio files as a second form of the same output, which the page embeds."""

    def __init__(self, markup: str, paths: Sequence[str | None]):
        super().__init__(markup)
        self.paths = list(paths)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/html": self.data, SOUNDS: self.paths}


def ids(rows: Sequence[Row]) -> list[str]:
    """Their names; where several have the same one, as a recording and its reconstruction, with the condition."""
    names = [row["name"] for row in rows]
    found = [n if names.count(n) == 1 else f"{n}, {row['group']}" for n, row in zip(names, rows, strict=True)]
    return [name if found.count(name) == 1 else f"{name}, {place}" for place, name in enumerate(found)]


def listing(rows: Sequence[Row], commands: Mapping[str, str], words: Sequence[Row] = ()) -> Listing:
    """Records in the order of `rows`; figures name them by their numbers. `words` are those of `Results`."""
    records, times = [], {}
    for word in words:
        times.setdefault(word["name"], []).append([word["word"], round(word["start"], 2), round(word["end"], 2)])
    for row, name in zip(rows, ids(rows), strict=True):
        record = {"id": name} | {column: row[column] for column in COPIED}
        record |= {"wer": row["wer_percent"], "mos": row["mos_overall"], "others": row["similarity_to_others"]}
        record["words"] = [] if row["heard"] is None else word_differences(row["text"], row["heard"], row["language"])
        record["command"] = commands.get(row["name"]) if row["group"] == GENERATED else None
        record["times"] = times.get(row["name"], []) if row["group"] == GENERATED else []
        records.append(record)
    block = f'<script type="application/json" id="utterances">{in_script(records)}</script>'
    place = "The table is in the page that <code>python -m higgs.workflow.page evaluate</code> makes."
    paths = [row["path"] if row["seconds"] else None for row in rows]
    return Listing(f'<div class="utterances"><p>{place}</p></div>{block}', paths)


def word_differences(text: str, hypothesis: str, language: str = "en") -> Words:
    """The normalised text in parts: [words] where they were heard, else [deleted words, inserted words]."""
    reference, words = (normalize(some, language).split() for some in (text, hypothesis))
    if not reference or not words:
        return [[" ".join(reference) or text, " ".join(words)]]
    (chunks,) = jiwer.process_words(" ".join(reference), " ".join(words)).alignments
    parts = []
    for chunk in chunks:
        old = " ".join(reference[chunk.ref_start_idx : chunk.ref_end_idx])
        new = " ".join(words[chunk.hyp_start_idx : chunk.hyp_end_idx])
        parts.append([old] if chunk.type == "equal" else [old, new])
    return parts


def transcript_diff(text: str, hypothesis: str, language: str = "en") -> HTML:
    """`word_differences` as HTML: deleted words struck out, and inserted ones after them."""
    parts = []
    for old, *new in word_differences(text, hypothesis, language):
        if not new:
            parts.append(html.escape(old))
            continue
        parts += [f"<del>{html.escape(old)}</del>"] * bool(old) + [f"<ins>{html.escape(new[0])}</ins>"] * bool(new[0])
    return HTML(" ".join(parts))


def links(chosen: Mapping[str, tuple[Sequence[Row], int]], rows: Sequence[Row]) -> HTML:
    """Title -> ranked utterances, and how many to name, one of each text: links, and differences from the texts."""
    named = {(row["group"], row["name"]): name for row, name in zip(rows, ids(rows), strict=True)}
    lists = []
    for title, (ranked, count) in chosen.items():
        firsts: dict[str, Row] = {}
        for row in ranked:
            firsts.setdefault(row["script"], row)
        items = []
        for row in list(firsts.values())[:count]:
            name = named[row["group"], row["name"]]
            link = f'<a href="#{quote(name, safe="")}">{html.escape(name)}</a>'
            words = transcript_diff(row["text"], row["heard"], row["language"]).data
            items.append(f"<li>{link}, WER {row['wer_percent']:.0f} %: {words}</li>")
        lists += [f"<p><b>{html.escape(title)}</b></p><ul>{''.join(items)}</ul>"] * bool(items)
    return HTML("".join(lists))
