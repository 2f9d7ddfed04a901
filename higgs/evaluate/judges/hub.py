"""Metric models of published tables, from a hub or a folder; run only on small random weights (in tests) so far."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs.evaluate.judges.base import SAMPLE_RATE, Recogniser, SpeakerEncoder, version_of
from higgs.evaluate.judges.wheels import MetricModelUnavailable
from higgs.workers import choose_device


def pretrained(kind: Any, source: str) -> Any:
    """`kind.from_pretrained` of a folder or `organisation/name@commit`; MetricModelUnavailable where that fails."""
    name, _, commit = source.partition("@")
    try:
        if not Path(source).exists() and not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError("no such folder, and as a hub id it must pin a full commit: organisation/name@COMMIT")
        where = source if Path(source).exists() else name
        return kind.from_pretrained(where, revision=commit or None, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        reason, advice = str(error).strip().partition("\n")[0], "it needs the hub once, or a folder: JUDGE:FOLDER"
        raise MetricModelUnavailable(f"{kind.__name__} cannot be loaded from {source} ({reason}); {advice}") from error


class Whisper(Recogniser):
    """Whisper large-v3 as in SeedTTS-Eval: float32, greedy, language given; but clips above 30 s are not cut off."""

    SOURCE = "openai/whisper-large-v3@06f233fe06e710322aca913c1bc4249a0d71fce1"
    short, on_accelerator = "Whisper large-v3", True
    languages = frozenset(
        "af ar az be bg bs ca cs cy da de el en es et fa fi fr gl he hi hr hu hy id is it ja kk kn ko lt lv mi mk mr "
        "ms ne nl no pl pt ro ru sk sl sr sv sw ta th tl tr uk ur vi zh".split()
    )

    def __init__(self, source: str = SOURCE) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        self.name = f"Whisper ({version_of(source)})"
        self._processor = pretrained(WhisperProcessor, source)
        self._model = pretrained(WhisperForConditionalGeneration, source).to(choose_device()).eval()

    def _transcribe(self, samples: Tensor, language: str) -> str:
        inputs = self._processor(samples.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        inputs = inputs.to(self._model.device, self._model.dtype)
        tokens = self._model.generate(inputs, language=language, task="transcribe")
        return self._processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


class Paraformer(Recogniser):
    """Paraformer-zh, with simplified characters by zhconv, as in SeedTTS-Eval; FunASR downloads no fixed revision."""

    MAX_SECONDS = 3600.0  # FunASR splits by itself
    short, on_accelerator = "Paraformer-zh", True
    languages = frozenset({"zh"})

    def __init__(self, source: str = "paraformer-zh") -> None:
        try:
            funasr, zhconv = import_module("funasr"), import_module("zhconv")
        except ModuleNotFoundError as error:
            raise MetricModelUnavailable(f"{error}; install: pip install funasr==1.4.16 zhconv==1.4.3") from error
        self.name = f"Paraformer ({version_of(source)}, FunASR)"
        self._simplify = zhconv.convert
        self._model = funasr.AutoModel(
            model=source, device=str(choose_device()), disable_update=True, trust_remote_code=False
        )

    def _transcribe(self, samples: Tensor, language: str) -> str:
        results = self._model.generate(input=samples.numpy(), batch_size_s=300)
        return self._simplify(results[0]["text"], "zh-cn") if results else ""


class WavLMXVector(SpeakerEncoder):
    """WavLM base-plus with the x-vector head, 512 numbers; some papers use it in place of WavLM-large."""

    SOURCE = "microsoft/wavlm-base-plus-sv@feb593a6c23c1cc3d9510425c29b0a14d2b07b1e"
    MIN_SECONDS = 0.5
    short, on_accelerator = "WavLM base-plus x-vector", True

    def __init__(self, source: str = SOURCE) -> None:
        from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

        self.name = f"WavLM x-vector ({version_of(source)})"
        self._extractor = pretrained(Wav2Vec2FeatureExtractor, source)
        self._model = pretrained(WavLMForXVector, source).to(choose_device()).eval()

    def _embed(self, samples: Tensor) -> Tensor:
        inputs = self._extractor(samples.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return self._model(inputs.input_values.to(self._model.device)).embeddings[0]
