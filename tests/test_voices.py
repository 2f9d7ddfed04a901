"""Voices: the folder, findings on recordings, and prompts of one or several speakers."""

import errno
import json
import math
import os

import pytest
import soundfile
import torch
from conftest import ROOT

from higgs.audio import load_audio
from higgs.data.loudness import frame_levels, silence, speech_level
from higgs.data.voices import Voice, add_voice, check_recording, find_voice, read_voices, recording_of, speakers_prompt

WORDS = "one two three four five six seven eight"


def speech(seconds: float = 4.0, rate: int = 24_000, level: float = -20.0) -> torch.Tensor:
    """[L] noise at a level in dBFS: to the checks, speech."""
    noise = torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(0))
    return noise / noise.square().mean().sqrt() * 10 ** (level / 20)


def write(path, waveform: torch.Tensor, rate: int = 24_000, subtype: str | None = None):
    soundfile.write(path, waveform.numpy().T, rate, subtype=subtype)
    return path


def test_levels_and_silence():
    rate = 24_000
    clip = torch.cat([torch.zeros(rate), speech(2.0, rate), torch.zeros(rate // 2)])
    assert frame_levels(clip, rate).shape == (175,)
    assert abs(speech_level(clip, rate) + 20) < 0.1
    before, behind, share = silence(clip, rate)
    assert before == pytest.approx(1.0) and behind == pytest.approx(0.5)
    assert share == pytest.approx(75 / 175)
    assert speech_level(torch.zeros(rate), rate) == -math.inf
    assert silence(torch.zeros(rate), rate) == (1.0, 1.0, 1.0)


NAN = speech()
NAN[7] = torch.nan
# How a flawed recording is made, whether the finding is fatal, its message.
BAD = {
    "half a second": (lambda p: write(p, speech(0.5)), True, "0.50 s long: 1 to 60 s are possible"),
    "61 s": (lambda p: write(p, speech(61.0)), True, "61.00 s long"),
    "two seconds": (lambda p: write(p, speech(2.0)), False, "3 to 30 s are good"),
    "4 kHz": (lambda p: write(p, speech(4, 4000), 4000), True, "4000 Hz"),
    "8 kHz": (lambda p: write(p, speech(4, 8000), 8000), False, "8000 Hz: 16000 Hz or more"),
    "stereo": (lambda p: write(p, speech().repeat(2, 1)), False, "2 channels"),
    "quiet": (lambda p: write(p, speech(level=-50)), False, "speech at -50 dBFS"),
    "silent": (lambda p: write(p, torch.zeros(96_000)), True, "speech at -inf dBFS"),
    "clipped": (lambda p: write(p, speech(level=-7.0).clamp(-1, 1)), False, "clipped"),
    "mostly clipped": (lambda p: write(p, speech(level=3.0).clamp(-1, 1)), True, "clipped"),
    "late": (lambda p: write(p, torch.cat([torch.zeros(48_000), speech()])), False, "2.0 s of silence before"),
    "a tail": (lambda p: write(p, torch.cat([speech(), torch.zeros(24_000)])), False, "1.0 s of silence after"),
    "gaps": (lambda p: write(p, torch.cat([speech(1), torch.zeros(96_000), speech(1)])), False, "67% of it is silent"),
    "integers": (lambda p: write(p, 9000 * speech(), subtype="FLOAT"), True, "divide 16-bit integers by 32768"),
    "NaN": (lambda p: write(p, NAN, subtype="FLOAT"), True, "1 of 96000 samples are NaN"),
    "no audio": (lambda p: p.write_text("hello"), True, "not an audio file"),
    "empty": (lambda p: write(p, torch.zeros(0)), True, "empty"),
    "missing": (lambda p: None, True, "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_findings_on_a_recording(tmp_path, name):
    make, fatal, message = BAD[name]
    make(tmp_path / "clip.wav")
    findings = check_recording(tmp_path / "clip.wav", WORDS)
    (found,) = (finding for finding in findings if message in finding.message)
    assert found.fatal == fatal
    if fatal:
        with pytest.raises(ValueError, match="cannot serve as a reference"):
            add_voice(tmp_path / "voices", "eve", tmp_path / "clip.wav", WORDS)
        assert not (tmp_path / "voices").exists()


def test_a_good_recording(tmp_path):
    path = write(tmp_path / "clip.wav", speech())
    assert check_recording(path, WORDS) == []
    (rate,) = check_recording(path, "word " * 40)
    assert not rate.fatal and "10.0 words a second" in rate.message
    for transcript in (" ", "word " * 60):
        assert any(finding.fatal for finding in check_recording(path, transcript))


def test_adding_a_voice(tmp_path):
    folder = tmp_path / "voices"
    source = write(tmp_path / "clip.wav", speech(rate=48_000).repeat(2, 1), 48_000)
    voice, findings = add_voice(folder, "eve", source, f" {WORDS}\n")
    assert voice == find_voice(folder, "eve") == Voice("eve", folder / "eve.flac", WORDS)
    assert [finding.message for finding in findings] == ["2 channels: they are averaged"]
    waveform, rate = load_audio(voice.audio)
    assert (rate, len(waveform)) == (24_000, 96_000) and soundfile.info(voice.audio).channels == 1
    assert sorted(path.name for path in folder.iterdir()) == ["eve.flac", "eve.txt"]
    with pytest.raises(ValueError, match="has a voice 'eve' already; --force"):
        add_voice(folder, "eve", source, "other words")
    assert find_voice(folder, "eve").transcript == WORDS
    write(folder / "fay.wav", speech())
    (folder / "fay.txt").write_text(WORDS)
    replaced, _ = add_voice(folder, "fay", source, "quite other words now", force=True)
    assert replaced.audio.name == "fay.flac" and replaced.transcript == "quite other words now"
    assert sorted(read_voices(folder)[0]) == ["eve", "fay"]


def test_voices_that_are_refused(tmp_path):
    source = write(tmp_path / "clip.wav", speech())
    for name in ("", "..", "a/b", "../a", "a\\b", ".hidden", "a b", "-x", "n" * 65):
        with pytest.raises(ValueError, match="no name for a voice"):
            add_voice(tmp_path / "voices", name, source, WORDS)
    with pytest.raises(ValueError, match="the transcript is empty"):
        add_voice(tmp_path / "voices", "eve", source, " \n")
    assert not (tmp_path / "voices").exists()


def test_a_folder_that_is_not_as_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_voices(tmp_path / "nowhere")[0]
    (tmp_path / "profiles.json").write_text('{"ada": "feminine"}')
    (tmp_path / ".eve.part.flac").write_bytes(b"")  # what a killed `add` may leave
    assert read_voices(tmp_path)[0] == {"ada": Voice("ada", description="feminine")}
    with pytest.raises(ValueError, match="has a voice 'ada'"):
        add_voice(tmp_path, "ada", write(tmp_path / "x.aiff", speech()), WORDS)
    (tmp_path / "eve.flac").write_bytes(b"")
    for content in (None, " \n"):
        if content is not None:
            (tmp_path / "eve.txt").write_text(content)
        voices, faults = read_voices(tmp_path)
        assert list(voices) == ["ada"] and "eve.txt is missing" in faults["eve"]
        with pytest.raises(ValueError, match="eve.txt is missing"):
            find_voice(tmp_path, "eve")
    (tmp_path / "eve.txt").write_text("Hello.")
    (tmp_path / "profiles.json").write_text('{"ada": "feminine", "eve": "young, from Zürich"}', encoding="utf-8")
    assert read_voices(tmp_path)[0]["eve"] == Voice("eve", tmp_path / "eve.flac", "Hello.", "young, from Zürich")
    with pytest.raises(ValueError, match="no voice 'zoe' in .*; there are: ada, eve"):
        find_voice(tmp_path, "zoe")
    (tmp_path / "eve.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="eve.flac and .*eve.wav; keep one"):
        find_voice(tmp_path, "eve")
    (tmp_path / "eve.wav").unlink()
    (tmp_path / "kim.mp3").write_bytes(b"")
    with pytest.raises(ValueError, match="kim.mp3: convert it"):
        find_voice(tmp_path, "kim")
    for wrong in ('["ada"]', '{"ada": 1}', "{"):
        (tmp_path / "profiles.json").write_text(wrong)
        voices, faults = read_voices(tmp_path)
        assert list(voices) == ["eve"] and "profiles.json" in faults["profiles.json"]
        with pytest.raises(ValueError, match="no voice 'ada'.*profiles.json"):
            find_voice(tmp_path, "ada")


@pytest.mark.parametrize(("recording", "transcript"), [("Eve.WAV", "Eve.TXT"), ("Zoë.Flac", "Zoe\u0308.txt")])
def test_names_and_suffixes_in_any_spelling(tmp_path, recording, transcript):
    (tmp_path / recording).write_bytes(b"")
    (tmp_path / transcript).write_text("Hello.")
    (name,) = read_voices(tmp_path)[0]
    assert find_voice(tmp_path, name.replace("ë", "e\u0308")).transcript == "Hello."


@pytest.mark.parametrize("key", ["Ren\u00e9", "Rene\u0301"])
@pytest.mark.parametrize("file", ["Ren\u00e9", "Rene\u0301"])
def test_a_described_voice_in_any_spelling(tmp_path, key, file):
    (tmp_path / "profiles.json").write_text(json.dumps({key: "masculine"}))
    (tmp_path / "profiles").mkdir()
    (tmp_path / f"profiles/{file}.flac").write_bytes(b"")
    for name in ("Ren\u00e9", "Rene\u0301"):
        voice = find_voice(tmp_path, name)
        assert (voice.name, voice.description) == ("Ren\u00e9", "masculine")
        assert recording_of(tmp_path, voice) == tmp_path / f"profiles/{file}.flac"


ADA, BEN = Voice("ada", description="feminine"), Voice("ben", description="masculine")
EVE = Voice("eve", ROOT / "eve.flac", "Old words.")


@pytest.mark.parametrize(
    ("speakers", "roles", "audios"),
    [
        ({0: ADA, 1: BEN}, ["system", "user"], 0),
        ({3: ADA, 5: BEN}, ["system", "user"], 0),
        ({0: EVE, 1: EVE}, ["user", "assistant", "user", "assistant", "user"], 2),
        ({0: EVE, 1: BEN}, ["system", "user"], 1),
    ],
)
def test_the_form_of_a_dialogue_follows_from_its_speakers(speakers, roles, audios):
    first, second = speakers
    text = f"[SPEAKER{first}] Hi.\n[SPEAKER{second}] Yes?"
    sample = speakers_prompt(speakers, text)
    assert [message.role for message in sample.messages] == roles
    assert len(sample.audios) == audios
    assert sample.messages[-1].content == text
    with pytest.raises(ValueError, match=r"\[7\]"):
        speakers_prompt(speakers, "[SPEAKER7] Hi.")


def test_prompts_that_are_refused():
    with pytest.raises(ValueError, match=r"numbered 0, 1, ..., got \[1, 2\]"):
        speakers_prompt({1: EVE, 2: BEN}, "[SPEAKER1] Hi.")
    for prompt in (ADA.prompt, EVE.prompt, lambda text: speakers_prompt({0: ADA}, text)):
        for text in ("", " ", "a\0"):
            with pytest.raises(ValueError, match="no text|U\\+0000"):
                prompt(text)
    for prompt in (ADA.prompt, EVE.prompt):
        with pytest.raises(ValueError, match="tags are for a dialogue"):
            prompt("[SPEAKER1] Hi.")


def test_a_voice_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    source, folder = write(tmp_path / "a.wav", speech()), tmp_path / "voices"
    add_voice(folder, "eve", source, WORDS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as broken:
        broken.setattr("higgs.data.voices.save_audio", full_disk)
        with pytest.raises(OSError, match="No space left"):
            add_voice(folder, "eve", source, "other words for the same voice", force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match=r"eve.flac is a file of this voice itself.* eve.txt"):
        add_voice(folder, "eve", folder / "eve.flac", WORDS, force=True)
    add_voice(folder, "eve", source, "other words for the same voice", force=True)
    assert find_voice(folder, "eve").transcript == "other words for the same voice"


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_whose_name_is_not_utf_8_takes_no_voice_along(tmp_path):
    (tmp_path / "profiles.json").write_text('{"ada": "feminine"}')
    (tmp_path / os.fsdecode(b"caf\xe9.flac")).write_bytes(b"")
    voices, faults = read_voices(tmp_path)
    assert list(voices) == ["ada"] and "UTF-8" in faults["caf\\xe9"]
    with pytest.raises(ValueError, match="no voice 'eve'"):
        find_voice(tmp_path, "eve")
