"""Audio files, resampling, and the one guarded import of torchaudio."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, assert_close
from safetensors.torch import load_file

from higgs.audio import load_audio, log_mel, probe, resample, save_audio


def fake_torchaudio(folder, native: bool) -> str:
    """A stand-in package whose native library loads, or does not."""
    package = folder / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from . import _extension\nfrom ._extension import _IS_TORCHAUDIO_EXT_AVAILABLE\n"
    )
    fails = "" if native else "raise OSError('libc10_cuda.so: cannot open shared object file')\n"
    (package / "_extension" / "__init__.py").write_text(fails + "_IS_TORCHAUDIO_EXT_AVAILABLE = True\n")
    return str(folder)


@pytest.mark.parametrize("native", [True, False])
def test_torchaudio_is_imported_with_and_without_its_native_library(tmp_path, native):
    """Where the native library loads it is used; where it does not, the package is imported without it."""
    code = "from higgs.audio import torchaudio; print(torchaudio._IS_TORCHAUDIO_EXT_AVAILABLE)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([fake_torchaudio(tmp_path, native), str(ROOT)])}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == str(native)


def test_resampling_equals_the_golden_signal(golden):
    waveform = load_file(golden / "original.safetensors")["n24000.wave"]
    expected = load_file(golden / "port.safetensors")["n24000.wave16k"]
    assert_close(resample(waveform, 24_000, 16_000).view(expected.shape), expected)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_save_and_load(tmp_path, suffix):
    waveform = torch.linspace(-1.2, 1.2, 4800)
    path = tmp_path / "folder" / f"ramp{suffix}"
    save_audio(path, waveform, 24_000)
    loaded, rate = load_audio(path)
    assert rate == 24_000
    assert (loaded - waveform.clamp(-1, 1)).abs().max() < 1e-4
    assert load_audio(path, 16_000)[0].shape == (3200,)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "aiff"])
@pytest.mark.parametrize("length", [None, 0, 10, 2000])
def test_the_content_of_a_file_is_as_the_file(tmp_path, suffix, length):
    """Its samples, its header, and what is wrong with it, where it is cut off after `length` bytes."""
    path = tmp_path / f"a.{suffix}"
    noise = torch.randn(24_000, generator=torch.Generator().manual_seed(0)).mul(0.1).clamp(-1, 1)
    soundfile.write(path, noise.numpy(), 24_000)
    path.write_bytes(path.read_bytes()[:length])

    def outcome(source, name: str) -> list:
        try:
            waveform, rate = load_audio(source)
            return [waveform.tolist(), rate, probe(source)]
        except ValueError as error:
            assert name in str(error) and "0x" not in str(error)
            return [str(error).replace(name, "").partition(" libsndfile reads")[0]]  # its words follow

    assert outcome(path.read_bytes(), "the audio") == outcome(path, str(path))


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "stereo.wav", np.stack([np.full(100, 0.5), np.zeros(100)], 1), 8000)
    waveform, rate = load_audio(tmp_path / "stereo.wav")
    assert rate == 8000 and waveform.shape == (100,)
    assert_close(waveform, torch.full((100,), 0.25), atol=1e-4)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        save_audio(tmp_path / "a.wav", torch.tensor([0.0, float("nan")]), 24_000)
    with pytest.raises(ValueError, match="written as"):
        save_audio(tmp_path / "a.nonsense", torch.zeros(10), 24_000)
    assert list(tmp_path.iterdir()) == []


def test_log_mel_of_a_tone():
    """One frame for 240 samples; the loudest band is the tone's."""
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(24_000) / 24_000)
    mel = log_mel(tone)
    assert mel.shape == (80, 100)
    centre = 2595 * np.log10(1 + 1000 / 700) / (2595 * np.log10(1 + 12_000 / 700)) * 81 - 1
    assert abs(int(mel[:, 50].argmax()) - centre) <= 1
