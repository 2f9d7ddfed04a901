"""Small drawings of a comparison as inline SVG, which follow the page's colours and the width of a phone."""

import html
from collections.abc import Sequence

from higgs.comparison.many import front
from higgs.workflow.tables import Row

# The least half width of a difference's axis, in the metric's unit: what is far below is drawn as no difference.
LEAST = {"percent": 2.0, "mos": 0.1, "preference": 20.0, "score": 10.0}
LEAST_SHARE = 0.02  # similarities, ratios
UNITS = {"percent": "points", "mos": "of 5", "preference": "points", "score": "of 100"}


def kind_of(metric: str) -> str:
    """The part of a metric's name that says its unit; "" for shares and ratios."""
    return next((kind for kind in LEAST if kind in metric), "")


def axis_limit(rows: Sequence[Row]) -> float:
    """The half width of the axis that the differences of one metric share."""
    ends = [abs(row[name]) for row in rows for name in ("low", "high")]
    return max(LEAST.get(kind_of(rows[0]["metric"]), LEAST_SHARE), 1.1 * max(ends))


def difference_bar(row: Row, limit: float) -> str:
    """A difference with its interval on an axis from -limit to limit; the upright line is no difference."""
    low, high, middle = (100 + 96 * row[name] / limit for name in ("low", "high", "difference"))
    unit = UNITS.get(kind_of(row["metric"]), "")
    words = html.escape(f"difference {row['difference']:.3g}, interval {row['low']:.3g} to {row['high']:.3g} {unit}")
    return (
        f'<svg class="bar" viewBox="0 0 200 34" role="img" aria-label="{words}">'
        '<line class="axis" x1="4" x2="196" y1="20" y2="20"/><line class="zero" x1="100" x2="100" y1="2" y2="22"/>'
        f'<line class="interval" x1="{low:.1f}" x2="{max(high, low + 1):.1f}" y1="12" y2="12"/>'
        f'<circle class="estimate" cx="{middle:.1f}" cy="12" r="4"/>'
        f'<text x="4" y="32">-{limit:.3g}</text><text x="196" y="32" text-anchor="end">+{limit:.3g} {unit}</text></svg>'
    )


def scatter(points: Sequence[tuple[float, float]], letters: str, titles: tuple[str, str]) -> str:
    """(WER, similarity) by run, with a line through those that no other beats in both. To the upper left is better."""
    ends = []
    for values, least in zip(zip(*points, strict=True), (2.0, 0.02), strict=True):
        middle = (min(values) + max(values)) / 2
        half = max(least, (max(values) - min(values)) * 0.65)
        ends.append((middle - half, middle + half))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = ((value - low) / (high - low) for value, (low, high) in zip(point, ends, strict=True))
        return 50 + 330 * x, 230 - 210 * y

    best = front(points)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(points[run]) for run in best))
    parts = [f'<polyline class="front" points="{line}"/>']
    for run, point in enumerate(points):
        (x, y), style = place(point), "estimate" if run in best else "beaten"
        parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text class="name" x="{x + 8:.1f}" y="{y - 6:.1f}">{letters[run]}</text>')
    (left, right), (bottom, top) = ends
    parts += [
        '<path class="axis" d="M50 20V230H380"/>',
        f'<text x="50" y="246">{left:.1f}</text><text x="380" y="246" text-anchor="end">{right:.1f}</text>',
        f'<text x="44" y="230" text-anchor="end">{bottom:.2f}</text>',
        f'<text x="44" y="26" text-anchor="end">{top:.2f}</text>',
        f'<text x="215" y="262" text-anchor="middle">{html.escape(titles[0])}</text>',
        f'<text transform="translate(14 125) rotate(-90)" text-anchor="middle">{html.escape(titles[1])}</text>',
    ]
    names = ", ".join(letters[run] for run in best)
    label = f"word error rate against similarity; not beaten in both: {names}"
    return f'<svg class="scatter" viewBox="0 0 400 270" role="img" aria-label="{label}">{"".join(parts)}</svg>'
