"""How `NANO_GENERATION` is chosen: WER over settings, on the validation set's sentences and never on the held-out ones.

`python -m training.evaluation.choose_sampling training/out/nano`. One seed a sentence; a sentence in three voices.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import torch

from higgs import Engine
from higgs.data.chatml import smart_voice
from higgs.evaluate.judges.registry import load_metric_models
from higgs.evaluate.metrics.error_rates import word_errors
from higgs.serve.generation_config import GenerationConfig
from higgs.workflow.outputs import progress
from training.corpus.texts import VALIDATION, read_sentences
from training.corpus.voices import DESCRIBED
from training.evaluation.table import markdown_table

TEMPERATURES, TOP_KS = (0.1, 0.2, 0.3, 0.4, 0.6), (20,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder with model/ and codec/")
    parser.add_argument("--judge", default="moonshine-tiny-en-float32")
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--top-ks", type=int, nargs="+", default=TOP_KS, help="0: no limit")
    parser.add_argument("--max-new-tokens", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(arguments.checkpoint / "model", arguments.checkpoint / "codec", device="cpu")
    own = GenerationConfig.from_pretrained(arguments.checkpoint / "model").sampling
    recogniser, sentences = load_metric_models(arguments.judge).recogniser, read_sentences(VALIDATION)
    settings, table = list(itertools.product(arguments.temperatures, arguments.top_ks)), []
    for temperature, top_k in progress(settings, "settings"):
        row: dict[str, str] = {"temperature": str(temperature), "top-k": str(top_k)}
        for voice, description in DESCRIBED.items():
            samples = [smart_voice(text, None, description) for text in sentences]
            sampling = replace(own.override(temperature=temperature, top_k=top_k), seed=0)
            answers = engine.generate_batch(samples, sampling, arguments.max_new_tokens)
            counts = [
                word_errors(text, recogniser.transcribe(answer.waveform, answer.sample_rate, "en"))
                for text, answer in zip(sentences, answers, strict=True)
            ]
            wer = sum(count.errors for count in counts) / sum(count.total for count in counts)
            row[voice] = f"{100 * wer:.1f} %, {[a.stop_reason for a in answers].count('length')} cut off"
        table.append(row)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
