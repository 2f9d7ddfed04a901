"""The command of `higgs speak` that says an utterance again, with the same codes."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgs.data.chatml import tagged
from higgs.data.recordings import folder_above
from higgs.data.scripts import script_file
from higgs.evaluate.report.gather import Results
from higgs.files import read_lines
from higgs.validation import parse_json
from higgs.workflow.tables import Row

# Options of chunks that `higgs speak` has, except for --per-speaker-context; with another one there is no command.
NUMBERS = ("max_words", "context_chunks", "retries", "sentence_pause", "paragraph_pause", "speaker_pause")
SAMPLING = ("temperature", "top_k", "top_p")  # where another one is not the checkpoint's own there is no command


def commands(results: Results) -> dict[str, str]:
    """Name of a sample -> its command. Samples that no option describes have none: dialogues of described speakers."""
    generated = results.generated
    origin, sampling = generated["provenance"], generated["sampling"]
    own = generated.get("own_sampling", sampling)
    if any(sampling[name] != value for name, value in own.items() if name not in (*SAMPLING, "seed")):
        return {}
    try:
        path = script_file(origin["set"])
        records = [parse_json(line, place) for place, line in read_lines(path)]
    except (OSError, ValueError):
        return {}  # the set is not here any more
    scripts = {record["id"]: record for record in records if isinstance(record, dict) and "id" in record}
    shared = [] if origin["checkpoint"] == "nano" else ["--checkpoint", origin["checkpoint"]]
    for name in SAMPLING:
        shared += [f"--{name.replace('_', '-')}", str(sampling[name] or 0)]
    found = {}
    for row in results.samples:
        script = scripts.get(row["script"], {})
        words = _words(script, row, path)
        if words is not None:
            out = ["--seed", str(row["seed"]), "--out", f"{row['name']}.wav"]
            if limit := script.get("max_new_tokens") or generated.get("max_new_tokens"):
                out += ["--max-new-tokens", str(limit)]
            text, *options = words
            last = ["--", text] if text.startswith("-") else []  # a text, not an option
            found[row["name"]] = shlex.join(
                ["higgs", "speak", *([] if last else [text]), *options, *shared, *out, *last]
            )
    return found


def _words(script: Mapping[str, Any], row: Row, path: Path) -> list[str] | None:
    """Text, voice and chunks as arguments; None where `higgs speak` cannot say it so."""
    if "reference" in script:
        reference = str(folder_above(path) / script["reference"])
        options = ["--reference", reference, "--reference-text", script["reference_text"]]
        return [row["text"], *options, "--no-chunking"]
    if script.get("form") == "dialogue":
        if not script.get("voices"):
            return None
        voices = {int(number): name for number, name in script["voices"].items()}
        words = [tagged([tuple(line) for line in script["lines"]], voices)]
        for number, name in voices.items():
            words += ["--speaker", f"{number}={name}"]
    elif "voice" in script:
        words = [script["text"], "--voice", script["voice"]]
    else:
        return None
    if script.get("scene") is not None:
        words += ["--scene", script["scene"]]
    chunks = script.get("chunks")
    if chunks is None:
        return words if script["form"] == "long_form" else [*words, "--no-chunking"]
    if set(chunks) - {*NUMBERS, "per_speaker_context"} or None in chunks.values():
        return None
    for name in NUMBERS:
        if name in chunks:
            words += [f"--{name.replace('_', '-')}", str(chunks[name])]
    return words + ["--per-speaker-context"] * bool(chunks.get("per_speaker_context"))
