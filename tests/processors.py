"""Prints hashes of the results of every kind of arithmetic: `python tests/processors.py [--unpinned]`.

They are equal on any two processors, real or emulated; with `--unpinned` libraries choose their kernels.
"""

import json
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from higgs.arithmetic import environment, set_arithmetic

REPEATABLE = "--unpinned" not in sys.argv
os.environ.update(environment(REPEATABLE))  # before numpy and torch are loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402

import higgs.audio as audio  # noqa: E402
from higgs import AudioTokenizer, ChatMLSample, Engine, SamplingConfig  # noqa: E402
from higgs.data.voices import find_voice  # noqa: E402
from higgs.evaluate.judges import registry as judges  # noqa: E402
from higgs.evaluate.metrics.signal import stoi  # noqa: E402
from higgs.evaluate.utterances import MOS_DECIMALS  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "data/checkpoints/nano"
CLIP = ROOT / "data/recordings/en/en-conf-invalid.flac"
STEPS = 25
sums: dict[str, str] = {}


def add(name: str, compute: Callable[[], Any]) -> Any:
    value = compute()
    parts = value if isinstance(value, tuple | list) else [value]
    raw = b"".join(p.numpy().tobytes() if hasattr(p, "numpy") else repr(p).encode() for p in parts)
    sums[name] = sha256(raw).hexdigest()[:16]
    return value


def functions() -> list[bytes]:
    """numpy's, for figures and statistics."""
    x = np.random.default_rng(0).random(10_007)
    square = x[:10_000].reshape(100, 100)
    arrays = [f(x) for f in (np.log, np.log10, np.exp, np.sin, np.tanh, np.sum, np.fft.rfft)]
    return [np.asarray(values).tobytes() for values in (*arrays, square @ square)]


def flac(waveform: torch.Tensor) -> bytes:
    with TemporaryDirectory() as folder:
        audio.save_audio(Path(folder) / "a.flac", waveform, 24_000)
        return (Path(folder) / "a.flac").read_bytes()


@torch.inference_mode()
def logits(engine: Engine, prompt: ChatMLSample) -> list[torch.Tensor]:
    output = engine.model(engine.sequence(prompt).prompt)
    return [output.text_logits, output.audio_logits]


def speech(engine: Engine, prompt: ChatMLSample) -> list[torch.Tensor]:
    response = engine.generate(prompt, SamplingConfig(temperature=0.4, top_k=20), STEPS)
    return [response.codes, response.waveform]


def naturalness(clip: torch.Tensor) -> list[float]:
    """Scores of one window, rounded as results are: no setting pins onnxruntime."""
    window = clip.repeat(8)[: 24_000 * 91 // 10]
    scores = judges.make_judge("dnsmos", kind="naturalness").rate(window, 24_000)
    return [round(score, MOS_DECIMALS) for score in scores.values()]


def main() -> None:
    set_arithmetic(REPEATABLE)
    add("numpy", functions)
    clip = add("resampled", lambda: audio.load_audio(CLIP, 24_000)[0])[: 24_000 * 3 // 2]
    codec = AudioTokenizer.from_pretrained(NANO / "codec")
    codes = add("codes", lambda: codec.encode(clip))
    waveform = add("waveform", lambda: codec.decode(codes))
    add("file", lambda: flac(waveform))
    engine = Engine.from_pretrained(NANO / "model", NANO / "codec", device="cpu", dtype="float32")
    prompt = find_voice(ROOT / "data/voices", "cleo").prompt("The bus stops in front of the school.")
    add("logits", lambda: logits(engine, prompt))
    add("speech", lambda: speech(engine, prompt))
    add("recogniser", lambda: judges.make_judge("moonshine-tiny-en-float32").transcribe(clip, 24_000))
    add("speaker", lambda: judges.make_judge("ge2e", kind="speaker").embed(clip, 24_000))
    add("naturalness", lambda: naturalness(clip))
    add("stoi", lambda: stoi(clip, 0.9 * waveform[: len(clip)], 24_000))
    print(json.dumps(sums))


if __name__ == "__main__":
    main()
