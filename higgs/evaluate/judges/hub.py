"""Judges from a hub, for machines that have one: the judges of published tables.

Nobody has run them with their real weights on this code yet; tests run the same code on small
random weights. Each takes a folder, or a hub's name, in place of its default source.
"""

from typing import Any

import torch
from torch import Tensor

from higgs.audio import level_dbfs, resample
from higgs.evaluate.judges.wheels import JudgeUnavailable, optional_module
from higgs.evaluate.metrics.signal import mono
from higgs.evaluate.pieces import split_at_quiet

SAMPLE_RATE = 16_000
SILENCE_DBFS = -70.0
LEAST_SECONDS = 0.5  # of a voice that can be told


def choose_device() -> torch.device:
    """The accelerator where there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pretrained(kind: Any, source: str) -> Any:
    """`kind.from_pretrained` of a folder or `organisation/name@revision`; JudgeUnavailable says what is wrong."""
    name, _, revision = source.partition("@")
    try:
        return kind.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise JudgeUnavailable(
            f"{kind.__name__} cannot be loaded from {source} ({reason}); it needs the hub once, or name a folder "
            "behind a colon, as in JUDGE:FOLDER"
        ) from error


def voiced(waveform: Tensor, sample_rate: int) -> Tensor:
    """[L] -> [L'] at 16 kHz. Raises ValueError for silence and for less than half a second."""
    samples = resample(mono(waveform, "waveform").float(), sample_rate, SAMPLE_RATE)
    if level_dbfs(samples) < SILENCE_DBFS:
        raise ValueError("there is no voice in silence")
    if len(samples) < LEAST_SECONDS * SAMPLE_RATE:
        raise ValueError(f"{len(samples) / SAMPLE_RATE:.2f} s are too short to tell a voice")
    return samples


class Whisper:
    """Whisper large-v3 through transformers, as SeedTTS-Eval uses it: float32, greedy, language given.

    Two things differ from the scripts of SeedTTS-Eval: resampling is a windowed sinc, not a Fourier
    transform of the whole clip; and of clips above 30 s all is heard, in pieces, not the first 30 s.
    """

    SOURCE = "openai/whisper-large-v3@06f233fe06e710322aca913c1bc4249a0d71fce1"
    MAX_SECONDS = 30.0
    short = "Whisper large-v3"
    languages = frozenset(
        "af ar az be bg bs ca cs cy da de el en es et fa fi fr gl he hi hr hu hy id is it ja kk kn ko lt lv mi mk mr "
        "ms ne nl no pl pt ro ru sk sl sr sv sw ta th tl tr uk ur vi zh".split()
    )

    def __init__(self, source: str = SOURCE) -> None:
        """Raises JudgeUnavailable where the weights cannot be had."""
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        self.name = f"Whisper ({source})"
        self._processor = pretrained(WhisperProcessor, source)
        self._model = pretrained(WhisperForConditionalGeneration, source).to(choose_device()).eval()

    @torch.inference_mode()
    def transcribe(self, waveform: Tensor, sample_rate: int, language: str = "en") -> str:
        """float [L] in [-1, 1] -> text with case and punctuation; "" for silence."""
        samples = resample(mono(waveform, "waveform").float(), sample_rate, SAMPLE_RATE)
        texts = []
        for piece in split_at_quiet(samples, SAMPLE_RATE, self.MAX_SECONDS):
            if level_dbfs(piece) <= SILENCE_DBFS:
                continue
            inputs = self._processor(piece.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            tokens = self._model.generate(
                inputs.to(self._model.device, self._model.dtype),
                language=language,
                task="transcribe",
            )
            texts.append(self._processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
        return " ".join(text for text in texts if text)


class Paraformer:
    """Paraformer-zh through FunASR, then simplified characters by zhconv, as SeedTTS-Eval has it.

    transformers 5.23 has no Paraformer. FunASR takes the weights from its own hub, at no fixed
    revision.
    """

    SOURCE = "paraformer-zh"
    short = "Paraformer-zh"
    languages = frozenset({"zh"})

    def __init__(self, source: str = SOURCE) -> None:
        """Raises JudgeUnavailable that says what to install."""
        needed = "funasr==1.4.16 zhconv==1.4.3"
        self._simplify = optional_module("zhconv", needed).convert
        funasr = optional_module("funasr", needed)
        self.name = f"Paraformer ({source}, FunASR)"
        self._model = funasr.AutoModel(model=source, device=str(choose_device()), disable_update=True)

    def transcribe(self, waveform: Tensor, sample_rate: int, language: str = "zh") -> str:
        """float [L] in [-1, 1] -> simplified Chinese; "" for silence. Other languages: ValueError."""
        if language not in self.languages:
            raise ValueError(f"{self.short} knows zh, not {language!r}")
        samples = resample(mono(waveform, "waveform").float(), sample_rate, SAMPLE_RATE)
        if level_dbfs(samples) <= SILENCE_DBFS:
            return ""
        results = self._model.generate(input=samples.numpy(), batch_size_s=300)
        return self._simplify(results[0]["text"], "zh-cn") if results else ""


class WavLMXVector:
    """WavLM base-plus with the x-vector head, which some papers use in place of WavLM-large."""

    SOURCE = "microsoft/wavlm-base-plus-sv@feb593a6c23c1cc3d9510425c29b0a14d2b07b1e"
    short = "WavLM base-plus x-vector"

    def __init__(self, source: str = SOURCE) -> None:
        """Raises JudgeUnavailable where the weights cannot be had."""
        from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

        self.name = f"WavLM x-vector ({source})"
        self._extractor = pretrained(Wav2Vec2FeatureExtractor, source)
        self._model = pretrained(WavLMForXVector, source).to(choose_device()).eval()

    @torch.inference_mode()
    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """float [L] in [-1, 1] -> [512] of length 1; raises ValueError as `voiced` does."""
        samples = voiced(waveform, sample_rate)
        inputs = self._extractor(samples.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        embedding = self._model(inputs.input_values.to(self._model.device)).embeddings[0]
        return (embedding / embedding.norm()).cpu()
