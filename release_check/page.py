"""What the check found, as one page that loads nothing from outside."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from higgs.evaluate.statistics.summary import METRICS
from higgs.workflow.outputs import table
from higgs.workflow.page import bare_page, embedded
from higgs.workflow.tables import Row
from release_check.published import MODEL, RELEASE_SIZES, compare

QUESTION = "Does the checkpoint load, speak as transformers' port does, and score as published?"
SHOWN = ("seedtts_wer_percent", "wer_percent", "similarity", "mos_overall", "above_50_percent", "cap_hit_percent")
TITLES = {
    "download": "Download", "hashes": "Hashes", "inspect": "Contents", "sentences": "Sentences",
    "seedtts": "SeedTTS-Eval", "model_codes": "Codes of the model beside transformers",
    "codec_codes": "Codes of the codec beside transformers",
}  # fmt: skip
DONE = "done"
NOTE = (
    "“Not told apart”: the published figure lies in our 95 % interval, which is wide for so few texts. Figures of "
    "different judges do not compare. Published figures name no seeds; five runs of one build of a later model "
    "gave 1.00 to 1.16 % (sgl-project/sglang-omni#1811)."
)


def page_of(facts: Mapping[str, str], states: Mapping[str, str], results: Mapping[str, Any]) -> str:
    """`facts` of the run, the state of each step, and what the steps found."""
    parts = ["<h1>The release, checked</h1>", f"<p>{html.escape(_answer(states, results))}</p>"]
    if not is_release(results):
        parts.append(
            "<p><strong>This is another checkpoint than the release: what is published is not of it.</strong></p>"
        )
    parts += [_heading("published", "Beside published figures"), _table(compare(results.get("seedtts")))]
    parts.append(f"<p>{NOTE}</p>")
    parts += [_heading("steps", "Steps"), _table([{"step": TITLES[k], "": state} for k, state in states.items()])]
    for name in ("model_codes", "codec_codes", "inspect", "hashes", "sentences", "seedtts"):
        if found := results.get(name):
            parts += [_heading(name, TITLES[name]), BODIES[name](found)]
    parts += [_heading("run", "The run"), _table([{"run": name, "": value} for name, value in facts.items()])]
    return bare_page("The release, checked", "".join(parts), QUESTION)


def is_release(results: Mapping[str, Any]) -> bool:
    """By its sizes; True as long as they are not known."""
    return all(
        part["sizes"] == RELEASE_SIZES
        for part in results.get("inspect", {"parts": []})["parts"]
        if part["kind"] == "model"
    )


def differences(states: Mapping[str, str], results: Mapping[str, Any]) -> list[str]:
    """What differs from what is expected, in words."""
    found = [f"{TITLES[name].lower()}: {state}" for name, state in states.items() if state.startswith("failed")]
    for name in ("model_codes", "codec_codes"):
        agreement = results.get(name)
        if agreement and agreement["equal"] != agreement["of"]:
            found.append(f"{TITLES[name].lower()}: {agreement['of'] - agreement['equal']} of {agreement['of']} differ")
    rows = compare(results.get("seedtts"))
    return found + [f"{row['figure']} {row['difference']}" for row in rows if row["difference"].startswith("differs")]


def _answer(states: Mapping[str, str], results: Mapping[str, Any]) -> str:
    found = differences(states, results)
    missing = [TITLES[name] for name, state in states.items() if not state.startswith((DONE, "failed"))]
    rest = f" Not done: {', '.join(missing)}." if missing else ""
    scores = "".join(_score(TITLES[name], results[name]) for name in ("sentences", "seedtts") if name in results)
    return (f"What differs: {'; '.join(found)}." if found else "Nothing that was checked differs.") + scores + rest


def _score(title: str, found: Mapping[str, Any]) -> str:
    """A sentence about what was spoken; none without a recogniser."""
    row = next(row for row in found["summary"] if row["group"] == MODEL)
    if row["wer_percent"] is None:
        return ""
    low, high = row["wer_percent_low"], row["wer_percent_high"]
    interval = "one text" if low is None else f"{low:.1f} to {high:.1f}"
    judge = found["judges"]["recogniser"]
    return f" {title}: {row['n']}, with a word error rate of {row['wer_percent']:.1f} % ({interval}) by {judge}."


def _heading(place: str, title: str) -> str:
    return f'<h2 id="{place}">{html.escape(title)}</h2>'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    return f'<div class="scroll">{table(rows).data}</div>'


def _codes(found: Mapping[str, Any]) -> str:
    first, samples = found["first_difference"], found.get("largest_difference_of_samples")
    row = {"equal codes": f"{found['equal']:,} of {found['of']:,}"}
    row["first difference"] = "none" if first is None else f"frame {first}"
    if samples is None:
        note = "A fixed prompt, greedy, in float32: near ties may part on a GPU, and all that follows with them."
        return f"<p>{note}</p>{_table([row])}"
    return f"<p>A recording.</p>{_table([row | {'decoded samples differ by at most': samples}])}"


def _inspect(found: Mapping[str, Any]) -> str:
    return _table([row | {"parameters": f"{row['parameters']:,}"} for row in found["parts"]])


def _hashes(found: Mapping[str, Any]) -> str:
    files = [row | {"bytes": f"{row['bytes']:,}"} for row in found["files"]]
    return _table(files) + _table([{"part": k, "fingerprint": v} for k, v in found["fingerprints"].items()])


def _spoken(found: Mapping[str, Any]) -> str:
    judges = ", ".join(f"{kind}: {name or 'none'}" for kind, name in found["judges"].items())
    absent = "".join(f"<p>{html.escape(line)}</p>" for line in found["absent"])
    titles = {metric.name: metric.title for metric in METRICS}
    rows = [
        {"": row["group"], "texts": row["n"]} | {titles[name]: _interval(row, name) for name in SHOWN}
        for row in found["summary"]
    ]
    return f"<p>{html.escape(judges)}</p>{absent}{_table(rows)}{_listing(found['rows'])}"


def _interval(row: Row, name: str) -> str | None:
    if row[name] is None:
        return None
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f} ({'one text' if low is None else f'{low:.2f} to {high:.2f}'})"


class _Player:
    """A cell of a table."""

    def __init__(self, sound: str | None):
        self.sound = sound

    def _repr_html_(self) -> str:
        return f'<audio controls preload="none" src="{self.sound}"></audio>' if self.sound else "–"


def _listing(rows: Sequence[Row]) -> str:
    """The utterances to hear, the worst first."""
    spoken = sorted((r for r in rows if r["group"] == MODEL), key=lambda r: -(r["wer_percent"] or 0))
    sounds = embedded([row["path"] for row in spoken])
    return _table([
        {
            "sound": _Player(sounds.get(str(number))), "voice": row["voice"], "text": row["text"],
            "heard": row["heard"] if row["status"] == "ok" else f"{row['status']}: {row['note']}",
            "WER %": row["wer_percent"], "similarity": row["similarity"], "quality": row["mos_overall"],
            "s": row["seconds"],
        }
        for number, row in enumerate(spoken)
    ])  # fmt: skip


BODIES = {
    "model_codes": _codes,
    "codec_codes": _codes,
    "inspect": _inspect,
    "hashes": _hashes,
    "sentences": _spoken,
    "seedtts": _spoken,
}
