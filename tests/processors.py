"""Prints hashes of what every kind of arithmetic gives on this processor: `python tests/processors.py [--unpinned]`.

Run on two processors, real or emulated, the hashes are equal; with `--unpinned` libraries choose their kernels.
"""

import json
import os
import sys
import time
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
from higgs.evaluate.utterances import MOS_DECIMALS  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "data/checkpoints/nano"
CLIP = ROOT / "data/recordings/en/en-conf-invalid.flac"
STEPS = 25
sums: dict[str, str] = {}


def add(name: str, compute: Callable[[], Any]) -> Any:
    """Computes something and keeps its hash; says on stderr how long it took."""
    started = time.perf_counter()
    value = compute()
    parts = value if isinstance(value, tuple | list) else [value]
    raw = b"".join(p.numpy().tobytes() if hasattr(p, "numpy") else repr(p).encode() for p in parts)
    sums[name] = sha256(raw).hexdigest()[:16]
    print(f"{name} {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    return value


def functions() -> list[bytes]:
    """What figures and statistics are made of."""
    x = np.random.default_rng(0).random(10_007)
    made = [f(x) for f in (np.log, np.log10, np.exp, np.sin, np.tanh)]
    made += [x.sum(), np.fft.rfft(x), x[:10_000].reshape(100, 100) @ x[:10_000].reshape(100, 100)]
    return [np.asarray(values).tobytes() for values in made]


def flac(waveform: torch.Tensor) -> bytes:
    with TemporaryDirectory() as folder:
        audio.save_audio(Path(folder) / "a.flac", waveform, 24_000)
        return (Path(folder) / "a.flac").read_bytes()


@torch.inference_mode()
def logits(engine: Engine, prompt: ChatMLSample) -> list[torch.Tensor]:
    output = engine.model(engine.prepare(prompt))
    return [output.text_logits, output.audio_logits]


def speech(engine: Engine, prompt: ChatMLSample) -> list[torch.Tensor]:
    made = engine.generate(prompt, SamplingConfig(temperature=0.4, top_k=20), STEPS)
    return [made.codes, made.waveform]


def naturalness(clip: torch.Tensor) -> list[float]:
    """Of one window, as rows hold it: no setting pins onnxruntime."""
    window = clip.repeat(8)[: 24_000 * 91 // 10]
    scores = judges.make_naturalness_predictor("dnsmos").rate(window, 24_000)
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
    for name, make in (
        (
            "recogniser",
            lambda: judges.make_judge("moonshine-tiny-en-float32").transcribe(clip, 24_000),
        ),
        ("speaker", lambda: judges.make_speaker_encoder("ge2e").embed(clip, 24_000)),
        ("naturalness", lambda: naturalness(clip)),
    ):
        add(name, make)
    print(json.dumps(sums))


if __name__ == "__main__":
    main()
