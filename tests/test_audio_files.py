"""Audio files as people have them: streamed, of telephones, with two inverted channels; and damage that is told."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs import AudioContent, Engine
from higgs.audio import MAX_SAMPLES, load_audio, probe
from higgs.data.training.manifest import DataError, encode_audio, read_manifest
from higgs.data.voices import add_voice, check_recording, read_voices

RATE, SECONDS = 24_000, 3
NOISE = (np.random.default_rng(0).standard_normal(SECONDS * RATE) * 0.1).astype(np.float32)
Change = Callable[[bytearray], bytes | bytearray | None]


def sound(suffix: str, samples: np.ndarray = NOISE, rate: int = RATE, **how: object) -> Callable[[Path], bytes]:
    """-> the bytes of a file of that type."""

    def make(folder: Path) -> bytes:
        path = folder / f"sound.{suffix}"
        soundfile.write(path, samples, rate, **how)
        return path.read_bytes()

    return make


def sizes(riff: int | None = None, data: int | None = None, order: str = "<") -> Change:
    """Other sizes in the header of a WAV or AIFF file: of the whole, and of the samples."""

    def change(content: bytearray) -> None:
        if riff is not None:
            struct.pack_into(f"{order}I", content, 4, riff)
        if data is not None:
            at = content.index(b"data" if order == "<" else b"SSND")
            struct.pack_into(f"{order}I", content, at + 4, data)

    return change


def put(at: int, value: bytes) -> Change:
    def change(content: bytearray) -> None:
        content[at : at + len(value)] = value

    return change


def cut(share: float) -> Change:
    return lambda content: content[: int(len(content) * share)]


def flip(share: float) -> Change:
    def change(content: bytearray) -> None:
        content[int(len(content) * share)] ^= 4

    return change


def without_page(content: bytearray) -> bytes:
    """Ogg without a page in the middle: every checksum is right."""
    second = content.index(b"OggS", len(content) // 3)
    return content[:second] + content[content.index(b"OggS", second + 1) :]


def without_count(content: bytearray) -> bytes:
    """MP3 without its first frame, in which the others are counted."""
    return content[content.index(b"\xff\xf3", 4) :]


def counted(frames: int) -> Change:
    return lambda content: put(content.index(b"Xing") + 8, struct.pack(">I", frames))(content)


def variable(*parts: np.ndarray) -> Callable[[Path], bytes]:
    return sound("mp3", np.concatenate(parts), bitrate_mode="VARIABLE", compression_level=0.3)


WAV, MP3, OGG = sound("wav"), variable(NOISE), sound("ogg")
QUIET = NOISE * 0
TAG = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)
# Whole files: how they are made, what is changed, and their seconds.
WHOLE = {
    "streamed by Pocket TTS": (WAV, sizes(2_000_000_036, 2_000_000_000), SECONDS),
    "streamed, 0xFFFFFFFF": (WAV, sizes(0xFFFFFFFF, 0xFFFFFFFF), SECONDS),
    "streamed, 0x7FFF0000": (WAV, sizes(0x7FFF0024, 0x7FFF0000), SECONDS),
    "streamed, 0x3FFFFFFF": (WAV, sizes(0x3FFFFFFF, 0x3FFFFFFF - 36), SECONDS),
    "streamed, 0": (WAV, sizes(0, 0), SECONDS),
    "streamed, 0 and the largest": (WAV, sizes(0xFFFFFFFF, 0), SECONDS),
    "streamed AIFF": (sound("aiff"), sizes(0x7F000008, 0x7F000000, ">"), SECONDS),
    "streamed AU": (sound("au"), put(8, b"\xff" * 4), SECONDS),
    "a pad byte is counted but missing": (
        sound("wav", NOISE[:-1], subtype="PCM_U8"), lambda c: sizes(len(c) - 8)(c[:-1]) or c[:-1], SECONDS,
    ),
    "tags behind the samples": (WAV, lambda c: c + b"LIST\x04\0\0\0INFO", SECONDS),
    "half of the tags": (WAV, lambda c: sizes(len(c) + 100)(c) or c + b"LIST\x64\0\0\0INFO", SECONDS),
    "RF64": (sound("rf64"), None, SECONDS),
    "W64": (sound("w64"), None, SECONDS),
    "GSM 6.10": (sound("wav", rate=8000, subtype="GSM610"), None, 9),
    "IMA ADPCM": (sound("wav", subtype="IMA_ADPCM"), None, SECONDS),
    "MP3 of a constant rate": (sound("mp3", bitrate_mode="CONSTANT"), None, SECONDS),
    "MP3 with tags": (MP3, lambda c: TAG + c + b"TAG" + bytes(125), SECONDS),
    "MP3 without a count": (MP3, without_count, SECONDS),
    "MP3 without a count, quiet first": (variable(QUIET, NOISE), without_count, 2 * SECONDS),
    "MP3 without a count, loud first": (variable(NOISE, QUIET), without_count, 2 * SECONDS),
    "MP3 without a count, with tags": (variable(NOISE, QUIET), lambda c: TAG + without_count(c) + TAG, 2 * SECONDS),
    "stereo MP3 without a count": (
        sound("mp3", np.stack([NOISE, QUIET], 1), 48_000, bitrate_mode="VARIABLE"),
        lambda c: c[c.index(b"\xff\xfb", 4) :], SECONDS / 2,
    ),
    "FLAC behind tags": (sound("flac"), lambda c: TAG + TAG + c, SECONDS),
    "Vorbis": (OGG, None, SECONDS),
    "Opus": (sound("ogg", subtype="OPUS"), None, SECONDS),
    "a tag behind the last page": (OGG, lambda c: c + b"TAG" + bytes(125), SECONDS),
}  # fmt: skip


def write_clip(folder: Path, make: Callable, change: Callable | None) -> None:
    """The file "clip": what was made, and then changed, in place or to what is returned."""
    content = bytearray(make(folder))
    (folder / "clip").write_bytes((change and change(content)) or content)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_read_to_their_end(tmp_path, name):
    make, change, seconds = WHOLE[name]
    write_clip(tmp_path, make, change)
    waveform, rate = load_audio(tmp_path / "clip")
    # Codecs add at most a block, MP3 a frame and the delay of its decoder.
    assert seconds <= len(waveform) / rate + 1e-4 and len(waveform) / rate < seconds + 0.1
    assert probe(tmp_path / "clip")[2] == len(waveform) / rate
    assert float(waveform.square().mean().sqrt()) > 0.04


def bombs(channels: int, rate: int, bits: int = 16) -> bytes:
    """The header of a WAV file, and one block of silence for each of 7000 frames."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, min(rate * block, 2**32 - 1), block, bits)
    size = 7000 * block
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", size)


def bomb(channels: int, rate: int) -> Callable[[Path], bytes]:
    return lambda folder: bombs(channels, rate) + bytes(7000 * channels * 2)


# Damaged and unusual files: how they are made, what is changed, and what is said.
DAMAGED = {
    "Vorbis, a bit": (OGG, flip(0.5), "damaged: the checksum of the page at byte"),
    "Vorbis, a bit at the end": (OGG, flip(0.99), "damaged: the checksum"),
    "Opus, a bit": (sound("ogg", subtype="OPUS"), flip(0.7), "damaged: the checksum"),
    "Vorbis, no page": (OGG, without_page, "damaged: pages are missing before byte"),
    "Vorbis, zeros between": (OGG, lambda c: c[: c.rindex(b"OggS")] + bytes(9) + c[c.rindex(b"OggS") :], "no page at"),
    "Vorbis, cut off": (OGG, cut(0.6), "cut off: the page at byte"),
    "MP3, a wrong count": (MP3, counted(60), "wrong header.*127 of 60 frames"),
    "MP3, a larger count": (MP3, counted(999), "cut off: 127 of 999 frames"),
    "MP3, cut off": (MP3, cut(0.6), "cut off"),
    "MP3, scratched": (MP3, put(9000, bytes(1000)), "damaged: no frame at byte"),
    "MP3, no count and cut off": (MP3, lambda c: cut(0.6)(without_count(c)), "cut off"),
    "WAV, cut off": (WAV, cut(0.5), "cut off: 72022 of 144044 bytes"),
    "WAV without its size, cut off": (WAV, lambda c: sizes(riff=0)(c) or cut(0.5)(c), "cut off"),
    "RF64, cut off": (sound("rf64"), cut(0.5), "cut off"),
    "W64, cut off": (sound("w64"), cut(0.5), "cut off"),
    "AU, cut off": (sound("au"), cut(0.5), "cut off"),
    "CAF, cut off": (sound("caf"), cut(0.5), "not an audio file"),
    "2 Hz": (bomb(1, 2), None, "2 Hz, 1 channels; 1,000 to 768,000 Hz"),
    "a gigahertz": (bomb(1, 10**9), None, "1,000,000,000 Hz"),
    "1000 channels": (bomb(1000, 16_000), None, "1000 channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told(tmp_path, name):
    make, change, message = DAMAGED[name]
    write_clip(tmp_path, make, change)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'clip'}.*{message}"):
        load_audio(tmp_path / "clip")
    if "MP3" not in name or "count" in name:
        with pytest.raises(ValueError, match=message):
            probe(tmp_path / "clip")


def test_the_hash_of_a_flac_file_is_checked_behind_tags_too(tmp_path):
    content = bytearray(sound("flac")(tmp_path))
    content[30] ^= 1
    for tags in (b"", TAG, TAG + TAG):
        with pytest.raises(ValueError, match="damaged: its samples are not those whose hash is in its header"):
            load_audio(tags + bytes(content))


def test_memory_is_bounded_by_samples(tmp_path, monkeypatch):
    """Six minutes of silence in 8 channels at 192 kHz: 0.6 MB of FLAC, 2 GB of samples. The header is enough."""
    content = bytearray(sound("flac", np.zeros((100, 8)), 192_000)(tmp_path))
    frames = MAX_SAMPLES // 8 + 1
    content[21:26] = ((content[21] & 0xF0) << 32 | frames).to_bytes(5, "big")
    (tmp_path / "long.flac").write_bytes(content)
    decoded = []
    monkeypatch.setattr("higgs.audio._decode", lambda *arguments: decoded.append(arguments))
    with pytest.raises(ValueError, match="long.flac: 225 s of 8 channels at 192000 Hz are more than"):
        load_audio(tmp_path / "long.flac")
    (finding,) = check_recording(tmp_path / "long.flac", "Hello.")
    assert finding.fatal and "225.00 s long: 1 to 60 s are possible" in finding.message
    assert not decoded


SPEECH = np.tile(NOISE, 2)
# Channels, and the one that is heard: None for the average.
CHANNELS = {
    "inverted": ([SPEECH, -SPEECH], 0),
    "inverted, the second louder": ([0.9 * SPEECH, -SPEECH], 1),
    "inverted, of four": ([SPEECH, -SPEECH, 0.5 * SPEECH, -0.5 * SPEECH], 0),
    "independent": ([SPEECH, np.roll(SPEECH, 999)], None),
    "the same": ([SPEECH, SPEECH], None),
    "one of two": ([0 * SPEECH, SPEECH], None),
    "one of eight": ([*[0 * SPEECH] * 7, SPEECH], None),
    "half inverted": ([SPEECH, -0.5 * SPEECH], None),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_that_cancel_each_other_out(tmp_path, name):
    channels, taken = CHANNELS[name]
    soundfile.write(tmp_path / "clip.wav", np.stack(channels, 1), RATE, subtype="FLOAT")
    waveform, _ = load_audio(tmp_path / "clip.wav")
    expected = np.mean(channels, 0) if taken is None else channels[taken]
    assert np.abs(waveform.numpy() - expected).max() < 1e-6
    words = "one two three four five six seven eight nine ten"
    (said,) = [f.message for f in check_recording(tmp_path / "clip.wav", words) if "channels" in f.message]
    how = "they are averaged" if taken is None else f"they cancel each other out, and number {taken + 1} is used"
    assert said == f"{len(channels)} channels: {how}"


def test_silent_recordings_are_refused(tmp_path, nano_engine: Engine):
    """As a reference and as a clip to train on: nothing can be imitated or learnt."""
    for name, samples in (("silent", QUIET), ("spoken", NOISE)):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
    with pytest.raises(ValueError, match=r"silent.wav is silent \(-inf dBFS\)"):
        nano_engine.reference_codes(AudioContent(str(tmp_path / "silent.wav")))
    assert nano_engine.reference_codes(AudioContent(str(tmp_path / "spoken.wav"))).shape == (8, 75)
    lines = [f'{{"audio": "{name}.wav", "text": "Hello."}}\n' for name in ("silent", "spoken")]
    (tmp_path / "clips.jsonl").write_text("".join(lines))
    (tmp_path / "silent.jsonl").write_text(lines[0])

    def encode(waveform: torch.Tensor) -> torch.Tensor:
        return torch.zeros(8, len(waveform) // 960, dtype=torch.long)

    usable, _ = encode_audio(read_manifest(tmp_path / "clips.jsonl"), tmp_path / "codes", encode, "c" * 64)
    assert [example.id for example in usable.examples] == ["spoken.wav"]
    assert "silent.wav: speech at -inf dBFS" in str(usable)
    with pytest.raises(DataError, match="-inf dBFS"):
        encode_audio(read_manifest(tmp_path / "silent.jsonl"), tmp_path / "codes", encode, "c" * 64)


@pytest.mark.parametrize("suffix", [".mp3", ".Caf", ".amr", ".strange", ""])
def test_recordings_of_another_type_in_the_folder_of_voices_are_named(tmp_path, suffix):
    (tmp_path / f"eve{suffix}").write_bytes(b"")
    (tmp_path / "eve.txt").write_text("Hello.")
    (tmp_path / "README.md").write_text("About these voices.")
    voices, faults = read_voices(tmp_path)
    assert not voices and faults == {"eve": f"{tmp_path / f'eve{suffix}'}: convert it to .flac or .wav"}


def test_a_voice_is_added_in_place_of_files_in_another_spelling(tmp_path):
    folder, clip = tmp_path / "voices", tmp_path / "clip.wav"
    folder.mkdir()
    soundfile.write(clip, SPEECH, RATE)
    for name in ("eve.WAV", "eve.Txt"):
        (folder / name).write_bytes(b"Old words.")
    with pytest.raises(ValueError, match="has a voice 'eve' already"):
        add_voice(folder, "eve", clip, "one two three four five six")
    add_voice(folder, "eve", clip, "one two three four five six", force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["eve.flac", "eve.txt"]
    assert read_voices(folder)[0]["eve"].transcript == "one two three four five six"
