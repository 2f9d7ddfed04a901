"""The page of `higgs compare A B ...`: the numbers, and every text to be heard in all runs."""

import html
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from higgs.comparison.figures import axis_limit, difference_bar, scatter
from higgs.comparison.many import Findings, texts_of
from higgs.comparison.tables import cells, power, short_p, verdict, what_differs
from higgs.evaluate.report.listing import transcript_diff
from higgs.evaluate.utterances import OK
from higgs.workflow.page import FILES as TEMPLATES
from higgs.workflow.page import Extra, bare_page
from higgs.workflow.sounds import encode
from higgs.workflow.tables import Row

MOST_BYTES = 8_000_000
MOST_TEXT = 3_000_000  # of that for words
MOST = 12  # texts that stand under "changed most"
QUESTION = "Which run is better, text by text, in numbers and by ear?"
FILES = Path(__file__).parent / "assets"
ASSETS = (FILES / "page.css", FILES / "player.js", TEMPLATES / "spectrogram.js", FILES / "compare.js")
escape = html.escape


def to_page(findings: Findings) -> str:
    """-> one page of at most 8 MB: where the sound of all is too much, the texts that changed most have theirs."""
    title = " against ".join(run.name for run in findings.runs)
    samples = texts_of(findings)
    texts, size = [], 0
    for number, (change, rows) in enumerate(samples):
        text = _text(number, change, rows, findings.letters)
        size += len(text.encode())
        if size > MOST_TEXT:
            break
        texts.append(text)
    body = f"<h1>{escape(title)}</h1>{''.join(_numbers(findings, samples[: len(texts)]))}"
    rest = MOST_BYTES - size - len(body.encode()) - len(bare_page("", "", extra=Extra(ASSETS))) - 100_000
    files = [
        [run.audio(row) for run, row in zip(findings.runs, rows, strict=True)] for _, rows in samples[: len(texts)]
    ]
    # In base64 3 bytes take 4, and a bit rate is kept within 10 %.
    sounds = encode([file for row in files for file in row], int(rest * 3 / 4 / 1.1))
    width = len(findings.runs)
    rows = [sounds.of[at : at + width] for at in range(0, len(sounds.of), width)]
    with_sound = sum(any(clip is not None for clip in row) for row in rows)
    note = f"{len(samples)} samples, {with_sound} of them with sound on this page."
    if len(texts) < len(samples):
        note += f" The {len(texts)} that changed most are shown."
    data = {"clips": sounds.encoded, "seconds": sounds.seconds, "rows": rows, "letters": findings.letters}
    body += f"{_listing(texts, note)}{_bar(findings.letters)}"
    return bare_page(title, body, QUESTION, extra=Extra(ASSETS, data))


def _numbers(findings: Findings, samples: Sequence[tuple[float, list[Row]]]) -> list[str]:
    names, unit = zip(findings.letters, findings.runs, strict=True), findings.rows[-1]["unit"]
    legend = "; ".join(f"<b>{letter}</b> {escape(run.name)}" for letter, run in names)
    parts = [
        f"<p>{legend}</p><p><b>{escape(verdict(findings.rows))}</b></p>",
        *(f"<p>{escape(line)}</p>" for line in power(findings.rows)),
        '<p><a href="#texts">To the texts and their sound</a></p><h2>Differences</h2>',
        "<p>All runs spoke the same texts, so they are paired text by text with the first, A: the interval of a "
        f"difference is bootstrapped over {unit}, p is that of a permutation test. Texts: in how many the metric "
        "differs, of how many.</p>",
        _metrics(findings),
        *(f"<p>{escape(note)}</p>" for note in findings.notes),
    ]
    if findings.rankings:
        parts += _rankings(findings) + [_matrix(samples, findings.letters)]
    differing = what_differs(findings.provenance)
    parts += ["<h2>What differs between the runs</h2>", _table(("what", *findings.letters), differing)]
    return parts


def _metrics(findings: Findings) -> str:
    """Metrics in their order, and under each the runs against A."""
    several = len(findings.runs) > 2
    rows = sorted(findings.rows, key=lambda row: [r["metric"] for r in findings.rows].index(row["metric"]))
    other = "other" if several else "B"
    names = ["metric", "A", other, f"{other} - A [95 % interval]", "interval", "p", "p, Holm", "found from", "texts"]
    lines = []
    for _, group in groupby(rows, key=lambda row: row["metric"]):
        group = list(group)
        limit = axis_limit(group)
        for row in group:
            title, a, b, change, p, p_holm, least, decision = cells(row)
            run = f" <b>{row['letter']}</b>" if several else ""
            words = [a, b, change, p, p_holm, least, f"{row['changed']} of {row['texts']}"]
            values = [escape(word) for word in words]
            values.insert(3, difference_bar(row, limit))
            body = "".join(
                f'<td class="number" data-name="{escape(name)}">{value}</td>'
                for name, value in zip(names[1:], values, strict=True)
            )
            lines.append(f"<tr><td>{escape(title)}{run}</td>{body}<td><b>{escape(decision)}</b></td></tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (*names, "verdict"))
    table = f'<table class="metrics"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _rankings(findings: Findings) -> list[str]:
    parts = [
        "<h2>Ranking</h2><p>Over the texts that all runs have. Intervals are over texts, p is over "
        f"{findings.rows[-1]['unit']}. Holm's correction is over all pairs of runs of a "
        "metric; a run that is not told apart from the best is marked.</p>"
    ]
    for metric, rows in findings.rankings.items():
        digits = 1 if metric.name.endswith("percent") else 3
        lines = []
        for place, row in enumerate(rows, start=1):
            estimate, low, high = (f"{value:.{digits}f}" for value in row["interval"])
            p = "" if row["p_holm"] is None else short_p(row["p_holm"])
            word = "best" if row["p_holm"] is None else "not told apart from the best" if row["best"] else "worse"
            name = f"{findings.letters[row['run']]} {findings.runs[row['run']].name}"
            lines.append([str(place), name, f"{estimate} [{low}, {high}]", p, word])
        parts.append(_table(("place", "run", "estimate [95 % interval]", "p, Holm", "verdict"), lines, metric.title))
    estimates = [
        {row["run"]: row["interval"].estimate for row in rows}
        for metric, rows in findings.rankings.items()
        if metric.name in ("wer_percent", "similarity")
    ]
    if len(estimates) == 2:
        points = [(estimates[0][run], estimates[1][run]) for run in range(len(findings.runs))]
        titles = "word error rate, %", "similarity to the reference voice"
        parts.append(
            "<h2>Words against voice</h2><p>To the upper left is better. The dashed line joins the runs that no other "
            "beats in both; intervals are in the tables above.</p>"
        )
        parts.append(scatter(points, findings.letters, titles))
    return parts


def _matrix(samples: Sequence[tuple[float, list[Row]]], letters: str) -> str:
    """The first sample of each text by run, as buttons that play it."""
    lines, seen = [], set()
    for number, (_, rows) in enumerate(samples):
        if rows[0]["script"] in seen:
            continue
        seen.add(rows[0]["script"])
        cells_of = "".join(
            f'<td class="number"><button class="play" data-side="{side}" aria-label="play {letters[side]}">▶</button> '
            f"{_percent(row['wer_percent'])}</td>"
            for side, row in enumerate(rows)
        )
        lines.append(f'<tr data-row="{number}"><td>{escape(rows[0]["text"])}</td>{cells_of}</tr>')
    head = "".join(f"<th>{name}</th>" for name in ("text", *(f"{letter}: WER %" for letter in letters)))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    folded = f'<details><summary>{len(lines)} texts</summary><div class="scroll">{table}</div></details>'
    return f"<h2>All texts by run</h2>{folded}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _text(number: int, change: float, rows: Sequence[Row], letters: str) -> str:
    """One sample in all runs, with places for its sound."""
    first = rows[0]
    facts = [first["voice"], first["form"], "" if first["seed"] is None else f"seed {first['seed']}"]
    sides = []
    for side, row in enumerate(rows):
        shown = [] if row["wer_percent"] is None else [f"WER {row['wer_percent']:.0f} %"]
        numbers = {"similarity": row["similarity"], "quality": row["mos_overall"]}
        shown += [f"{name} {value:.2f}" for name, value in numbers.items() if value is not None]
        shown += [row["status"]] * (row["status"] != OK) + [row["note"]] * bool(row["note"])
        words = escape(row["text"])  # None is no recogniser, which is not to have heard nothing
        if row["heard"] is not None:
            words = transcript_diff(row["text"], row["heard"], row["language"]).data
        sides.append(
            f'<div class="side" data-side="{side}"><button class="play" data-side="{side}">▶ {letters[side]}</button> '
            f'<small>{escape(", ".join(shown))}</small><p>{words}</p><div class="sketch"><canvas role="img" '
            f'aria-label="spectrogram of {letters[side]}"></canvas><div class="mark" hidden></div></div></div>'
        )
    return (
        f'<section class="text" id="text-{number}" data-row="{number}" data-change="{change:.3g}">'
        f"<h3>{escape(first['text'])}</h3><small>{escape(', '.join(fact for fact in facts if fact))}</small>"
        f'<div class="sides">{"".join(sides)}</div></section>'
    )


def _listing(texts: Sequence[str], note: str) -> str:
    return (
        '<h2 id="texts">Texts that changed most</h2><p>Space plays and pauses, Tab switches to the other run at the '
        "same moment, 1 to 9 choose a run; a click into a spectrogram plays from there. Struck out: words of the text "
        "that were not recognised; in italics: what was recognised in their place. Spectrograms have one scale: 0 to "
        '12 kHz, 80 dB, the same width for a second within a text.</p><p id="fault" role="alert" hidden></p>'
        '<div class="tools"><label>Search <input id="search" type="search" maxlength="100"></label><label>'
        '<input id="changed" type="checkbox"> only texts that changed</label><span id="count" class="dim"></span></div>'
        f'<p class="dim">{escape(note)}</p>{"".join(texts[:MOST])}'
        f"<h2>The other texts and seeds</h2>{''.join(texts[MOST:])}"
    )


def _bar(letters: str) -> str:
    choices = "".join(f'<button data-choose="{side}">{letter}</button>' for side, letter in enumerate(letters))
    return (
        f'<div id="bar" hidden><div><button data-toggle>Play</button>{choices}<input type="range" min="0" step="any" '
        'aria-label="position"><small></small><output></output></div></div>'
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    if not rows:
        return "<p>Nothing.</p>"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
