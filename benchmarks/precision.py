"""What rounding the weights costs: logits of random weights, and word errors of the default checkpoint.

    python -m benchmarks.precision --out FOLDER [--texts N]

Every text of the default set is spoken with three seeds (360 utterances) in each type of weights, and heard by the
evaluation's recogniser; differences to float32 are paired by text. Killed and started again, it goes on.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from benchmarks.decode import SMALL, random_model
from benchmarks.full_size import prompt
from higgs import Engine
from higgs.audio import save_audio
from higgs.checkpoint.resolve import fingerprint
from higgs.config import ModelConfig
from higgs.data.scripts import read_scripts, script_file
from higgs.evaluate.judges.registry import load_metric_models
from higgs.evaluate.statistics.paired_runs import compare
from higgs.evaluate.utterances import Evaluator, Utterance
from higgs.files import content_hash
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Store, make_part
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.matrices import BITS
from higgs.resumable import code_hash
from higgs.serve.engine import choose_dtype
from higgs.serve.many_scripts import choose_tasks, speak_all
from higgs.workflow.tables import write_rows

DTYPES = ("float32", "bfloat16", "int8", "int4")
JUDGE, MAX_NEW_TOKENS = "moonshine-tiny-en-float32", 400
NANO, VOICES = Path("data/checkpoints/nano"), Path("data/voices")


def code_logits(model: HiggsAudio, config: ModelConfig) -> torch.Tensor:
    """[S, K, N + 2] at the audio positions of a prompt."""
    batch = prompt(config, 200)
    return model.audio_logits(model.hidden(batch)[0][batch.audio_mask])


@torch.inference_mode()
def logits(config: ModelConfig, dtype: str) -> torch.Tensor:
    """[S, K, N + 2] at the audio positions of a prompt, from random weights of float32 that are rounded or cast."""
    compute, bits = choose_dtype(dtype, torch.device("cpu")), BITS.get(dtype)
    model = random_model(config, "cpu", torch.float32 if bits else compute, bits)
    return code_logits(model, config)


def print_logits(config: ModelConfig) -> None:
    exact = logits(config, "float32")
    for dtype in DTYPES[1:]:
        near = logits(config, dtype)
        error = (near - exact).norm() / exact.norm()
        same = (near.argmax(-1) == exact.argmax(-1)).float().mean()
        print(
            f"random weights, {dtype}: error of the logits {error:.2%}, the same likeliest code {same:.1%}", flush=True
        )


def sources() -> dict[str, str]:
    return {part: fingerprint(NANO / part) for part in ("model", "codec")}


def folder_of(dtype: str, out: Path, texts: int | None) -> Path:
    """Named by all that its utterances depend on."""
    voices = [path for path in VOICES.rglob("*") if path.is_file()]
    data = content_hash([script_file("default"), Path(__file__), *voices])
    return out / f"{dtype}-{make_part([code_hash('cpu'), sources(), data, JUDGE, MAX_NEW_TOKENS], [texts]).name[:8]}"


def speak(dtype: str, out: Path, texts: int | None) -> Path:
    """-> the folder with the table of utterances."""
    folder = folder_of(dtype, out, texts)
    if (folder / "utterances.jsonl").exists():
        return folder
    load = partial(Engine.from_pretrained, NANO / "model", NANO / "codec", device="cpu", dtype=dtype)
    engine = load()
    scripts = read_scripts(script_file("default"), VOICES, engine.generation.chunks)[:texts]
    tasks = choose_tasks(scripts, (0, 1, 2), None)
    store, settings = Store(str(out / "partial")), sources() | {"device": "cpu", "dtype": dtype}
    spoken = speak_all(
        lambda: engine, tasks, engine.generation.sampling, MAX_NEW_TOKENS, store, settings, Cluster(None, 1)
    )
    found = {utterance.name: utterance for utterance in spoken}
    evaluator = Evaluator(load_metric_models(JUDGE), engine.tokenizer.sample_rate)
    rows = []
    for script, seed in tasks:
        name = script.record(seed)["name"]
        path = folder / f"{name}.flac"
        if len(found[name].waveform):
            save_audio(path, found[name].waveform, engine.tokenizer.sample_rate)
        text = script.record(seed)["text"]
        rows.append(evaluator.judge(Utterance("generated", name, script.id, text, path, seed=seed, predict_mos=False)))
    (folder / "provenance.json").write_text(json.dumps({"judges": {"recogniser": JUDGE}}))
    write_rows(folder / "utterances.jsonl", rows)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, help="only the first so many")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES[1:], default=DTYPES[1:])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_logits(SMALL)
    exact = speak("float32", arguments.out, arguments.texts)
    for dtype in arguments.dtypes:
        for row in compare(exact, speak(dtype, arguments.out, arguments.texts)).rows[:2]:
            values = "{a:.2f} in float32, {b:.2f}: {difference:+.2f} ({low:+.2f} to {high:+.2f}), p {p:.3f}".format(
                **row
            )
            print(f"{dtype}: {row['metric']} {values}; {row['changed']} of {row['n']} texts differ", flush=True)


if __name__ == "__main__":
    main()
