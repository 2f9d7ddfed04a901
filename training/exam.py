"""Examine a checkpoint: `python -m training.exam FOLDER --out training/out/exam`, or `--quick` for a first look.

FOLDER holds `model/` and `codec/`. What is measured, each on what training never saw: the words of the held-out
sentences, first samples only; the same for the teacher and for the teacher through the codec; how well own voices are
told apart; whose voice a clone is nearest to; dialogues; a minute of long form; speech that runs on; size and speed.

One JSON and one Markdown table come out, and clips to listen to. Every part is written when it is done, and an
examination that was stopped goes on; another checkpoint, or other sizes, start anew.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.audio import load_audio, save_audio
from higgs.checkpoint.resolve import fingerprint
from higgs.config import SamplingConfig
from higgs.data.chatml import AudioContent, smart_voice, voice_clone
from higgs.data.recordings import read_recordings
from higgs.data.speech import SpeechRequest
from higgs.data.text.chunks import Chunk, chunk_text
from higgs.data.voices import Voice
from higgs.evaluate.judges.registry import make_judge, make_speaker_encoder
from higgs.files import replacing
from higgs.serve import long_form
from higgs.serve.engine import Engine, EngineConfig, Response
from higgs.serve.generation import GenerationConfig
from higgs.workflow.speed import cpu_name
from training.corpus.voices import DESCRIBED, OWN, SAMPLE_RATE, Speaker, speak
from training.measures import (
    centroid,
    error_rates,
    mean,
    nearest,
    plain_rate,
    share,
    told_apart,
    write_json,
)

# Pitch and formants between and beyond those of the own voices; in the corpus no speaker has these pairs.
UNSEEN = tuple(
    Speaker(f"new-{pitch:.2f}-{formant:.2f}", pitch, formant)
    for pitch, formant in (
        (0.55, 0.90), (0.66, 0.84), (0.72, 0.97), (0.83, 0.89),
        (0.90, 1.03), (1.08, 0.95), (1.16, 1.09), (1.27, 1.02),
    )
)  # fmt: skip
HUMANS = ("en-agent-alreadyon", "it")  # a recording's name, or the first of a language that will do
REFERENCE = "The sun was warm, and we sat by the water for an hour."
LONG_SENTENCES = 22  # a minute or more
MAX_NEW_TOKENS = 400


@dataclass(frozen=True)
class Sizes:
    """How much of each part is done; `quick` takes a little of everything."""

    sentences: int = 40
    seeds: int = 3
    other_sentences: int = 40  # of each further own voice
    clone_sentences: int = 8
    dialogues: int = 20
    recordings: int = 20
    timed: int = 6

    @classmethod
    def quick(cls) -> "Sizes":
        return cls(6, 1, 3, 1, 2, 3, 2)


class Exam:
    """The checkpoint, its judges and the teacher; each part is a method that returns what goes into the JSON."""

    def __init__(self, checkpoint: Path, out: Path, sizes: Sizes, generation: GenerationConfig, judges: list):
        from hibari import Hibari

        self.checkpoint, self.out, self.sizes, self.generation = checkpoint, out, sizes, generation
        self.judges = {judge.short: judge for judge in judges}
        self.encoder = make_speaker_encoder("ge2e")
        self.teacher = Hibari()
        # Without guards: speech that runs on is to be seen, and nothing is made twice.
        self.engine = Engine.from_pretrained(
            checkpoint / "model",
            checkpoint / "codec",
            device="cpu",
            config=EngineConfig(runaway=None),
        )
        lines = (Path(__file__).parent / "held_out.txt").read_text(encoding="utf-8").splitlines()
        self.texts = [line for line in lines if line and not line.startswith("#")]
        self.centroids: dict[str, Tensor] = {}
        self._said: dict[tuple[str, Speaker], Tensor] = {}

    def say(self, text: str, speaker: Speaker) -> Tensor:
        """The teacher's waveform [L] at 24 kHz."""
        key = (text, speaker)
        if key not in self._said:
            audio = speak(self.teacher, text, speaker, 1.0, len(self._said))
            self._said[key] = torch.from_numpy(audio).float() / 32768
        return self._said[key]

    def sampling(self, seed: int) -> SamplingConfig:
        return replace(self.generation.sampling, seed=seed)

    def spoken(self, samples: Sequence, seeds: Sequence[int]) -> list[Response]:
        """First samples, sixteen at a time."""
        settings = [self.sampling(seed) for seed in seeds]
        made: list[Response] = []
        for at in tqdm(range(0, len(samples), 16), desc="speak", mininterval=5):
            made += self.engine.generate_batch(
                samples[at : at + 16], settings[at : at + 16], self.generation.max_new_tokens
            )
        return made

    def own(self, speaker: Speaker, texts: Sequence[str], seeds: int) -> list[Response]:
        samples = [smart_voice(text, None, DESCRIBED[speaker.name]) for _ in range(seeds) for text in texts]
        return self.spoken(samples, [seed for seed in range(seeds) for _ in texts])

    def embed(self, waveform: Tensor) -> Tensor | None:
        """None where there is no voice."""
        try:
            return self.encoder.embed(waveform, SAMPLE_RATE)
        except ValueError:
            return None

    def wer(self, texts: Sequence[str], clips: Sequence[Tensor], everyone: bool = False) -> dict[str, Any]:
        """WER and CER in percent, with the interval over sentences: by the first judge, or by everyone."""
        asked = list(self.judges.items())[: None if everyone else 1]
        return {name: error_rates(judge, texts, clips) for name, judge in asked}

    def keep(self, name: str, waveform: Tensor, text: str) -> None:
        """A clip to listen to, and what it should say."""
        folder = self.out / "clips"
        folder.mkdir(parents=True, exist_ok=True)
        save_audio(folder / f"{name}.flac", waveform.clamp(-1, 1), SAMPLE_RATE)
        with replacing(folder / f"{name}.txt") as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    def words(self) -> dict[str, Any]:
        """The own voices on the held-out sentences, beside the teacher; run-aways; voices told apart."""
        texts, seeds = self.texts[: self.sizes.sentences], self.sizes.seeds
        report: dict[str, Any] = {"sentences": len(texts), "seeds": seeds}
        vectors: list[tuple[str, Tensor]] = []
        for speaker in OWN:
            first = speaker is OWN[0]
            asked = texts if first else texts[: self.sizes.other_sentences]
            responses = self.own(speaker, asked, seeds if first else 1)
            said = list(asked) * (seeds if first else 1)
            clips = [response.waveform for response in responses]
            ends = [response.stop_reason for response in responses]
            ratios = [len(clip) / len(self.say(text, speaker)) for clip, text in zip(clips, said, strict=True)]
            report[speaker.name] = {
                "generations": len(clips),
                "cap_hits": ends.count("length"),
                "length_ratio_median": sorted(ratios)[len(ratios) // 2],
                "length_within_percent": 100 * mean([0.8 <= r <= 1.25 for r in ratios]),
                "words": self.wer(said, clips, first),
                "teacher": self.wer(asked, [self.say(text, speaker) for text in asked], first),
            }
            found = [self.embed(clip) for clip in clips[: len(asked)]]
            vectors += [(speaker.name, vector) for vector in found if vector is not None]
            for index in range(min(4, len(asked))):
                self.keep(f"{speaker.name}-{index}", clips[index], asked[index])
        report["voices"] = told_apart(vectors)
        return report

    def codec(self) -> dict[str, Any]:
        """Round trips: the teacher as each own voice and as speakers unseen in training, and human recordings."""
        texts = self.texts[: self.sizes.sentences]
        groups: dict[str, list[tuple[str, Tensor]]] = {
            speaker.name: [(text, self.say(text, speaker)) for text in texts] for speaker in OWN
        }
        groups["unseen"] = [(text, self.say(text, UNSEEN[index % len(UNSEEN)])) for index, text in enumerate(texts)]
        found = read_recordings("data/recordings/manifest.jsonl", ["en"], self.sizes.recordings)
        groups["human"] = [(r.text, load_audio(r.path, SAMPLE_RATE)[0]) for r in found]
        report = {}
        for name, pairs in tqdm(groups.items(), desc="codec"):
            texts, clips = zip(*pairs, strict=True)
            codes = [self.engine.tokenizer.encode(clip) for clip in clips]
            back = [self.engine.tokenizer.decode(c) for c in codes]
            self.keep(f"codec-{name}", back[0], texts[0])
            first = name == OWN[0].name
            report[name] = {
                "original": self.wer(texts, clips, first),
                "codec": self.wer(texts, back, first),
            }
        return report

    def references(self) -> list[tuple[str, str, Path]]:
        """Ten voices that training has not heard -> (name, text, file)."""
        folder = self.out / "references"
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for speaker in UNSEEN:
            path = folder / f"{speaker.name}.flac"
            save_audio(path, self.say(REFERENCE, speaker), SAMPLE_RATE)
            found.append((speaker.name, REFERENCE, path))
        recordings = read_recordings("data/recordings/manifest.jsonl")
        for wanted in HUMANS:
            recording = next(r for r in recordings if wanted == r.id or (wanted == r.language and 3 <= r.seconds <= 8))
            found.append((f"human-{recording.language}", recording.text, recording.path))
        return found

    def cloning(self) -> dict[str, Any]:
        """Is the nearest of the ten references the one that was given?"""
        references = self.references()
        texts = self.texts[-self.sizes.clone_sentences :]
        targets = torch.stack([self.encoder.embed(load_audio(p, SAMPLE_RATE)[0], SAMPLE_RATE) for *_, p in references])
        owners = [index for index in range(len(references)) for _ in texts]
        said = [text for _ in references for text in texts]
        samples = [
            voice_clone(text, references[owner][1], AudioContent(str(references[owner][2])))
            for owner, text in zip(owners, said, strict=True)
        ]
        responses = self.spoken(samples, range(len(samples)))
        clips = [response.waveform for response in responses]
        hits = [nearest(self.embed(c), targets) == o for c, o in zip(clips, owners, strict=True)]
        teacher = [
            nearest(self.embed(self.say(text, speaker)), targets) == index
            for index, speaker in enumerate(UNSEEN)
            for text in texts
        ]
        for index in range(0, len(clips), len(texts)):
            self.keep(f"clone-{references[owners[index]][0]}", clips[index], said[index])
        per = {
            name: 100 * mean([h for h, o in zip(hits, owners, strict=True) if o == index])
            for index, (name, *_) in enumerate(references)
        }
        ends = [response.stop_reason for response in responses]
        return {
            "references": len(references),
            "sentences": len(texts),
            "nearest_is_own": share(hits),
            "of_synthetic": share(hits[: len(UNSEEN) * len(texts)]),
            "of_human": share(hits[len(UNSEEN) * len(texts) :]),
            "of_the_teacher_itself": share(teacher),
            "by_reference_percent": per,
            "cap_hits": ends.count("length"),
            "words": self.wer(said, clips),
        }

    def dialogues(self) -> dict[str, Any]:
        """Four turns by chunks, two own voices in each: does each turn have its voice?"""
        self.centroids = {
            speaker.name: centroid([self.embed(r.waveform) for r in self.own(speaker, self.texts[-8:], 1)])
            for speaker in OWN
        }
        names, rng = list(self.centroids), random.Random(0)
        targets = torch.stack(list(self.centroids.values()))
        plans = []
        for index in range(self.sizes.dialogues):
            pair = rng.sample(OWN, 2)
            lines = [self.texts[(4 * index + turn) % len(self.texts)] for turn in range(4)]
            plans.append((index, pair, lines))
        options = self.generation.chunks.model_copy(update={"per_speaker_context": True, "retries": 0})

        def converse(job: tuple[int, list[Speaker], list[str]]) -> list[tuple[str, str, Tensor]]:
            index, pair, lines = job
            cast = {n: Voice(s.name, description=DESCRIBED[s.name]) for n, s in enumerate(pair)}
            chunks = [
                Chunk(f"[SPEAKER{turn % 2}] {line}", (turn % 2,), "speaker" if turn else "start")
                for turn, line in enumerate(lines)
            ]
            samples = tuple(cast[turn % 2].prompt(line) for turn, line in enumerate(lines))
            sampling, limit = self.sampling(index), self.generation.max_new_tokens
            response = long_form.speak(self.engine, SpeechRequest(samples, tuple(chunks), options, sampling, limit))
            if index < 2:
                self.keep(f"dialogue-{index}", response.waveform, " ".join(c.text for c in chunks))
            return [
                (pair[turn % 2].name, lines[turn], response.waveform[spoken.start : spoken.end])
                for turn, spoken in enumerate(response.chunks)
            ]

        # Each waits for its own turns; together they fill the engine's rows.
        with ThreadPoolExecutor(16) as pool:
            turns = [turn for talk in pool.map(converse, plans) for turn in talk]
        hits = []
        for wanted, _, clip in turns:
            found = nearest(self.embed(clip), targets)
            hits.append(found is not None and names[found] == wanted)
        whole = [all(hits[at : at + 4]) for at in range(0, len(hits), 4)]
        return {
            "dialogues": len(plans),
            "right_voice_by_turn": share(hits),
            "right_voice_whole_dialogue": share(whole),
            "words": self.wer([t for _, t, _ in turns], [clip for *_, clip in turns]),
        }

    def long_form(self) -> dict[str, Any]:
        """A minute or more in the checkpoint's chunks; words by the ten seconds in which a chunk has its middle."""
        count = max(4, LONG_SENTENCES * self.sizes.sentences // 40)
        options = self.generation.chunks.model_copy(update={"retries": 0})
        chunks = chunk_text(" ".join(self.texts[:count]), options.max_words)
        samples = tuple(smart_voice(chunk.text, None, DESCRIBED["ada"]) for chunk in chunks)
        sampling, limit = self.sampling(0), self.generation.max_new_tokens
        response = long_form.speak(self.engine, SpeechRequest(samples, tuple(chunks), options, sampling, limit))
        self.keep("long", response.waveform, " ".join(chunk.text for chunk in chunks))
        windows: dict[int, list[tuple[str, Tensor]]] = {}
        for chunk, spoken in zip(chunks, response.chunks, strict=True):
            middle = (spoken.start + spoken.end) / 2 / SAMPLE_RATE
            clip = response.waveform[spoken.start : spoken.end]
            windows.setdefault(int(middle // 10) * 10, []).append((chunk.text, clip))
        judge = next(iter(self.judges.values()))
        rates = {
            f"{start}-{start + 10} s": 100 * plain_rate(judge, *zip(*pairs, strict=True))
            for start, pairs in sorted(windows.items())
        }
        return {
            "seconds": len(response.waveform) / SAMPLE_RATE,
            "chunks": len(chunks),
            "cap_hits": sum(spoken.stop_reason == "length" for spoken in response.chunks),
            "wer_percent_by_time": rates,
        }

    def size_and_speed(self) -> dict[str, Any]:
        """Megabytes on disk; seconds of work for a second of speech, one request at a time."""
        files = [p for p in self.checkpoint.rglob("*") if p.is_file()]
        plain = Engine.from_pretrained(self.checkpoint / "model", self.checkpoint / "codec", device="cpu")
        plain.generate(smart_voice(self.texts[0]), self.sampling(0), 50)
        started, seconds = time.monotonic(), 0.0
        for index in range(self.sizes.timed):
            sample = smart_voice(self.texts[index], None, DESCRIBED["ada"])
            response = plain.generate(sample, self.sampling(0), self.generation.max_new_tokens)
            seconds += len(response.waveform) / SAMPLE_RATE
        return {
            "megabytes": sum(p.stat().st_size for p in files) / 1e6,
            "real_time_factor": (time.monotonic() - started) / seconds,
            "threads": torch.get_num_threads(),
            "machine": cpu_name(),
        }

    PARTS = ("words", "codec", "cloning", "dialogues", "long_form", "size_and_speed")


def examine(exam: Exam, parts: Sequence[str]) -> dict[str, Any]:
    """-> what `exam.json` holds. Finished parts of the same examination are not done again."""
    path = exam.out / "exam.json"
    about = {
        "model": fingerprint(exam.checkpoint / "model"),
        "codec": fingerprint(exam.checkpoint / "codec"),
        "sizes": asdict(exam.sizes),
        "setting": exam.generation.to_json(),
        "judges": [judge.name for judge in exam.judges.values()] + [exam.encoder.name],
    }
    content = json.loads(path.read_text()) if path.is_file() else {}
    if content.get("about") != about:
        content = {"about": about}
    for part in parts:
        if part not in content:
            started = time.monotonic()
            content[part] = getattr(exam, part)()
            content[part]["minutes"] = (time.monotonic() - started) / 60
            write_json(path, content)
    return json.loads(path.read_text())


def main() -> None:
    from training.exam_table import markdown

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder with model/ and codec/")
    parser.add_argument("--out", type=Path, default=Path("training/out/exam"))
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    parser.add_argument(
        "--judge",
        nargs="+",
        default=["moonshine-tiny-en-float32"],
        help="recognisers; all hear the first voice, the first of them the rest",
    )
    parser.add_argument("--parts", nargs="+", choices=Exam.PARTS, default=list(Exam.PARTS), metavar="PART")
    parser.add_argument("--threads", type=int, default=2)
    for name, kind in (("--temperature", float), ("--top-k", int)):
        parser.add_argument(name, type=kind, help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    own = GenerationConfig.from_pretrained(arguments.checkpoint / "model")
    sampling = own.sampling.override(temperature=arguments.temperature, top_k=arguments.top_k)
    generation = replace(own, sampling=sampling, max_new_tokens=arguments.max_new_tokens)
    sizes = Sizes.quick() if arguments.quick else Sizes()
    judges = [recogniser(name) for name in arguments.judge]
    content = examine(Exam(arguments.checkpoint, arguments.out, sizes, generation, judges), arguments.parts)
    table = markdown(content)
    with replacing(arguments.out / "exam.md") as partial:
        partial.write_text(table, encoding="utf-8")
    print(table)


def recogniser(name: str) -> Any:
    """`whisper-base` is the second opinion that wheels carry; the others are the package's judges."""
    if name == "whisper-base":
        from training.whisper_base import WhisperBase

        return WhisperBase()
    return make_judge(name)


if __name__ == "__main__":
    main()
