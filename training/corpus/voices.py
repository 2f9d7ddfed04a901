"""The source TTS and its speakers: hibari-tts (Apache-2.0), one voice, whose vocoder takes pitch and spectral envelope.

Resampled, at a speaking rate that makes up for it, its voice has the formants of another speaker, and its pitch is an
input: further speakers of the same accent, as intelligible.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch

from higgs.audio import resample

SAMPLE_RATE = 24_000
HOP_LENGTH = 960


@dataclass(frozen=True)
class Speaker:
    """Pitch and formant frequencies are multiplied."""

    name: str
    pitch: float
    formant: float


ADA = Speaker("ada", 1.0, 1.0)
BEN = Speaker("ben", 0.76, 0.84)
KIT = Speaker("kit", 1.3, 1.18)
IN_HOUSE = (ADA, BEN, KIT)
DESCRIBED = {"ada": "feminine", "ben": "masculine", "kit": "childlike"}  # the description that asks for each
SHARES = (0.28, 0.24, 0.24)  # of the utterances; the rest are of random speakers


def random_speaker(rng: random.Random) -> Speaker:
    """Low voices have long vocal tracts: pitch and formant scale are correlated."""
    pitch = rng.uniform(0.6, 1.4)
    formant = min(1.22, max(0.8, 0.98 + 0.42 * (pitch - 0.98) + rng.gauss(0, 0.04)))
    return Speaker(f"p{pitch:.2f}f{formant:.2f}", round(pitch, 3), round(formant, 2))


def choose_speaker(rng: random.Random) -> Speaker:
    draw = rng.random()
    for speaker, share in zip(IN_HOUSE, SHARES, strict=True):
        if draw < share:
            return speaker
        draw -= share
    return random_speaker(rng)


def trimmed(audio: np.ndarray) -> np.ndarray:
    """[L], whole frames -> the frames from one before to two after those within 45 dB of the loudest."""
    frames = audio.astype(np.float32).reshape(-1, HOP_LENGTH)
    power = (frames**2).mean(1)
    (loud,) = np.nonzero(power > power.max(initial=0.0) * 10**-4.5)
    if not len(loud):
        return audio
    return frames[max(0, loud[0] - 1) : loud[-1] + 3].reshape(-1)


def finished(audio: np.ndarray, played: float = 1.0) -> np.ndarray:
    """float [L], played at `played` times its speed -> int16, whole frames, trimmed, peak at -3 dBFS."""
    if played != 1.0:
        rate = round(SAMPLE_RATE * played)
        audio = resample(torch.from_numpy(audio), rate, SAMPLE_RATE).numpy()
    audio = trimmed(np.pad(audio, (0, -len(audio) % HOP_LENGTH)))
    peak = max(float(np.abs(audio).max(initial=0.0)), 1e-6)
    return (audio * (0.7 * 32767 / peak)).astype(np.int16)


def source_dsp():
    """hibari.dsp with numpy's FFT: it would take scipy's where that is installed, which rounds otherwise."""
    from hibari import dsp

    dsp.rfft = lambda x, axis: np.fft.rfft(x, axis=axis).astype(np.complex64)
    dsp.irfft = lambda x, n, axis: np.fft.irfft(x, n=n, axis=axis).astype(np.float32)
    return dsp


def speak(tts, text: str, speaker: Speaker, speed: float, seed: int) -> np.ndarray:
    """The source TTS `tts`, a hibari.Hibari -> int16 [L], as `finished` returns it."""
    dsp, rng, parts = source_dsp(), np.random.default_rng(seed), []
    for phonemes in tts.phonemize(text):
        feeds = {
            "ids": np.asarray([tts.ids(phonemes)], np.int64),
            "speed": np.asarray([speed / speaker.formant], np.float32),
        }
        lh, th, ln, lr, phi, f0 = (output[0] for output in tts.sess.run(None, feeds))
        parts.append(dsp.synth(lh, th, ln, lr, phi, f0 * (speaker.pitch / speaker.formant), rng))
    audio = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return finished(audio, speaker.formant)
