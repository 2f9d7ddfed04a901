"""Held-out evaluation of a checkpoint: `python -m training.evaluation.evaluate FOLDER`, or `--quick` for a first look.

FOLDER holds `model/` and `codec/`. The held-out set is generated, judged and summarised by what the stages generate and
evaluate use; first samples only, without run-away detection. Added here: the codec's round trip of the source TTS and
of unseen speakers, speaker attribution among closed sets of voices, size and speed.

Writes `evaluation.json`, `evaluation.md`, `utterances.jsonl`, and the audio. A run that was stopped is resumed.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs import AudioTokenizer, Engine
from higgs.audio import load_audio, save_audio
from higgs.checkpoint.resolve import fingerprint
from higgs.data.recordings import read_recordings
from higgs.data.scripts import Script, read_scripts
from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import MetricModels, load_metric_models
from higgs.evaluate.long_form import DIALOGUE, LONG_FORM, ChunkedSample
from higgs.evaluate.metrics.codec import mean_of, round_trips
from higgs.evaluate.report.gather import GENERATED, RECONSTRUCTED, RECORDED, Results, chunked_samples, gather
from higgs.evaluate.result_cache import ResultCache
from higgs.evaluate.statistics.intervals import wilson_interval
from higgs.evaluate.statistics.summary import summarise
from higgs.evaluate.utterances import Evaluator, Task, Utterance, ask, load_evaluator, speaking_rates
from higgs.files import content_hash, write_atomically
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Store
from higgs.serve.engine import EngineConfig
from higgs.serve.generation_config import GenerationConfig
from higgs.serve.many_scripts import speak_all
from higgs.workers import in_order
from higgs.workflow.outputs import progress, write_json
from higgs.workflow.speed import cpu_name
from higgs.workflow.tables import Row, write_rows
from training.corpus.voices import DESCRIBED, SAMPLE_RATE
from training.evaluation.held_out import HUMAN, Sizes, write_held_out
from training.evaluation.table import markdown

MAX_NEW_TOKENS = 400
RESAMPLES = 10_000
DISTANCES = ("mel_db", "stft", "si_sdr_db", "stoi")
SUFFIXES = {GENERATED: "", RECORDED: ", source audio", RECONSTRUCTED: ", codec round trip"}


def load_engine(checkpoint: Path, **options: Any) -> Engine:
    return Engine.from_pretrained(checkpoint / "model", checkpoint / "codec", device="cpu", **options)


def generate(
    checkpoint: Path, held_out: Path, out: Path, generation: GenerationConfig, seeds: int, workers: int | None
) -> tuple[list[Script], list[Row], list[Row]]:
    """-> the scripts, rows of utterances (the first in-house voice with `seeds` seeds) and of chunks.

    The audio is in `out/generate/audio`.
    """
    scripts = read_scripts(held_out / "scripts.jsonl", held_out / "voices", generation.chunks)
    limit, first = generation.max_new_tokens, next(iter(DESCRIBED))
    several = {script.id for script in scripts if (script.form, script.voice) == ("smart_voice", first)}
    requests = [(script, seed) for script in scripts for seed in range(seeds if script.id in several else 1)]
    files = [held_out / "scripts.jsonl", *(path for path in (held_out / "voices").rglob("*") if path.is_file())]
    settings = {part: fingerprint(checkpoint / part) for part in ("model", "codec")}
    settings |= {"data": content_hash(files), "generation": generation.to_json()}
    load = partial(load_engine, checkpoint, config=EngineConfig(runaway=None))
    store, sampling = Store(str(out / "partial")), replace(generation.sampling, seed=0)
    samples = speak_all(load, requests, sampling, limit, store, settings, Cluster(None, workers))
    found = {sample.name: sample for sample in samples}
    ordered = [found[script.record(seed)["name"]] for script, seed in requests]
    for sample in ordered:
        path = out / "generate/audio" / f"{sample.name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if len(sample.waveform):
            save_audio(path, sample.waveform, SAMPLE_RATE)
    return scripts, [sample.record for sample in ordered], [chunk for sample in ordered for chunk in sample.chunks]


def code_recordings(checkpoint: Path, manifest: Path, out: Path, workers: int | None) -> list[Row]:
    """The recordings through the codec, to `out/tokenize/audio` -> distances of each, and its condition."""
    recordings = read_recordings(manifest)
    load = partial(AudioTokenizer.from_pretrained, checkpoint / "codec")
    trips = in_order(partial(round_trips, load, [8], False), [(r.path, None) for r in recordings], workers)
    rows = []
    for recording, trip in zip(recordings, progress(trips, "codec", total=len(recordings)), strict=True):
        path = out / "tokenize/audio" / f"{recording.id}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_audio(path, trip.decoded, SAMPLE_RATE)
        rows.append({"condition": kind_of(recording.id)} | trip.distances[-1])
    return rows


@dataclass(frozen=True)
class Attribution:
    """A clip, the voice that it should have, and recordings of the voices to choose from."""

    name: str
    voice: str
    path: Path | None
    candidates: tuple[tuple[str, Path], ...]

    @property
    def files(self) -> tuple[Path | None, ...]:
        return (self.path, *(path for _, path in self.candidates))

    def judge(self, evaluator: Evaluator) -> list[Row]:
        """One row: `right` where the nearest candidate is the voice; a clip without a voice is near to none."""
        notes: list[str] = []
        voices = {name: evaluator.reference_voice(path, notes) for name, path in self.candidates}
        candidates = {name: voice for name, voice in voices.items() if voice is not None}
        vector: Tensor | None = None
        if self.path is not None:
            vector = ask(evaluator.metric_models.speaker, lambda encoder: encoder.embed(*load_audio(self.path)), notes)
        nearest = None if vector is None else max(candidates, key=lambda name: similarity(vector, candidates[name]))
        return [{"name": self.name, "voice": self.voice, "nearest": nearest, "right": nearest == self.voice}]


def kind_of(name: str) -> str:
    return name.partition("-")[0]


def condition_of(row: Row) -> str:
    """`ada`, `clone`, `unseen, codec round trip`, ..."""
    return kind_of(row["name"]) + SUFFIXES[row["group"]]


def models_of(recogniser: str, words_only: bool) -> MetricModels:
    """`whisper-base` comes out of wheels of its own; the others are those of `higgs.evaluate.judges.registry`."""
    if recogniser == "whisper-base":
        from training.evaluation.whisper_base import WhisperBase

        return MetricModels(recogniser=WhisperBase())
    return load_metric_models(recogniser) if words_only else load_metric_models(recogniser, "ge2e", "dnsmos")


def judge(
    tasks: Sequence[Task], load: Callable[[], Evaluator], folder: Path, workers: int | None
) -> dict[str, list[Row]]:
    """-> the rows by the kind of task; none of a kind, no rows."""
    rows = defaultdict(list)
    with closing(ResultCache(load, Store(str(folder)), workers)) as cache:
        for task, records in zip(tasks, cache.judge_all(tasks), strict=True):
            rows[task.form if isinstance(task, ChunkedSample) else type(task).__name__] += records
    return rows


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """Percent, with Wilson's interval."""
    if not hits:
        return {"of": 0}
    found = wilson_interval(sum(hits), len(hits))
    ends = [100 * found.low, 100 * found.high]
    return {"hits": sum(hits), "of": len(hits), "percent": 100 * found.estimate, "interval": ends}


def attribution(rows: Sequence[Row], turns: Sequence[Row]) -> dict[str, Any]:
    """Speaker attribution accuracy by condition; of dialogues by turn, and of whole ones."""

    def accuracy(kinds: Sequence[str], voices: Callable[[str], bool] = bool) -> dict[str, Any]:
        return share([row["right"] for row in rows if kind_of(row["name"]) in kinds and voices(row["voice"])])

    dialogues: dict[str, list[bool]] = {}
    for turn in turns:
        dialogues.setdefault(turn["dialogue"], []).append(bool(turn["attributed_right"]))
    return {
        "in-house": accuracy(list(DESCRIBED)),
        "clone": accuracy(["clone"]),
        "clone, synthetic": accuracy(["clone"], lambda voice: voice not in HUMAN),
        "clone, human": accuracy(["clone"], lambda voice: voice in HUMAN),
        "unseen, source audio": accuracy(["unseen"]),
        "dialogue, turn": share([right for some in dialogues.values() for right in some]),
        "dialogue, whole": share([all(some) for some in dialogues.values()]),
    }


def long_text(segments: Sequence[Row], chunks: Sequence[Row]) -> dict[str, Any]:
    """WER by segment of up to 10 s, and how many chunks were cut off."""
    ends = [chunk["stop"] for chunk in chunks if kind_of(chunk["name"]) == "long"]
    by_time = [{key: row[key] for key in ("start", "end", "wer_percent")} for row in segments]
    return {"chunks": len(ends), "cut_off": ends.count("length"), "segments": by_time}


def size_and_speed(checkpoint: Path, scripts: Sequence[Script], generation: GenerationConfig) -> dict[str, Any]:
    """Megabytes on disk; seconds of work for a second of speech, one request at a time."""
    engine, sampling, seconds = load_engine(checkpoint), replace(generation.sampling, seed=0), 0.0
    engine.generate(scripts[0].request.samples[0], sampling, 50)
    started = time.monotonic()
    for script in scripts:
        response = engine.generate(script.request.samples[0], sampling, generation.max_new_tokens)
        seconds += len(response.waveform) / SAMPLE_RATE
    return {
        "megabytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) / 1e6,
        "real_time_factor": (time.monotonic() - started) / seconds,
        "threads": torch.get_num_threads(),
        "machine": cpu_name(),
    }


def tasks_of(results: Results) -> list[Task]:
    """What is judged: utterances, dialogues by turn, the long text by segment, and the speaker of first samples."""
    utterances = gather(results, ["en"])
    voices = {row["voice"]: Path(row["reference"]) for row in results.samples if row["reference"]}
    in_house = tuple(pair for pair in voices.items() if pair[0] in DESCRIBED)
    others = tuple(pair for pair in voices.items() if pair[0] not in DESCRIBED)
    attributions = []
    for item in utterances:
        first_sample = item.form in ("smart_voice", "voice_clone") and not item.seed
        if first_sample or (item.condition == RECORDED and kind_of(item.name) == "unseen"):
            candidates = in_house if item.voice in DESCRIBED else others
            attributions.append(Attribution(item.name, item.voice, item.path, candidates))
    return [*utterances, *chunked_samples(results, DIALOGUE), *chunked_samples(results, LONG_FORM), *attributions]


def evaluate(
    checkpoint: Path,
    out: Path,
    sizes: Sizes,
    generation: GenerationConfig,
    judges: Sequence[str],
    workers: int | None = None,
) -> dict[str, Any]:
    """The held-out set in `out/held-out` -> what `evaluation.json` holds."""
    manifest = out / "held-out/recordings/manifest.jsonl"
    scripts, samples, chunks = generate(checkpoint, out / "held-out", out, generation, sizes.seeds, workers)
    codec = code_recordings(checkpoint, manifest, out, workers)
    tasks = tasks_of(Results(out, {"recordings": str(manifest)}, {}, samples, chunks))
    rates = speaking_rates([(r.text, r.language, r.seconds) for r in read_recordings(manifest)])
    models = [partial(models_of, name, words_only=number > 0) for number, name in enumerate(judges)]
    rows = judge(tasks, partial(load_evaluator, models[0], rates), out / "partial", workers)
    write_rows(out / "utterances.jsonl", rows["Utterance"])
    write_rows(out / "attribution.jsonl", rows["Attribution"])
    first = next(iter(DESCRIBED))
    in_first = [task for task in tasks if isinstance(task, Utterance) and kind_of(task.name) == first]
    others = {}
    for load in models[1:]:
        some = judge(in_first, partial(load_evaluator, load, rates), out / "partial", workers)["Utterance"]
        others[load().recogniser.short] = summarise(some, RESAMPLES, 0, key=condition_of)
    names = [name for load in models for name in load().names().values() if name]
    about = {part: fingerprint(checkpoint / part) for part in ("model", "codec")}
    about |= {"sizes": asdict(sizes), "setting": generation.to_json(), "judges": names}
    return {
        "about": about | {"short": models[0]().names(short=True)},
        "summary": summarise(rows["Utterance"], RESAMPLES, 0, key=condition_of),
        "other_recognisers": others,
        "attribution": attribution(rows["Attribution"], rows[DIALOGUE]),
        "codec": {
            kind: {name: mean_of(codec, name, condition=kind) for name in DISTANCES}
            for kind in dict.fromkeys(row["condition"] for row in codec)
        },
        "long": long_text(rows[LONG_FORM], chunks),
        "size_and_speed": size_and_speed(checkpoint, scripts[: sizes.timed], generation),
    }


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """What the fine-tuning check has as well."""
    parser.add_argument("--out", type=Path, default=Path(out))
    judges = "recognisers: the first judges everything, the others the first in-house voice"
    parser.add_argument("--judge", nargs="+", default=["moonshine-tiny-en-float32"], help=judges)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--temperature", type=float, help="default: the checkpoint's")
    parser.add_argument("--top-k", type=int, help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)


def generation_of(arguments: argparse.Namespace) -> GenerationConfig:
    """The checkpoint's settings, and the options beside them."""
    own = GenerationConfig.from_pretrained(arguments.checkpoint / "model")
    sampling = own.sampling.override(temperature=arguments.temperature, top_k=arguments.top_k)
    return replace(own, sampling=sampling, max_new_tokens=arguments.max_new_tokens)


def main() -> None:
    from hibari import Hibari

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder with model/ and codec/")
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    add_options(parser, "training/out/evaluation")
    arguments = parser.parse_args()
    out, sizes = arguments.out, Sizes.quick() if arguments.quick else Sizes()
    torch.set_num_threads(1)
    write_held_out(out / "held-out", sizes, Hibari())
    generation = generation_of(arguments)
    content = evaluate(arguments.checkpoint, out, sizes, generation, arguments.judge, arguments.workers)
    write_json(out / "evaluation.json", content)
    write_atomically(out / "evaluation.md", markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
