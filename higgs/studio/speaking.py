"""What a notebook makes: sentences that are spoken, judged and written to files; no widgets."""

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from higgs.audio import load_audio, save_audio
from higgs.config import SamplingConfig
from higgs.data.speech import SpeechRequest, speech_request
from higgs.data.text.chunks import speaker_turns
from higgs.data.voices import Voice, check_recording, find_voice, recording_of, usable
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.utterances import Evaluator, Utterance, ask, hear
from higgs.serve.engine import Engine, Response
from higgs.serve.long_form import speak
from higgs.workflow.outputs import audio_player, output_path, write_json
from higgs.workflow.tables import Row

FOLDER = "results/speech"  # below results/explore/ outside a stage
MAX_TEXT = 5_000  # characters
MAX_SAMPLES = 100  # of one sweep
MAX_BYTES = 50_000_000  # of a recording
# Column of the evaluation -> how it is shown.
SCORES = {"wer_percent": "WER {:.1f} %", "similarity": "similarity {:.2f}", "mos_overall": "DNSMOS {:.2f}"}
SETTINGS = ("seed", "temperature", "top_k", "top_p")
Cast = str | Voice | dict[int, str | Voice]  # one voice, or that of each [SPEAKERn]


@dataclass(frozen=True)
class Sample:
    """A spoken text: its file, how it was drawn, the codes, and the scores by the columns of the evaluation."""

    path: Path
    text: str
    voice: str
    sampling: SamplingConfig
    response: Response = field(repr=False)
    scores: Row = field(repr=False)

    @property
    def wer(self) -> float | None:
        return self.scores["wer_percent"]

    @property
    def settings(self) -> Row:
        return {name: getattr(self.sampling, name) for name in SETTINGS}

    def player(self, autoplay: bool = False):
        """-> an <audio> element; a line of text where nothing was generated."""
        if not len(self.response.waveform):
            return "no sound"
        return audio_player(self.response.waveform, self.response.sample_rate, self.path.name, autoplay)

    def page(self, autoplay: bool = False) -> str:
        """The player, what was asked for and the scores, as HTML; texts are escaped."""
        parts = [f"{name} {value:g}" for name, value in self.settings.items() if value is not None]
        parts += [shown.format(self.scores[c]) for c, shown in SCORES.items() if self.scores[c] is not None]
        numbers = ", ".join(parts)
        lines = [f"<b>{html.escape(self.voice)}</b>: {html.escape(self.text)}", html.escape(numbers)]
        if self.scores["heard"] is not None:
            lines.append(f"heard: <i>{html.escape(self.scores['heard'])}</i>")
        reason, note = self.response.stop_reason, self.scores["note"]
        lines += [html.escape(part) for part in (reason if reason != "stop" else "", note) if part]
        player = self.player(autoplay)
        return f"<div>{getattr(player, 'data', player)}<p style='line-height:1.4'>{'<br>'.join(lines)}</p></div>"

    def _repr_html_(self) -> str:
        return self.page()


def ranking(sample: Sample) -> tuple[bool, float, float]:
    """A key that sorts the best first: fewest word errors, then most similar to the voice; without a rate, last."""
    rate, similarity = sample.wer, sample.scores["similarity"]
    return rate is None, rate or 0.0, -(similarity or 0.0)


def grid(
    base: SamplingConfig, temperatures: Sequence[float], top_ks: Sequence[int], seeds: Sequence[int]
) -> list[SamplingConfig]:
    """Every combination once, seeds fastest. ValueError for none and for more than MAX_SAMPLES."""
    combinations = list(product(*(dict.fromkeys(values) for values in (temperatures, top_ks, seeds))))
    if not 1 <= len(combinations) <= MAX_SAMPLES:
        raise ValueError(f"1 to {MAX_SAMPLES} combinations of temperature, top-k and seed, got {len(combinations)}")
    return [base.override(temperature=t, top_k=k, seed=s) for t, k, s in combinations]


class Studio:
    """Speaks and judges with one engine; `samples` is the list of what was made, the newest last."""

    def __init__(self, engine: Engine, metric_models: MetricModels, voices: str | Path = "data/voices"):
        self.engine, self.metric_models, self.voices = engine, metric_models, Path(voices)
        self.evaluator = Evaluator(metric_models)
        self.uploads: dict[str, Voice] = {}
        self.samples: list[Sample] = []

    def voice(self, name: str | Voice) -> Voice:
        """An uploaded voice or one of the folder; ValueError for others."""
        if isinstance(name, Voice):
            return name
        return self.uploads.get(name) or find_voice(self.voices, name)

    def speak(
        self,
        text: str,
        voice: Cast,
        settings: Sequence[SamplingConfig] | None = None,
        scene: str | None = None,
        naturalness: bool = True,
    ) -> list[Sample]:
        """A text, spoken once with each of the settings (the checkpoint's own by default), written and judged.

        `naturalness=False` leaves DNSMOS out, which takes longer than the others together. Raises ValueError for what
        cannot be spoken; then nothing is written.
        """
        if len(text) > MAX_TEXT:
            raise ValueError(f"a text of {len(text)} characters; at most {MAX_TEXT}: `higgs speak --file` takes books")
        settings = list(settings or [self.engine.generation.sampling])
        cast = {n: self.voice(v) for n, v in voice.items()} if isinstance(voice, dict) else self.voice(voice)
        chunks, scene = self.engine.generation.chunks, (scene or "").strip() or None
        request = speech_request(text, cast, chunks, scene, normalize="words")
        first = len(self.samples)
        for sampling, response in zip(settings, self._generate(request, settings), strict=True):
            self.samples.append(self._finish(text, cast, sampling, response, naturalness))
        return self.samples[first:]

    def _generate(self, request: SpeechRequest, settings: Sequence[SamplingConfig]) -> list[Response]:
        """Together where the text is spoken in a single pass."""
        if request.chunks or len(settings) == 1:
            return [speak(self.engine, replace(request, sampling=sampling)) for sampling in settings]
        return self.engine.generate_batch(request.samples * len(settings), settings)

    def _finish(
        self, text: str, cast: Voice | dict[int, Voice], sampling: SamplingConfig, response: Response, naturalness: bool
    ) -> Sample:
        """Writes the sound and, beside it, what is known of it."""
        voices = list(cast.values()) if isinstance(cast, dict) else [cast]
        name, reference = " ".join(voice.name for voice in voices), None
        if not isinstance(cast, dict):
            reference = recording_of(self.voices, cast)
        words = " ".join(line for _, line in speaker_turns(text)) if isinstance(cast, dict) else text
        path = new_file(f"{name} s{sampling.seed}")
        try:
            if len(response.waveform):
                save_audio(path, response.waveform, response.sample_rate)
                item = Utterance(
                    "explore", path.stem, path.stem, words, path, voice=name, reference=reference,
                    seed=sampling.seed, predict_mos=naturalness,
                )  # fmt: skip
            else:
                item = Utterance("explore", path.stem, path.stem, words, None, voice=name, seed=sampling.seed)
            sample = Sample(path, text, name, sampling, response, self.evaluator.judge(item))
            scores = {column: sample.scores[column] for column in (*SCORES, "heard", "status", "note")}
            known = {"text": text, "voice": name, "judges": self.metric_models.names()} | sample.settings | scores
            write_json(path.with_suffix(".json"), known)
        finally:
            if not path.stat().st_size:
                path.unlink()
        return sample

    def add_recording(self, content: bytes, transcript: str = "") -> tuple[Voice, list[str]]:
        """An audio file -> a voice to clone, and what `higgs voices check` would warn of.

        Without a transcript, the recogniser's is taken. The recording is written below results/explore/. Raises
        ValueError for what cannot serve as a reference, and without transcript and recogniser.
        """
        if len(content) > MAX_BYTES:
            raise ValueError(f"a file of {len(content)} bytes; at most {MAX_BYTES}: 5 to 15 s are enough")
        transcript = transcript.strip()
        usable(check_recording(content, None), "this recording")  # first: a long recording is neither decoded nor heard
        waveform, rate = load_audio(content)
        notes: list[str] = []
        answer = ask(self.metric_models.recogniser, lambda judge: hear(judge, waveform, rate, transcript), notes)
        hypothesis, doubts = answer or ("", [])
        if not (transcript := transcript or hypothesis):
            advice = "write what is said in it" if not self.metric_models.recogniser else "is it speech?"
            raise ValueError(f"no word was heard in this recording: {advice}")
        findings = usable(check_recording(content, transcript), "this recording")
        name = f"upload-{hashlib.sha256(content + transcript.encode()).hexdigest()[:8]}"
        path = output_path(f"results/uploads/{name}.flac")
        save_audio(path, waveform, rate)
        self.uploads[name] = voice = Voice(name, path, transcript)
        return voice, findings + doubts + notes


def new_file(label: str, suffix: str = ".flac") -> Path:
    """An empty file of a new name in FOLDER, numbered; whatever `label` holds, it is no path."""
    folder = output_path(f"{FOLDER}/x").parent
    words = "-".join(re.findall(r"\w+", label, re.ASCII))[:48]
    numbers = [int(found[0]) for path in folder.iterdir() if (found := re.match(r"\d+", path.name))]
    number = max(numbers, default=0)
    while True:
        number += 1
        path = folder / f"{number:04d}-{words}{suffix}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:  # another notebook is at it
            continue
        return path
