"""The steps of the check, each a function of `Check` -> what it found, as JSON. A step that cannot go on raises."""

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs import AudioTokenizer, Engine, HiggsAudio
from higgs.audio import load_audio, save_audio
from higgs.checkpoint.alias import Checkpoint
from higgs.checkpoint.resolve import fingerprint, resolve
from higgs.checkpoint.tensors import CONFIG, weight_files
from higgs.cli.checkpoint_report import inspect_checkpoint
from higgs.codec.tokenizer import exact_convolutions
from higgs.config import CodecConfig, ModelConfig, SamplingConfig
from higgs.data.chatml import smart_voice, tokenize
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.data.recordings import read_recordings, subset_by_hash
from higgs.data.scripts import Script, read_scripts, script_file
from higgs.data.text.tokenizer import TextTokenizer
from higgs.evaluate import test_sets
from higgs.evaluate.judges.registry import load_metric_models
from higgs.evaluate.result_cache import ResultCache
from higgs.evaluate.statistics.summary import summarise
from higgs.evaluate.utterances import Utterance, load_evaluator, speaking_rates
from higgs.files import sha256
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Store
from higgs.serve.generation_config import GenerationConfig
from higgs.serve.many_scripts import speak_all
from higgs.serve.reference.loop import generate
from higgs.tokens import TokenIds
from higgs.workers import choose_device
from higgs.workflow.tables import Row
from release_check.published import MODEL, PEOPLE, RELEASE_SIZES

SENTENCE = "The train to the city leaves at seven in the morning, and it is late on Sundays."
STEPS = 48  # of the fixed prompt: 2 s
VOICES, RECORDINGS = Path("data/voices"), Path("data/recordings/manifest.jsonl")
FORMS = ("smart_voice", "voice_clone")  # one voice, one sentence
RESAMPLES = 10_000
NOT_LISTED = "no sha256"  # small files, and those of a folder


class StepFailed(ValueError):
    """A step found what must not be; the message says what, and what to do."""


@dataclass(frozen=True)
class Check:
    """What to check, and with what. `out` keeps everything that was made, so that a run that was stopped goes on."""

    checkpoint: Checkpoint
    out: Path
    judges: tuple[str | None, str | None, str | None] = (None, None, None)  # recogniser, speaker, naturalness
    sentences: int = 20
    utterances: int = 50
    seed_tts: Path | None = None
    results: dict[str, Any] = field(default_factory=dict)  # of the steps before, by name

    @property
    def sources(self) -> dict[str, str]:
        return {"model": self.checkpoint.model, "codec": self.checkpoint.codec}

    def folder(self, part: str) -> Path:
        """Where `download` put it."""
        return Path(self.results["download"][part])

    def load_engine(self) -> Engine:
        made = self.checkpoint
        return Engine.from_pretrained(self.folder("model"), self.folder("codec"), device=made.device, dtype=made.dtype)


def download(check: Check) -> Row:
    """A broken download goes on where it stopped, at the next run too."""
    return {part: str(resolve(source)) for part, source in check.sources.items()}


def hashes(check: Check) -> Row:
    """Of every file that is read; those of weights against the hub's, where they came from it."""
    files = []
    for part in check.sources:
        folder = check.folder(part)
        for path in sorted({folder / CONFIG, *weight_files(folder), *folder.glob("*.json")}):
            digest = sha256(path)
            expected = _hash_of_the_hub(path)
            files.append({"part": part, "file": path.name, "bytes": path.stat().st_size, "sha256": digest})
            files[-1]["hub"] = NOT_LISTED if expected is None else "the same" if expected == digest else "differs"
            if expected not in (None, digest):
                advice = f"delete {path.resolve()} and run this again"
                raise StepFailed(f"{path}: its sha256 is {digest}, on the hub {expected}: {advice}")
    return {"files": files, "fingerprints": {part: fingerprint(check.folder(part)) for part in check.sources}}


def _hash_of_the_hub(path: Path) -> str | None:
    """The sha256 that the hub named when the file was fetched: its cache keeps large files under it."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name) else None


def inspect(check: Check) -> Row:
    """Sizes and faults, from configs and headers."""
    found, problems = [], []
    for part in check.sources:
        for report in inspect_checkpoint(check.folder(part)):
            count = sum(report.parameters.values())
            found.append({"part": part, "kind": report.kind, "layout": report.layout, "parameters": count})
            dtypes = ", ".join(f"{number:,} {name}" for name, number in report.dtypes.items())
            is_release = report.config in (ModelConfig(), CodecConfig())
            found[-1] |= {"elements": dtypes, "sizes": RELEASE_SIZES if is_release else "its own"}
            problems += [f"{part}: {problem}" for problem in report.problems]
    if problems:
        raise StepFailed("; ".join(problems))
    return {"parts": found}


def _agreement(ours: Tensor, theirs: Tensor) -> Row:
    """[K, T] twice -> how many codes of the common frames are equal, and the first frame where one is not."""
    frames = min(ours.shape[1], theirs.shape[1])
    equal = ours[:, :frames].cpu() == theirs[:, :frames].cpu()
    wrong = (~equal).any(0).nonzero()
    first = int(wrong[0]) if len(wrong) else None
    return {"equal": int(equal.sum()), "of": equal.numel(), "first_difference": first}


@torch.inference_mode()
def model_codes(check: Check) -> Row:
    """A fixed prompt, greedy and in float32, here and in transformers."""
    from transformers import HiggsAudioV2ForConditionalGeneration

    folder = check.folder("model")
    device, text_tokenizer = choose_device(check.checkpoint.device), TextTokenizer.from_pretrained(folder)
    ids = TokenIds.of(text_tokenizer)
    model = HiggsAudio.from_pretrained(folder, device=device)
    tokens = tokenize(smart_voice(SENTENCE), text_tokenizer, generate=True, force_audio=True)
    prompt = collate([expand_audio_placeholders(tokens, [], ids, model.config, False)], ids).to(device)
    greedy = SamplingConfig(temperature=0, ras_window=None)
    ours = generate(model, prompt, ids, greedy, STEPS, (ids.audio_eos,)).segments[0].delayed
    del model  # 23 GB each: one at a time
    port = _from_transformers(HiggsAudioV2ForConditionalGeneration, folder, use_text_head=True).to(device)
    port.generation_config.ras_win_len = None
    inputs = {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask.long()}
    made = port.generate(**inputs, do_sample=False, max_new_tokens=STEPS)
    theirs = (made if isinstance(made, Tensor) else made.audio_sequences)[0].T
    # They differ in how a segment ends: what comes after its first sign is left out.
    ends = (ours >= port.config.codebook_size - 1).any(0).nonzero()
    return _agreement(ours[:, : int(ends[0])] if len(ends) else ours, theirs)


@torch.inference_mode()
def codec_codes(check: Check) -> Row:
    """A recording through the codec, here and in transformers."""
    from transformers import HiggsAudioV2TokenizerModel

    folder, device = check.folder("codec"), choose_device(check.checkpoint.device)
    codec = AudioTokenizer.from_pretrained(folder, device=device)
    waveform, _ = load_audio(read_recordings(RECORDINGS)[0].path, codec.sample_rate)
    waveform = waveform[: len(waveform) // codec.hop_length * codec.hop_length]
    port = _from_transformers(HiggsAudioV2TokenizerModel, folder).to(device)
    with exact_convolutions(device):
        theirs = port.encode(waveform[None, None].to(device)).audio_codes[0]
        expected = port.decode(theirs[None]).audio_values[0, 0].cpu()
    ours = codec.encode(waveform)
    apart = (codec.decode(theirs).cpu() - expected).abs().max()
    return _agreement(ours, theirs) | {"largest_difference_of_samples": float(apart)}


def _from_transformers(kind: Any, folder: Path, **options: Any) -> Any:
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns of weights that training alone needs
    try:
        return kind.from_pretrained(folder, dtype=torch.float32, **options).eval()
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).strip().partition("\n")[0]
        raise StepFailed(f"transformers does not load {folder} ({reason}): nothing to compare with") from error


def sentences(check: Check) -> Row:
    """Sentences of the default set in one voice each, chosen by the hashes of their ids."""
    every = [script for script in read_scripts(script_file("default"), VOICES) if script.form in FORMS]
    chosen = subset_by_hash((script.id for script in every), check.sentences)
    return _spoken(check, [script for script in every if script.id in chosen], "sentences")


def seedtts(check: Check) -> Row:
    """Utterances of SeedTTS-Eval, chosen by the hashes of their ids; people's recordings of them beside."""
    folder = check.seed_tts
    manifest = folder / "meta.jsonl"
    if not manifest.is_file() and test_sets.main(["seed-tts-eval", str(folder)]):
        raise StepFailed(f"{folder} is no set of SeedTTS-Eval: what is wrong with it is said above")
    every = read_scripts(manifest, folder)
    chosen = subset_by_hash((script.id for script in every), check.utterances)
    return _spoken(check, [script for script in every if script.id in chosen], "seedtts")


def _spoken(check: Check, scripts: Sequence[Script], name: str) -> Row:
    """Spoken with the checkpoint's own settings, seed 0, and judged."""
    generation = GenerationConfig.from_pretrained(check.folder("model"))
    settings = {"fingerprints": check.results["hashes"]["fingerprints"], "generation": generation.to_json()}
    settings |= {"device": str(choose_device(check.checkpoint.device)), "dtype": check.checkpoint.dtype}
    tasks, sampling = [(script, 0) for script in scripts], replace(generation.sampling, seed=0)
    utterances = []
    store, limit = Store(str(check.out / "spoken")), generation.max_new_tokens
    made = speak_all(check.load_engine, tasks, sampling, limit, store, settings, Cluster(None, 1))
    by_name = {sample.name: sample for sample in made}
    for script in scripts:
        sample = by_name[script.record(0)["name"]]
        path = check.out / name / f"{sample.name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if len(sample.waveform):
            save_audio(path, sample.waveform, 24_000)
        item = Utterance(
            MODEL, sample.name, script.id, script.text, path if path.is_file() else None, script.language,
            voice=script.voice, form=script.form, seed=0, reference=script.reference,
            cap_hit=sample.record["stop"] == "length", retries=sample.record["retries"],
        )  # fmt: skip
        utterances.append(item)
        if script.recording:
            utterances.append(replace(item, condition=PEOPLE, name=script.id, path=script.recording, seed=None))
    return _judged(check, utterances)


def _judged(check: Check, utterances: Sequence[Utterance]) -> Row:
    """Each by itself, and kept: a judge that was stopped goes on."""
    languages = sorted({item.language for item in utterances})
    models = load_metric_models(*check.judges, languages)
    rates = speaking_rates([(r.text, r.language, r.seconds) for r in read_recordings(RECORDINGS)])
    evaluator = load_evaluator(lambda: models, rates)
    with closing(ResultCache(lambda: evaluator, Store(str(check.out / "judged")), 1)) as cache:
        rows = [row for records in cache.judge_all(utterances) for row in records]
    return {
        "language": languages[0], "judges": models.names(short=True), "absent": list(models.absent),
        "summary": summarise(rows, RESAMPLES, 0), "rows": rows,
    }  # fmt: skip


Step = Callable[[Check], Row]
ALWAYS = ("download", "hashes")  # whatever an earlier run found: the files may be others now
# Name, function, and the steps without which it cannot be done.
STEPS_IN_ORDER: tuple[tuple[str, Step, tuple[str, ...]], ...] = (
    ("download", download, ()),
    ("hashes", hashes, ("download",)),
    ("inspect", inspect, ("download",)),
    ("model_codes", model_codes, ("hashes", "inspect")),
    ("codec_codes", codec_codes, ("hashes", "inspect")),
    ("sentences", sentences, ("hashes", "inspect")),
    ("seedtts", seedtts, ("hashes", "inspect")),
)
