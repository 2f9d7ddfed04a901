"""The examination as Markdown, and into the model card: `python training/exam_table.py`."""

import argparse
import json
from pathlib import Path
from typing import Any

from higgs.checkpoint.resolve import fingerprint
from higgs.files import replacing

START, END = "<!-- exam -->", "<!-- /exam -->"


def rate(found: dict[str, Any]) -> str:
    """WER with its interval; by whom, where there are several."""
    told = []
    for judge, row in found.items():
        low, high = row.get("wer_interval", (None, None))
        interval = "" if low is None else f" ({low:.1f} to {high:.1f})"
        by = f" {judge}" if len(found) > 1 else ""
        told.append(f"{row['wer_percent']:.1f} %{interval}{by}")
    return "; ".join(told)


def percent(found: dict[str, Any]) -> str:
    if not found.get("of"):
        return "not measured: too few clips"
    low, high = found["interval"]
    return f"{found['hits']} of {found['of']}: {found['percent']:.0f} % ({low:.0f} to {high:.0f})"


def rows(content: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured, and the value; only of parts that were done."""
    table: list[tuple[str, str]] = []
    if words := content.get("words"):
        for name in ("ada", "ben", "kit"):
            own = words[name]
            table += [
                (f"WER, `{name}`, first samples ({own['generations']})", rate(own["words"])),
                (f"WER, the teacher as `{name}`", rate(own["teacher"])),
                (f"cut off at the cap, `{name}`", f"{own['cap_hits']} of {own['generations']}"),
                (
                    f"length between 0.8 and 1.25 of the teacher's, `{name}`",
                    f"{own['length_within_percent']:.0f} % (median ratio {own['length_ratio_median']:.2f})",
                ),
            ]
        table.append(("own voices told apart (GE2E)", percent(words["voices"])))
    for name, group in content.get("codec", {}).items():
        if isinstance(group, dict):
            told = f"{rate(group['codec'])}; originals {rate(group['original'])}"
            table.append((f"codec round trip, {name}: WER", told))
    if cloning := content.get("cloning"):
        table += [
            (
                "cloning: the nearest of 10 references is its own",
                percent(cloning["nearest_is_own"]),
            ),
            ("of 8 synthetic voices", percent(cloning["of_synthetic"])),
            ("of 2 human voices", percent(cloning["of_human"])),
            ("of the teacher itself, for comparison", percent(cloning["of_the_teacher_itself"])),
            ("WER of clones", rate(cloning["words"])),
        ]
    if talks := content.get("dialogues"):
        table += [
            ("dialogues: right voice on a turn", percent(talks["right_voice_by_turn"])),
            ("right on all four turns", percent(talks["right_voice_whole_dialogue"])),
            ("WER in dialogues", rate(talks["words"])),
        ]
    if long := content.get("long_form"):
        by_time = ", ".join(f"{k}: {v:.0f} %" for k, v in long["wer_percent_by_time"].items())
        told = f"{by_time}; {long['cap_hits']} of {long['chunks']} chunks cut off"
        table.append((f"long form, {long['seconds']:.0f} s: WER by time", told))
    if speed := content.get("size_and_speed"):
        where = f"{speed['threads']} threads of {speed['machine']}"
        table += [
            ("size", f"{speed['megabytes']:.1f} MB"),
            ("real-time factor, codec included", f"{speed['real_time_factor']:.2f} on {where}"),
        ]
    return table


def provenance(content: dict[str, Any]) -> str:
    """What the numbers came from."""
    about = content["about"]
    sizes, setting = about["sizes"], about["setting"]
    end = "strict ends" if setting["strict_eos"] else "the original's ends"
    return (
        f"Sentences: {sizes['sentences']} held out, {sizes['seeds']} seeds from 0 in the first voice; "
        f"temperature {setting['temperature']}, top-k {setting['top_k']}, {end}, at most "
        f"{setting['max_new_tokens']} columns, no guards, nothing spoken twice. "
        "In brackets 95 % intervals (bootstrap over sentences; Wilson). "
        f"Judges: {'; '.join(about['judges'])}. Model {about['model'][:12]}, codec {about['codec'][:12]}."
    )


def markdown(content: dict[str, Any]) -> str:
    """-> the table, and under it what it came from."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows(content))]
    return "\n".join([*lines, "", provenance(content)]) + "\n"


def fill(card: str, table: str) -> str:
    """The table between the two marks of a page. Raises ValueError where they are not."""
    before, start, rest = card.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page has no {START} ... {END}")
    return f"{before}{START}\n{table}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exam", type=Path, default=Path("training/out/exam/exam.json"))
    parser.add_argument("--card", type=Path, default=Path("training/model-card.md"))
    parser.add_argument("--checkpoint", type=Path, default=Path("training/out/nano"))
    arguments = parser.parse_args()
    content = json.loads(arguments.exam.read_text(encoding="utf-8"))
    for part in ("model", "codec"):
        if content["about"][part] != fingerprint(arguments.checkpoint / part):
            parser.error(f"{arguments.exam} examined another {part} than that in {arguments.checkpoint}")
    filled = fill(arguments.card.read_text(encoding="utf-8"), markdown(content))
    with replacing(arguments.card) as partial:
        partial.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
