"""The first lines of the evaluate page: is it understood, is it the voice, is it natural? By rule from the numbers."""

import html
from collections.abc import Mapping, Sequence

from IPython.display import HTML

from higgs.evaluate.report.figures import forest
from higgs.evaluate.report.gather import GENERATED, OF_THE_SET, RECONSTRUCTED, RECORDED
from higgs.evaluate.statistics.intervals import Difference
from higgs.evaluate.statistics.parts import ALPHA, LEAST_SHARED, Detectable, FromBest
from higgs.workflow.tables import Row

NAMES = {RECORDED: "recordings", RECONSTRUCTED: "recordings through the codec", OF_THE_SET: "people who say the same"}
MOST_NAMED, MOST_DRAWN = 6, 20
NOTHING, ONE_TEXT = "There are no recordings to compare with", "One text is too few to compare with others"


def answer(summary: Sequence[Row], voices: Mapping[str, Difference], judges: Mapping[str, str | None]) -> HTML:
    """Three sentences from the summary by condition, and from `nearer_to_own` by voice."""
    groups = {row["group"]: row for row in summary}
    generated = groups.pop(GENERATED, None)
    if generated is None:
        return HTML('<section class="answer"><p>Nothing was generated.</p></section>')
    anchors = {NAMES.get(name, name): row for name, row in groups.items()}
    lines = {
        "Is it understood?": _understood(generated, anchors, judges),
        "Is it the voice?": _same_voice(generated, anchors, voices, judges),
        "Is it natural?": _natural(generated, anchors, judges),
    }
    body = "".join(f"<p><b>{question}</b> {html.escape(line)}</p>" for question, line in lines.items())
    note = "In brackets 95 % intervals; “not told apart” where two of them overlap. "
    note += "Recordings are of other texts. " * (RECORDED in groups) + "Judges are named below."
    return HTML(f'<section class="answer" aria-label="the answer">{body}<p><small>{note}</small></p></section>')


def _understood(row: Row, anchors: Mapping[str, Row], judges: Mapping[str, str | None]) -> str:
    if row["wer_percent"] is None:
        return _not_judged(judges.get("recogniser"), "recogniser")
    verdict = _placed(row, anchors, "wer_percent", ("better than", "less well than"), lower=True)
    wrong = f"{_with(row, 'wer_percent', 1, ' %')} of the words are wrong"
    return f"{verdict}: {wrong}{_each(anchors, 'wer_percent', 1, ' %')}."


def _natural(row: Row, anchors: Mapping[str, Row], judges: Mapping[str, str | None]) -> str:
    if row["mos_overall"] is None:
        return _not_judged(judges.get("naturalness"), "predictor of listeners' scores")
    verdict = _placed(row, anchors, "mos_overall", ("more so than", "less so than"), lower=False)
    score = _with(row, "mos_overall", 2, " of 5")
    return f"{verdict}: the predicted quality is {score}{_each(anchors, 'mos_overall', 2, '')}. No listener was asked."


def _same_voice(
    row: Row, anchors: Mapping[str, Row], voices: Mapping[str, Difference], judges: Mapping[str, str | None]
) -> str:
    if row["similarity"] is None:
        if judges.get("speaker") is None:
            return _not_judged(None, "speaker encoder")
        return "Not known: no utterance has a recording of the voice that was asked for."
    named = {"nearer to that voice than to others": [], "nearer to other voices": [], "not told apart from others": []}
    nearer, farther, neither = named.values()
    for name, difference in voices.items():
        (neither if difference.p > ALPHA else nearer if difference.estimate > 0 else farther).append(name)
    verdict = ", ".join(f"for {_listed(names, len(voices))} {what}" for what, names in named.items() if names)
    verdict = f"F{verdict[1:]}" if verdict else "There is no other voice to compare with"
    to_others = f", to other voices {_with(row, 'similarity_to_others', 2)}" if voices else ""
    return (
        f"{verdict}: the similarity is {_with(row, 'similarity', 2)}{to_others}{_each(anchors, 'similarity', 2, '')}."
    )


def _not_judged(judge: str | None, kind: str) -> str:
    return f"Not judged: there is no {kind}." if judge is None else f"Not judged: {judge} gave no number."


def _listed(names: Sequence[str], count: int) -> str:
    if len(names) > MOST_NAMED:
        return f"{len(names)} of {count} voices"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _placed(row: Row, anchors: Mapping[str, Row], metric: str, words: tuple[str, str], lower: bool) -> str:
    """How the intervals of the anchors lie to that of the generated speech; what is of one text has none."""
    found: dict[str, list[str]] = {}
    known = {name: anchor for name, anchor in anchors.items() if anchor[metric] is not None}
    for name, anchor in known.items():
        if None in (row[f"{metric}_low"], anchor[f"{metric}_low"]):
            continue
        apart = row[f"{metric}_high"] < anchor[f"{metric}_low"], row[f"{metric}_low"] > anchor[f"{metric}_high"]
        better, worse = apart if lower else apart[::-1]
        verdict = words[0] if better else words[1] if worse else "not told apart from"
        found.setdefault(verdict, []).append(name)
    verdict = ", ".join(f"{how} {' and '.join(names)}" for how, names in found.items())
    return f"{verdict[0].upper()}{verdict[1:]}" if verdict else ONE_TEXT if known else NOTHING


def _with(row: Row, metric: str, digits: int, unit: str = "") -> str:
    """ "14.6 % (12.3 to 26.5)", or "14.6 % (one text)"."""
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    interval = "one text" if low is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return f"{row[metric]:.{digits}f}{unit} ({interval})"


def _each(anchors: Mapping[str, Row], metric: str, digits: int, unit: str) -> str:
    known = [f"{name} {_with(row, metric, digits, unit)}" for name, row in anchors.items() if row[metric] is not None]
    return f"; {', '.join(known)}" if known else ""


def by_voice(parts: Sequence[Row], anchors: Sequence[Row], best: FromBest) -> HTML:
    """Summaries of the voices, the best WER first and those with one text last, each with what tells it from the best.

    Anchors are below.
    """
    known = [row for row in parts if row["wer_percent"] is not None]
    if not known:
        return HTML("<p>No words were judged.</p>")
    known.sort(key=lambda row: (row["wer_percent_low"] is None, row["wer_percent"]))
    notes = {}
    for row in known[:MOST_DRAWN]:
        name, texts = row["group"], f"{row['scripts']} texts" if row["scripts"] != 1 else "1 text"
        if name == best.best:
            verdict = "the best"
        elif name not in best.p:
            verdict = "too few to test"
        else:
            verdict = "worse" if best.differs(name) else "not told apart from the best"
            verdict += f", p = {best.p[name]:.3f}"
        notes[name] = f"{verdict}; {texts}"
    notes |= {row["group"]: f"{row['scripts']} texts" for row in anchors if row["wer_percent"] is not None}
    rows = [
        {"name": row["group"], "note": notes[row["group"]]}
        | {key: row[f"wer_percent{end}"] for key, end in (("estimate", ""), ("low", "_low"), ("high", "_high"))}
        for row in (*known, *anchors)
        if row["group"] in notes
    ]
    drawing = forest(rows, "voice", "Word error rate, %: voices, the best first, and what they are held against")
    left = f" {len(known) - MOST_DRAWN} voices more are in the table below." if len(known) > MOST_DRAWN else ""
    return HTML(f"{drawing.data}<p><small>{_how(best)}{left}</small></p>")


def _how(best: FromBest) -> str:
    if not best.p:
        return "There are not two voices with two texts each: nothing is compared."
    how = "p is that of a permutation test against the best, with Holm's correction for the number of voices"
    if best.paired:
        return f"{how}: labels are swapped within texts that both say."
    return f"{how}. Voices say different texts, which are shuffled between the two: a text that is hard counts too."


def power_note(found: Detectable) -> HTML:
    """What a comparison of two runs on these texts could find; nothing where no words were judged."""
    if not found.texts:
        return HTML("")
    if found.difference is None and found.texts >= LEAST_SHARED:
        return HTML("<p>Nothing varies here, so what a comparison of two runs could find cannot be calculated.</p>")
    if found.difference is None:
        line = f"<b>With {found.texts} texts no comparison of two runs can find any difference</b>: six are the least."
        return HTML(f"<p>{line}</p>")
    how = "from the spread between texts, as no text has several samples: an upper bound."
    if found.repeated:
        how = f"from the spread between samples of one text ({found.repeated} texts have several), for a change "
        how += "that moves all texts alike; one that moves them apart has to be larger."
    return HTML(
        f"<p><b>What this set could find:</b> two runs on these {found.texts} texts, compared text by text, are told "
        f"apart in 80 % of cases where their word error rates differ by {found.difference:.1f} points (p = 0.05, one "
        f"metric). Calculated {how}</p>"
    )
