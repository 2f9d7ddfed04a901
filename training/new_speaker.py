"""Teach the checkpoint a new speaker: `python -m training.new_speaker --checkpoint training/out/nano`.

Five minutes of a speaker that the corpus does not have (the teacher with another pitch and other formants), then
fine-tuning as anyone would do it, `higgs finetune`, with LoRA and with every weight. Before and after:
how like the speaker it sounds (cosine of speaker embeddings, mean over sentences that were in no training) and how many
words are understood. For comparison the speaker's own further sentences, and the voice that it started from.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs.audio import save_audio
from higgs.checkpoint.resolve import fingerprint
from higgs.data.chatml import smart_voice
from higgs.evaluate.judges.registry import make_judge, make_speaker_encoder
from higgs.evaluate.statistics.intervals import mean_interval
from higgs.files import replacing
from higgs.serve.engine import Engine, EngineConfig
from training.corpus.texts import all_texts, read_sentences
from training.corpus.voices import SAMPLE_RATE, Speaker, speak
from training.exam import MAX_NEW_TOKENS
from training.measures import error_rates, mean, write_json

NOVA = Speaker("nova", 0.76, 1.05)  # low and with short formants: far from the corpus's correlation of the two
HERE = Path(__file__).parent


def record(teacher: Any, folder: Path, texts: list[str], minutes: float) -> Path:
    """Clips of NOVA until they last `minutes`, and their manifest. What is there already is kept."""
    manifest = folder / "clips.jsonl"
    if manifest.is_file():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    rows, seconds = [], 0.0
    for index, text in enumerate(texts):
        audio = torch.from_numpy(speak(teacher, text, NOVA, 1.0, index)).float() / 32768
        save_audio(folder / f"{index:04d}.wav", audio, SAMPLE_RATE)
        rows.append({"audio": f"{index:04d}.wav", "text": text})
        seconds += len(audio) / SAMPLE_RATE
        if seconds >= 60 * minutes:
            break
    with replacing(manifest) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def tune(manifest: Path, checkpoint: Path, out: Path, rank: int, steps: int | None) -> Path:
    """Runs the command of the package; a run that was stopped goes on."""
    if not (out / "model/config.json").is_file():
        command = [sys.executable, "-m", "higgs", "finetune", str(manifest)]
        command += ["--description", NOVA.name, "--checkpoint", str(checkpoint), "--out", str(out)]
        command += ["--rank", str(rank), *(["--steps", str(steps)] if steps else [])]
        subprocess.run(command, check=True)
    return out


class Judge:
    """Similarity to the speaker, and words, of clips of the same sentences."""

    def __init__(self, texts: list[str], own: list[Tensor]):
        self.texts = texts
        self.listener = make_judge("moonshine-tiny-en-float32")
        self.encoder = make_speaker_encoder("ge2e")
        self.target = torch.nn.functional.normalize(
            torch.stack([self.encoder.embed(clip, SAMPLE_RATE) for clip in own]).mean(0), dim=0
        )

    def row(self, name: str, clips: list[Tensor]) -> dict[str, Any]:
        alike = []
        for clip in clips:
            try:
                alike.append(float(self.encoder.embed(clip, SAMPLE_RATE) @ self.target))
            except ValueError:  # no voice in it
                alike.append(0.0)
        found = mean_interval(alike, clusters=self.texts)
        return {
            "what": name,
            "similarity": mean(alike),
            "similarity_interval": [found.low, found.high],
            **error_rates(self.listener, self.texts, clips),
        }


def generated(checkpoint: Path, texts: list[str], description: str) -> list[Tensor]:
    engine = Engine.from_pretrained(
        checkpoint / "model", checkpoint / "codec", device="cpu", config=EngineConfig(runaway=None)
    )
    samples = [smart_voice(text, None, description) for text in texts]
    found = engine.generate_batch(samples, max_new_tokens=MAX_NEW_TOKENS)
    return [response.waveform for response in found]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| | similarity to the speaker | WER |", "|---|---|---|"]
    for row in rows:
        (a, b), (low, high) = row["similarity_interval"], row["wer_interval"]
        lines.append(
            f"| {row['what']} | {row['similarity']:.2f} ({a:.2f} to {b:.2f}) "
            f"| {row['wer_percent']:.1f} % ({low:.1f} to {high:.1f}) |"
        )
    return "\n".join(lines)


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
    texts = read_sentences(HERE / "held_out.txt")[: arguments.sentences]
    teacher, spoken = Hibari(), all_texts(arguments.wordnet)
    random.Random(2).shuffle(spoken)
    manifest = record(teacher, arguments.out / "clips", spoken, arguments.minutes)
    own = [
        torch.from_numpy(speak(teacher, text, NOVA, 1.0, 10_000 + index)).float() / 32768
        for index, text in enumerate(texts)
    ]
    judge = Judge(texts, own)
    rows = [
        judge.row("the speaker (similarity to itself)", own),
        judge.row("before: the voice `feminine`", generated(arguments.checkpoint, texts, "feminine")),
        judge.row("before: asked for `nova`", generated(arguments.checkpoint, texts, NOVA.name)),
    ]
    for name, rank in (("LoRA of rank 16", 16), ("every weight", 0)):
        out = arguments.out / f"rank-{rank}"
        tuned = tune(manifest, arguments.checkpoint, out, rank, arguments.steps)
        rows.append(judge.row(f"after {arguments.steps} steps, {name}", generated(tuned, texts, "nova")))
    about = {
        "model": fingerprint(arguments.checkpoint / "model"),
        "clips": len(manifest.read_text().splitlines()),
        "minutes": arguments.minutes,
        "judges": [judge.encoder.name, judge.listener.name],
    }
    write_json(arguments.out / "table.json", {"about": about, "rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
