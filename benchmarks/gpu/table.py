"""What `make gpu` found, as the tables of BENCHMARKS.md: `python -m benchmarks.gpu.table FILE [--write]`.

`--write` puts them in their place there; a rehearsal is refused.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "BENCHMARKS.md"
BEGIN, END = "<!-- gpu -->\n", "<!-- /gpu -->\n"
MISSING = "not measured"
FUSED_IS_WORTH = 1.10  # plain over fused: below it, the fused step is needed on the CPU alone
SECONDS_OF_STEP = 0.04


class Figures:
    """The numbers of a run: `figures("decode", "compiled")`; None where there is none."""

    def __init__(self, content: Mapping[str, Any]):
        self.parts = content.get("parts", {})

    def __call__(self, part: str, name: str) -> float | None:
        value = self.of(part).get(name, {}).get("value")
        return value if isinstance(value, int | float) else None

    def of(self, part: str) -> dict[str, dict[str, Any]]:
        return self.parts.get(part, {}).get("figures", {})

    def least(self, part: str, *names: str) -> float | None:
        """The smallest of those that are there."""
        found = [value for name in names if (value := self(part, name)) is not None]
        return min(found, default=None)

    def first(self, part: str, start: str, end: str = "") -> float | None:
        """Of the figure whose name begins and ends so; sizes are parts of names."""
        names = [name for name in self.of(part) if name.startswith(start) and name.endswith(end)]
        return self(part, names[0]) if names else None


@dataclass(frozen=True)
class Goal:
    """`value` of the figures; met where it is at least (or at most) `wanted`."""

    name: str
    wanted: float
    unit: str
    value: Callable[[Figures], float | None]
    at_most: bool = False

    def row(self, figures: Figures, rehearsal: bool) -> str:
        found, shown = self.value(figures), f"{self.wanted:,g}{self.unit}"
        if found is None:
            return f"| {self.name} | {'at most ' * self.at_most}{shown} | {MISSING} | |"
        met = found <= self.wanted if self.at_most else found >= self.wanted
        digits = 2 if abs(found) < 10 else 0
        measured = f"{found:,.{digits}f}{self.unit}"
        verdict = "a rehearsal" if rehearsal else "met" if met else "**not met**"
        return f"| {self.name} | {'at most ' * self.at_most}{shown} | {measured} | {verdict} |"


def divided(above: float | None, below: float | None, factor: float = 1.0) -> float | None:
    return None if above is None or not below else factor * above / below


def best_step(f: Figures) -> float | None:
    """ms of one request's step, as it would be served."""
    return f.least("decode", "graph", "compiled")


def share_of_bandwidth(f: Figures) -> float | None:
    # GB over GB/s are seconds
    limit = divided(f("decode", "bytes of a step"), f("bandwidth", "read"), 1000)
    return divided(limit, best_step(f), 100)


def frames_per_second(f: Figures) -> float | None:
    names = [name for name in f.of("slots") if name.startswith("batch ")]
    rows = int(names[0].split(",")[0].removeprefix("batch ")) if names else 0
    return divided(1000 * rows, f("slots", names[0])) if names else None


def int_ratio(part: str) -> Callable[[Figures], float | None]:
    return lambda f: divided(f("decode", "compiled"), f(part, "compiled"))


GOALS = (
    Goal("batch 1, share of the measured read bandwidth", 85, " %", share_of_bandwidth),
    Goal(
        "beside transformers, growing cache", 6, "x",
        lambda f: divided(f("decode", "transformers, growing cache"), best_step(f)),
    ),
    Goal(
        "beside transformers, static cache and compiled", 2, "x",
        lambda f: divided(f("decode", "transformers, static cache, compiled"), best_step(f)),
    ),
    Goal("64 rows, contexts of 200 to 1,200, frames in a second", 10_000, "", frames_per_second),
    Goal(
        "first exact packet after a prompt of 512 positions", 70, " ms",
        lambda f: f.least("first_packet", *f.of("first_packet")), at_most=True,
    ),
    Goal("int8 beside bfloat16", 1.4, "x", int_ratio("int8")),
    Goal("int4 beside bfloat16", 1.9, "x", int_ratio("int4")),
    Goal("codec, encoding: hours in an hour", 2000, "", lambda f: divided(1000, f("codec", "encode, encode(list)"))),
    Goal("waits of the host in a step, compiled", 0.25, "", lambda f: f("profile", "compiled, waits"), at_most=True),
    Goal("kernels in a step, compiled", 300, "", lambda f: f("profile", "compiled, kernels"), at_most=True),
)  # fmt: skip


def goals(figures: Figures, rehearsal: bool) -> list[str]:
    lines = [goal.row(figures, rehearsal) for goal in GOALS]
    return ["| goal | wanted | measured | |", "|---|---|---|---|", *lines]


def of_plain_step(f: Figures) -> list[str]:
    ratio = divided(f("plain_step", "plain, compiled"), f("plain_step", "fused, compiled"))
    if ratio is None:
        return []
    verdict = "the fused step is needed on the CPU alone" if ratio <= FUSED_IS_WORTH else "the fused step is worth it"
    return ["", f"The model's own modules, compiled, take {ratio:.2f} times as long as the fused step: {verdict}."]


def batches(f: Figures) -> list[str]:
    """ms of a step, and frames in a second, by the number of requests."""
    kinds = ("eager", "graph", "compiled", "transformers, growing cache", "transformers, static cache, compiled")
    names = [name.split(",")[0].removeprefix("batch ") for name in f.of("batches")]
    sizes = sorted({int(size) for size in names if size.isdigit()})  # and why the part ended, where it failed
    lines = []
    for size in sizes:
        values = [f("batches", f"batch {size}, {kind}") for kind in kinds]
        cells = ["" if v is None else f"{v:.2f} ({1000 * size / v:,.0f})" for v in values]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    head = [
        "", "Requests of one length: ms of a step (frames in a second).", "",
        f"| requests | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds),
    ]  # fmt: skip
    return head + lines if lines else []


def every_figure(f: Figures) -> list[str]:
    lines = []
    for part, content in f.parts.items():
        if part == "batches":
            continue
        for name, figure in content["figures"].items():
            value, unit = figure["value"], figure.get("unit", "")
            shown = value if isinstance(value, str) else f"{value:,.4g} {unit}".strip()
            spread = f" ({figure['low']:.4g} to {figure['high']:.4g})" if "low" in figure else ""
            lines.append(f"| {part} | {_cell(name)} | {_cell(shown)}{spread} |")
    return ["", "| part | figure | |", "|---|---|---|", *lines] if lines else []


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")[:200]


def about(content: Mapping[str, Any]) -> list[str]:
    if not content:
        return ["**Not measured**: there was none. `make gpu` on a machine with one fills these tables."]
    a = content["about"]
    named = ("torch", "cuda", "transformers", "triton", "python")
    versions = ", ".join(f"{name} {a[name]}" for name in named if a.get(name))
    card = f"{a['card']}, {a['memory']}" if a.get("memory") else a["card"]
    line = f"{card}; {versions}; {content['date']}; commit {a['commit']}"
    lines = [line + f"; size {a['size']}, bfloat16, random weights."]
    if a["rehearsal"]:
        lines = ["**Rehearsal, no measurement of a GPU at the released sizes.** " + lines[0]]
    states = {name: part["state"] for name, part in content["parts"].items() if part["state"] != "done"}
    return lines + ["", *(f"- {name}: {_cell(state)}" for name, state in states.items())] if states else lines


def markdown(content: Mapping[str, Any]) -> str:
    figures, rehearsal = Figures(content), bool(content) and content["about"]["rehearsal"]
    plain = [] if rehearsal else of_plain_step(figures)
    tables = [*goals(figures, rehearsal), *plain, *batches(figures), *every_figure(figures)]
    return "\n".join([*about(content), "", *tables])


def write(content: Mapping[str, Any], page: Path = PAGE) -> None:
    """Replaces what is between the marks. ValueError for a rehearsal."""
    if content and content["about"]["rehearsal"]:
        raise ValueError(f"a rehearsal is no measurement: it is not written to {page.name}")
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}{markdown(content)}\n{END}{after}", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.table", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", action="store_true", help="into BENCHMARKS.md")
    arguments = parser.parse_args(words)
    try:
        content = json.loads(arguments.file.read_text(encoding="utf-8"))
        if arguments.write:
            write(content)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(markdown(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
