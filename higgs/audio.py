"""Audio files through soundfile; resampling and mel spectra through torchaudio.

torchaudio's wheel links against CUDA: beside a CPU-only torch its native library does not load, nor does transformers.
So torchaudio is imported here, before transformers, and without that library where it fails.
"""

import io
import math
import operator
import sys
import types
from functools import lru_cache
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from higgs.config import MAX_FILTER
from higgs.containers import MAX_SECONDS, WRITABLE, FlacHash, Source, name_of, opened
from higgs.containers import probe as probe
from higgs.files import write_atomically

try:
    import torchaudio
except OSError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = extension._IS_ALIGN_AVAILABLE = False
    extension._check_cuda_version = lambda: None
    extension.fail_if_no_align = lambda function: function
    sys.modules["torchaudio._extension"] = extension
    import torchaudio

MAX_SAMPLES = 2 * 3600 * 48_000  # of all channels: they are decoded, whatever the file's size
BLOCK = 1 << 16  # frames that are decoded at once
# Power of the average relative to that of the channels: 1/n for n independent ones, and one alone; below, they cancel.
CANCELLED = 0.01
SILENT_DBFS = -70.0
# Usual suffixes of what libsndfile reads, in any case; the first of several files is the one that is meant.
READABLE = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".aifc", ".caf", ".au", ".w64", ".rf64")

OPUS_RATES, OPUS_BIT_RATES = (8_000, 12_000, 16_000, 24_000, 48_000), (6_000, 256_000)


def check_waveform(waveform: Tensor, what: str = "waveform") -> Tensor:
    """[..., L] -> the same, as float32. Empty, not finite, not floating: ValueError / TypeError."""
    if not isinstance(waveform, Tensor):
        raise TypeError(f"{what}: expected a torch.Tensor, got {type(waveform).__name__}")
    if not waveform.is_floating_point():
        advice = "expected floating point samples in [-1, 1]; divide 16-bit integers by 32768"
        raise TypeError(f"{what}: {advice}, got {waveform.dtype}")
    if waveform.numel() == 0:
        raise ValueError(f"{what}: empty (shape {tuple(waveform.shape)})")
    if bad := int((~torch.isfinite(waveform)).sum()):
        raise ValueError(f"{what}: {bad} of {waveform.numel()} samples are NaN or infinite")
    return waveform.float()


def load_audio(source: Source, sample_rate: int | None = None) -> tuple[Tensor, int]:
    """Audio file -> ([L] float32 in [-1, 1], sample rate). Channels are averaged; `sample_rate` resamples.

    Of channels that cancel each other out, as one and its inverse do, the loudest is taken.
    FileNotFoundError; ValueError without usable audio, cut off, damaged, over an hour or over MAX_SAMPLES.
    """
    waveform, rate, _ = read_mono(source)
    return (waveform, rate) if sample_rate is None else (resample(waveform, rate, sample_rate), sample_rate)


def read_mono(source: Source) -> tuple[Tensor, int, int | None]:
    """-> what `load_audio` does, and the number of the channel that was taken, None for their average."""
    name = name_of(source)
    with opened(source) as file:
        rate, frames, channels = file.samplerate, file.frames, file.channels
        if frames > MAX_SECONDS * rate:
            raise ValueError(f"{name}: {frames / rate:.0f} s is longer than {MAX_SECONDS:.0f} s; split it first")
        if frames * channels > MAX_SAMPLES:
            size = f"{frames / rate:.0f} s of {channels} channels at {rate} Hz"
            raise ValueError(f"{name}: {size} are more than {MAX_SAMPLES:,} samples; mix it down, or split it first")
        waveform, averaged, powers = _decode(file, source)
    check_waveform(waveform, name)
    if channels == 1 or averaged >= CANCELLED * powers.mean():
        return waveform, rate, None
    channel = int(powers.argmax())
    with opened(source) as file:
        return _decode(file, source, channel)[0], rate, channel


def _decode(file: soundfile.SoundFile, source: Source, channel: int | None = None) -> tuple[Tensor, float, Tensor]:
    """A file that was just opened -> one channel or their average [L], its power, and those of the channels [C]."""
    waveform, there = torch.empty(file.frames), 0
    power, powers = 0.0, torch.zeros(file.channels, dtype=torch.float64)
    flac = FlacHash(source) if file.format == "FLAC" else None
    flac = flac if flac and flac.known else None
    while there < file.frames:
        size = min(BLOCK, file.frames - there)
        samples = file.read(size, dtype="int32" if flac else "float32", always_2d=True)
        if not len(samples):
            break
        if flac:
            flac.update(samples)
        block = torch.from_numpy(samples)
        block = block.float() / 2**31 if flac else block  # exact for the 24 bits that FLAC has at most
        part = block.mean(dim=1) if channel is None else block[:, channel]
        waveform[there : there + len(part)] = part
        there += len(part)
        if file.channels > 1:
            power, powers = power + part.double().square().sum(), powers + block.double().square().sum(dim=0)
    if there + file.samplerate / 10 < file.frames:  # lengths of MP3 files are not exact
        rate = file.samplerate
        raise ValueError(f"{name_of(source)} is cut off: {there / rate:.2f} of {file.frames / rate:.2f} s are there")
    if flac:
        flac.check(name_of(source))
    return waveform[:there], power, powers


def check_audible(waveform: Tensor, what: str) -> Tensor:
    """[L] -> the same. ValueError for silence, from which nothing can be learnt or imitated."""
    if (level := level_dbfs(waveform)) < SILENT_DBFS:
        raise ValueError(f"{what} is silent ({level:.0f} dBFS): expected speech")
    return waveform


def save_audio(path: str | Path, waveform: Tensor, sample_rate: int) -> None:
    """float [L] -> 16-bit file of the suffix's format, clipped to [-1, 1]; written whole or not at all."""
    if (suffix := Path(path).suffix).lower() not in WRITABLE:
        raise ValueError(f"{path}: audio is written as {', '.join(WRITABLE)}")
    # In memory first: libsndfile does not say why it could not write a file.
    write_atomically(path, encoded(waveform, sample_rate, suffix[1:]))


def encoded(waveform: Tensor, sample_rate: int, suffix: str = "wav") -> bytes:
    """As `save_audio` writes it."""
    if waveform.dim() != 1:
        raise ValueError(f"save_audio takes [L], got shape {tuple(waveform.shape)}")
    samples, content = check_waveform(waveform).clamp(-1, 1).cpu().numpy(), io.BytesIO()
    soundfile.write(content, samples, check_rate(sample_rate), subtype="PCM_16", format=suffix.upper())
    return content.getvalue()


def compress(waveform: Tensor, sample_rate: int, bit_rate: int = 32_000) -> bytes:
    """float [L] -> an Ogg Opus file, clipped to [-1, 1], at about `bit_rate` (6,000 to 256,000); for players alone."""
    if sample_rate not in OPUS_RATES:
        waveform, sample_rate = resample(waveform, sample_rate, 24_000), 24_000
    content, span = io.BytesIO(), OPUS_BIT_RATES[1] - OPUS_BIT_RATES[0]
    level = min(1.0, max(0.0, (OPUS_BIT_RATES[1] - bit_rate) / span))  # libsndfile turns this into the bit rate again
    samples = check_waveform(waveform).clamp(-1, 1).cpu().numpy()
    soundfile.write(content, samples, check_rate(sample_rate), format="OGG", subtype="OPUS", compression_level=level)
    return content.getvalue()


def check_rate(sample_rate: int) -> int:
    """Samples per second as an int; TypeError for other numbers, ValueError for 0 and below."""
    try:
        rate = operator.index(sample_rate)
    except TypeError:
        raise TypeError(f"sample rate: expected a whole number of Hz, got {sample_rate!r}") from None
    if rate <= 0:
        raise ValueError(f"sample rate: must be positive, got {rate} Hz")
    return rate


@lru_cache(maxsize=32)
def resampler(source_rate: int, target_rate: int, dtype: torch.dtype, device: str):
    with torch.inference_mode(False):  # it is cached, and may be used outside of inference mode later
        return torchaudio.transforms.Resample(source_rate, target_rate, dtype=dtype).to(device)


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """[..., L] -> [..., ceil(L * target / source)]: Hann-windowed sinc, width 6; ValueError for unusual pairs."""
    source_rate, target_rate = check_rate(source_rate), check_rate(target_rate)
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    if (source_rate // divisor) * (target_rate // divisor) > MAX_FILTER:
        usual = "usual rates are 8000, 16000, 22050, 24000, 32000, 44100 and 48000"
        rates = f"{source_rate} Hz to {target_rate} Hz"
        raise ValueError(f"cannot resample from {rates}: their greatest common divisor is {divisor}; {usual}")
    return resampler(source_rate, target_rate, waveform.dtype, str(waveform.device))(waveform)


@lru_cache(maxsize=16)
def mel_filterbank(n_fft: int, num_mels: int, sample_rate: int) -> Tensor:
    """-> [n_fft // 2 + 1, num_mels]: triangular filters from 0 to half the sample rate on the HTK mel scale."""
    return torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm=None, mel_scale="htk"
    )


def magnitude(waveform: Tensor, n_fft: int, hop: int, pad: str | None = None) -> Tensor:
    """[..., L] -> [..., n_fft // 2 + 1, frames]: |STFT|, Hann window; `pad` is a mode of padding both ends."""
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    flat, how = waveform.reshape(-1, waveform.shape[-1]), {"center": pad is not None, "pad_mode": pad or "constant"}
    spectrum = torch.stft(flat, n_fft, hop, window=window, **how, return_complex=True)
    return spectrum.abs().reshape(*waveform.shape[:-1], *spectrum.shape[-2:])


def log_mel(waveform: Tensor, sample_rate: int = 24_000) -> Tensor:
    """[..., L] -> [..., 80, L / 240]: natural log of mel magnitudes, floored at 1e-4; edges are reflected."""
    n_fft, hop, num_mels = 1024, 240, 80
    pad = (n_fft - hop) // 2
    flat = waveform.reshape(-1, 1, waveform.shape[-1])
    padded = torch.nn.functional.pad(flat, (pad, pad), mode="reflect")[:, 0]
    mel = mel_filterbank(n_fft, num_mels, sample_rate).to(waveform.device).T @ magnitude(padded, n_fft, hop)
    return mel.clamp(min=1e-4).log().reshape(*waveform.shape[:-1], num_mels, mel.shape[-1])


def level_dbfs(waveform: Tensor) -> float:
    """[L] -> RMS in dB relative to full scale; -inf for silence."""
    power = waveform.double().square().mean().item()
    return 10 * math.log10(power) if power > 0 else -math.inf
