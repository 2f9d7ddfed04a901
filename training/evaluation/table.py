"""The evaluation as Markdown, and into the model card: `python -m training.evaluation.table`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from higgs.checkpoint.resolve import fingerprint
from higgs.evaluate.report.html import by_group
from higgs.files import replacing

START, END = "<!-- evaluation -->", "<!-- /evaluation -->"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |\n" for line in lines)


def percent(found: Mapping[str, Any]) -> str:
    if not found["of"]:
        return "not measured"
    low, high = found["interval"]
    return f"{found['hits']} of {found['of']}: {found['percent']:.0f} % [{low:.0f}, {high:.0f}]"


def conditions(content: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """A row for each condition, a column for each metric -> the rows, and the caption."""
    rows, caption = by_group(content["summary"], content["about"]["short"])
    for name, summary in content["other_recognisers"].items():
        by_name = {row["group"]: row for row in by_group(summary, {"recogniser": name})[0]}
        rows = [row | {f"WER %, {name}": by_name.get(row["group"], {}).get("WER %")} for row in rows]
    return [{"condition": row.pop("group"), **row} for row in rows], caption


def facts(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """What has a single value."""
    long, speed = content["long"], content["size_and_speed"]
    known = [row for row in long["segments"] if row["wer_percent"] is not None]
    by_time = ", ".join(f"{row['start']:.0f}-{row['end']:.0f} s: {row['wer_percent']:.0f} %" for row in known)
    table = {f"speaker attribution accuracy: {name}": percent(found) for name, found in content["attribution"].items()}
    table |= {
        f"codec round trip, {kind}": (
            f"mel distance {found['mel_db']:.1f} dB, SI-SDR {found['si_sdr_db']:.1f} dB, STOI {found['stoi']:.2f}"
        )
        for kind, found in content["codec"].items()
    }
    table |= {
        "long text: WER by time": f"{by_time}; {long['cut_off']} of {long['chunks']} chunks cut off",
        "size": f"{speed['megabytes']:.1f} MB",
        "real-time factor, codec included": (
            f"{speed['real_time_factor']:.2f} on {speed['threads']} threads of {speed['machine']}"
        ),
    }
    return [{"measured": name, "value": value} for name, value in table.items()]


def provenance(content: Mapping[str, Any]) -> str:
    """What the numbers came from."""
    about = content["about"]
    sizes, setting = about["sizes"], about["setting"]
    end = "strict ends" if setting["strict_eos"] else "the reference's ends"
    return (
        f"{sizes['sentences']} held-out sentences, {sizes['seeds']} seeds from 0 in the first voice; "
        f"temperature {setting['temperature']}, top-k {setting['top_k']}, {end}, at most {setting['max_new_tokens']} "
        "delayed frames, no run-away detection, first samples only. In brackets 95 % intervals. "
        f"Metric models: {'; '.join(about['judges'])}. Model {about['model'][:12]}, codec {about['codec'][:12]}."
    )


def markdown(content: Mapping[str, Any]) -> str:
    """-> both tables, and what they came from."""
    rows, caption = conditions(content)
    return (
        "\n".join([markdown_table(rows), caption + ".\n", markdown_table(facts(content)), provenance(content)]) + "\n"
    )


def fill(card: str, table: str) -> str:
    """The table between the two marks of a page. Raises ValueError where they are not."""
    before, start, rest = card.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page has no {START} ... {END}")
    return f"{before}{START}\n{table}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluation", type=Path, default=Path("training/out/evaluation/evaluation.json"))
    parser.add_argument("--card", type=Path, default=Path("training/model-card.md"))
    parser.add_argument("--checkpoint", type=Path, default=Path("training/out/nano"))
    arguments = parser.parse_args()
    content = json.loads(arguments.evaluation.read_text(encoding="utf-8"))
    for part in ("model", "codec"):
        if content["about"][part] != fingerprint(arguments.checkpoint / part):
            parser.error(f"{arguments.evaluation} is of another {part} than that in {arguments.checkpoint}")
    filled = fill(arguments.card.read_text(encoding="utf-8"), markdown(content))
    with replacing(arguments.card) as partial:
        partial.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
