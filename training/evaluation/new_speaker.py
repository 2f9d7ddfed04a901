"""Fine-tuning check: `python -m training.evaluation.new_speaker --checkpoint training/out/nano`.

Five minutes of a speaker that the corpus does not have (the source TTS with another pitch and other formants), then
`higgs finetune`, with LoRA and with every weight. Before and after, held-out sentences are asked for in this voice and
in the one that it starts from, and evaluated against a reference recording of the speaker.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from higgs.audio import probe
from higgs.files import write_atomically
from higgs.workflow.outputs import write_json
from training.corpus.texts import HELD_OUT, all_texts, read_sentences
from training.corpus.voices import Speaker
from training.evaluation.evaluate import add_options, evaluate, generation_of
from training.evaluation.held_out import REFERENCE_TEXT, Sizes, synthesise, write_lines, write_recordings
from training.evaluation.table import conditions, markdown_table

NOVA = Speaker("nova", 0.76, 1.05)  # low and with short formants: far from the corpus's correlation of the two
START = "feminine"
RANKS = {"LoRA of rank 16": 16, "every weight": 0}


def record(tts: Any, folder: Path, texts: list[str], minutes: float) -> Path:
    """Clips of NOVA until they last `minutes` -> their manifest."""
    rows, seconds = [], 0.0
    for index, text in enumerate(texts):
        path = folder / f"{index:04d}.wav"
        synthesise(tts, path, text, NOVA, seed=index)
        rows.append({"audio": path.name, "text": text})
        seconds += probe(path)[2]
        if seconds >= 60 * minutes:
            break
    write_lines(folder / "clips.jsonl", rows)
    return folder / "clips.jsonl"


def write_set(folder: Path, texts: list[str], tts: Any) -> None:
    """The texts asked for in both voices, and by the speaker herself, as `higgs.data` reads them."""
    names = (START, NOVA.name)
    for name in names:
        synthesise(tts, folder / f"voices/profiles/{name}.flac", REFERENCE_TEXT, NOVA)
    write_atomically(folder / "voices/profiles.json", json.dumps({name: name for name in names}))
    requests = [(f"{name}-{index:02d}", name, text) for name in names for index, text in enumerate(texts)]
    rows = [{"id": name, "form": "smart_voice", "voice": voice, "text": text} for name, voice, text in requests]
    write_lines(folder / "scripts.jsonl", rows)
    speech = [(name, NOVA, text) for name, voice, text in requests if voice == NOVA.name]
    write_recordings(folder / "recordings", speech, 0, tts)


def tune(manifest: Path, checkpoint: Path, out: Path, rank: int, steps: int | None) -> Path:
    """Runs the command of the package; a run that was stopped is resumed."""
    if not (out / "model/config.json").is_file():
        command = [sys.executable, "-m", "higgs", "finetune", str(manifest)]
        command += ["--description", NOVA.name, "--checkpoint", str(checkpoint), "--out", str(out)]
        command += ["--rank", str(rank), *(["--steps", str(steps)] if steps else [])]
        subprocess.run(command, check=True)
    return out


def main() -> None:
    from hibari import Hibari

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("training/out/nano"))
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, help="default: by the amount of speech")
    parser.add_argument("--sentences", type=int, default=40)
    add_options(parser, "training/out/new-speaker")
    arguments = parser.parse_args()
    out, tts = arguments.out, Hibari()
    training_texts = all_texts(arguments.wordnet)
    random.Random(2).shuffle(training_texts)
    manifest = record(tts, out / "clips", training_texts, arguments.minutes)
    write_set(out / "held-out", read_sentences(HELD_OUT)[: arguments.sentences], tts)
    checkpoints = {"before": arguments.checkpoint} | {
        f"after, {name}": tune(manifest, arguments.checkpoint, out / f"rank-{rank}", rank, arguments.steps)
        for name, rank in RANKS.items()
    }
    generation = generation_of(arguments)
    found = {
        name: evaluate(checkpoint, out, Sizes(), generation, arguments.judge, arguments.workers)
        for name, checkpoint in checkpoints.items()
    }
    write_json(out / "table.json", found)
    rows = [{"checkpoint": name} | row for name, content in found.items() for row in conditions(content)[0]]
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
