"""Fine-tuning check: `python -m training.evaluation.new_speaker --checkpoint training/out/nano`.

Five minutes of a speaker that the corpus does not have (the source TTS with another pitch and other formants), then
`higgs finetune`, with LoRA and with every weight. Before and after, on the held-out sentences: similarity to a
reference recording of the speaker, WER and predicted quality; and the same of the speaker's audio of those sentences.
"""

import argparse
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from higgs.audio import probe
from higgs.checkpoint.resolve import fingerprint
from higgs.data.scripts import Script
from higgs.data.voices import Voice
from higgs.evaluate.judged_rows import Journal
from higgs.evaluate.report.gather import RECORDED
from higgs.evaluate.report.html import by_group
from higgs.evaluate.statistics.summary import summarise
from higgs.evaluate.utterances import Utterance, load_listener
from higgs.serve.generation import GenerationConfig
from higgs.workflow.outputs import write_json
from training.corpus.texts import HELD_OUT, all_texts, read_sentences
from training.corpus.voices import Speaker
from training.evaluation.evaluate import MAX_NEW_TOKENS, RESAMPLES, generate, judge, panel_of
from training.evaluation.held_out import REFERENCE_TEXT, synthesise, write_lines
from training.evaluation.table import markdown_table

NOVA = Speaker("nova", 0.76, 1.05)  # low and with short formants: far from the corpus's correlation of the two


def record(tts: Any, folder: Path, texts: list[str], minutes: float) -> Path:
    """Clips of NOVA until they last `minutes`, and their manifest."""
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


def tune(manifest: Path, checkpoint: Path, out: Path, rank: int, steps: int | None) -> Path:
    """Runs the command of the package; a run that was stopped goes on."""
    if not (out / "model/config.json").is_file():
        command = [sys.executable, "-m", "higgs", "finetune", str(manifest)]
        command += ["--description", NOVA.name, "--checkpoint", str(checkpoint), "--out", str(out)]
        command += ["--rank", str(rank), *(["--steps", str(steps)] if steps else [])]
        subprocess.run(command, check=True)
    return out


def scripts_of(texts: list[str], description: str, reference: Path) -> list[Script]:
    """The texts in the voice of a description, to be compared with the reference."""
    prompt = Voice(description, description=description).prompt
    return [
        Script(
            f"{description}-{index:02d}", "smart_voice", description, text, prompt(text), None, (), None, prompt,
            reference=reference,
        )
        for index, text in enumerate(texts)
    ]  # fmt: skip


def generated(condition: str, checkpoint: Path, scripts: list[Script], out: Path) -> list[Utterance]:
    """The scripts by a checkpoint, first samples."""
    sampling = replace(GenerationConfig.from_pretrained(checkpoint / "model").sampling, seed=0)
    takes, _ = generate(checkpoint, scripts, lambda _: 1, sampling, MAX_NEW_TOKENS, out, 1)
    return [
        Utterance(
            condition, take["name"], take["script"], take["text"], out / f"generate/audio/{take['name']}.flac",
            seed=take["seed"], reference=Path(take["reference"]), cap_hit=take["stop"] == "length",
        )
        for take in takes
    ]  # fmt: skip


def conditions(
    out: Path, checkpoint: Path, texts: list[str], tts: Any, manifest: Path, steps: int | None
) -> list[Utterance]:
    """What is compared, condition by condition; `manifest` lists the clips to fine-tune on."""
    reference = out / "reference.flac"
    synthesise(tts, reference, REFERENCE_TEXT, NOVA)
    start, nova = (scripts_of(texts, name, reference) for name in ("feminine", NOVA.name))
    items = []
    for index, script in enumerate(nova):
        path = out / "source" / f"{script.id}.flac"
        synthesise(tts, path, script.text, NOVA, seed=10_000 + index)
        group = f"{RECORDED} of the speaker"
        items.append(Utterance(group, script.id, script.id, script.text, path, reference=reference))
    items += generated("before: the voice `feminine`", checkpoint, start, out / "before")
    items += generated("before: asked for `nova`", checkpoint, nova, out / "before")
    for name, rank in (("LoRA of rank 16", 16), ("every weight", 0)):
        tuned = tune(manifest, checkpoint, out / f"rank-{rank}", rank, steps)
        items += generated(f"after, {name}", tuned, nova, out / f"rank-{rank}-audio")
    return items


def main() -> None:
    from hibari import Hibari

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("training/out/nano"))
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=Path("training/out/new-speaker"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, help="default: by the amount of speech")
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, checkpoint, tts = arguments.out, arguments.checkpoint, Hibari()
    training_texts = all_texts(arguments.wordnet)
    random.Random(2).shuffle(training_texts)
    manifest = record(tts, out / "clips", training_texts, arguments.minutes)
    texts = read_sentences(HELD_OUT)[: arguments.sentences]
    items = conditions(out, checkpoint, texts, tts, manifest, arguments.steps)
    panel = partial(panel_of, "moonshine-tiny-en-float32", words_only=False)
    judged = judge(items, partial(load_listener, panel, {}), Journal(out / "judged.jsonl"), 1)
    summary = summarise(judged["Utterance"], RESAMPLES, 0)
    about = {"model": fingerprint(checkpoint / "model"), "clips": len(manifest.read_text().splitlines())}
    about |= {"minutes": arguments.minutes, "judges": panel().names()}
    write_json(out / "table.json", {"about": about, "summary": summary})
    print(markdown_table(by_group(summary, panel().names(short=True))[0]))


if __name__ == "__main__":
    main()
