"""Figures of the evaluate page as tables with a small SVG in each row.

Their places are in percent of the width and their letters in pixels, so that they are legible on a phone; colours are
those of the page's style, so that they follow a dark screen; numbers stand beside them.
"""

import html
import math
from collections.abc import Mapping, Sequence
from statistics import median

from IPython.display import HTML

from higgs.workflow.tables import Row

HEIGHT = 24
Points = Sequence[tuple[int, float]]  # number of the record, value


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from at most `low` to at least `high`."""
    high = high if high > low else low + 1
    span = high - low
    power = 10 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.2, 0.5, 1, 2, 5) if span / (s * power) <= 4.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def forest(rows: Sequence[Row], heading: str, caption: str, digits: int = 1) -> HTML:
    """Rows with "name", "estimate", "low", "high" and "note" -> a table: name, interval, numbers, note.

    Where "low" and "high" are None there is a point without an interval.
    """
    marks = ticks(0.0, max(row["estimate"] if row["high"] is None else row["high"] for row in rows))
    lines = []
    for row in rows:
        numbers, drawn = f"{row['estimate']:.{digits}f} (one text)", ""
        if row["low"] is not None:
            numbers = f"{row['estimate']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
            low, high = (_percent(row[key], marks) for key in ("low", "high"))
            drawn = f'<line class="interval" x1="{low}" x2="{high}" y1="12" y2="12"/>'
        drawn += f'<circle class="estimate" cx="{_percent(row["estimate"], marks)}" cy="12" r="4.5"/>'
        lines.append(_line(row["name"], drawn, numbers, marks, f"<td>{html.escape(row['note'])}</td>", numbers))
    head = f'<th scope="col">{html.escape(heading)}</th><td></td>'
    head += '<th scope="col">estimate [95 % interval]</th><td></td>'
    return _table("forest", caption, head, lines, marks, 2)


def strips(measures: Mapping[str, Mapping[str, Points]]) -> HTML:
    """Measure -> condition -> values with the numbers of their records: a point for each, a line at the median."""
    return HTML("".join(_strip(name, conditions) for name, conditions in measures.items()))


def _strip(measure: str, conditions: Mapping[str, Points]) -> str:
    every = [value for points in conditions.values() for _, value in points]
    marks, lines = ticks(min(every), max(every)), []
    for name, points in conditions.items():
        if not points:
            continue
        values = [value for _, value in points]
        middle = median(values)
        drawn = ""
        for number, (record, value) in enumerate(points):
            # Jittered by their order, not at random: equal data give equal pictures.
            y = 12 + 8 * math.sin(2.4 * number)
            place = f'cx="{_percent(value, marks)}" cy="{y:.1f}"'
            drawn += f'<circle class="one" data-row="{record}" {place} r="3.5"/>'
        at = _percent(middle, marks)
        drawn += f'<line class="median" x1="{at}" x2="{at}" y1="1" y2="23"/>'
        described = f"{len(values)} utterances from {min(values):.3g} to {max(values):.3g}, median {middle:.3g}"
        lines.append(_line(name, drawn, f"{middle:.3g}", marks, "", described))
    head = '<th scope="col">condition</th><td></td><th scope="col">median</th>'
    return _table("forest strips", measure, head, lines, marks, 1).data


def _line(name: str, drawn: str, numbers: str, marks: Sequence[float], more: str, described: str) -> str:
    grid = "".join(f'<line x1="{_percent(m, marks)}" x2="{_percent(m, marks)}" y1="0" y2="{HEIGHT}"/>' for m in marks)
    label = html.escape(f"{name}: {described}")
    svg = f'<svg class="plot" role="img" aria-label="{label}" height="{HEIGHT}">{grid}{drawn}</svg>'
    return f'<tr><th scope="row">{html.escape(name)}</th><td class="plot">{svg}</td><td>{numbers}</td>{more}</tr>'


def _table(kind: str, caption: str, head: str, lines: Sequence[str], marks: Sequence[float], after: int) -> HTML:
    labels = "".join(f'<text x="{_percent(m, marks)}" y="12" text-anchor="middle">{m:g}</text>' for m in marks)
    axis = f'<svg class="plot" aria-hidden="true" height="16">{labels}</svg>'
    foot = f'<tr><td></td><td class="plot">{axis}</td>{"<td></td>" * after}</tr>'
    caption = f"<caption>{html.escape(caption)}</caption>"
    return HTML(
        f'<table class="{kind}">{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}{foot}</tbody></table>'
    )


def _percent(value: float, marks: Sequence[float]) -> str:
    """A place between the first and the last mark, 3 % from the edges."""
    return f"{3 + 94 * (value - marks[0]) / (marks[-1] - marks[0]):.2f}%"
