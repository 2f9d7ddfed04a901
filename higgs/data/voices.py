"""Voices: prompts in a voice, and recordings that become one. `voice_folder` says what a folder of them holds."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from higgs.audio import Source, load_audio, probe, read_mono, save_audio
from higgs.data import chatml
from higgs.data.chatml import AudioContent, ChatMLSample
from higgs.data.loudness import silence, speech_level
from higgs.data.text.chunks import count_words
from higgs.data.text.folding import check_text
from higgs.data.voice_folder import AUDIO_SUFFIXES, Voice, profiles
from higgs.data.voice_folder import find_voice as find_voice
from higgs.data.voice_folder import read_voices as read_voices
from higgs.files import replacing

SAMPLE_RATE = 24_000  # of the recordings that `add_voice` writes: the codec's
NAME = re.compile(r"[^\W_][\w.-]{0,63}")
SECONDS, GOOD_SECONDS = (1.0, 60.0), (3.0, 30.0)
SAMPLE_RATES = (8_000, 16_000)  # the minimum, and the minimum without a warning
LEVELS_DBFS = (-60.0, -40.0)
CLIPPED_AT, CLIPPED_SHARES = 0.999, (0.05, 0.001)
SILENT_SECONDS, SILENT_SHARE = 0.5, 0.5
WORDS_PER_SECOND, POSSIBLE_WORDS_PER_SECOND = (0.8, 6.0), (0.2, 12.0)
MAX_PEAK = 2.0  # float files reach a little more than 1, integers taken for floats thousands


def speakers_prompt(speakers: dict[int, Voice], text: str, scene: str | None = None) -> ChatMLSample:
    """A conversation that ends in `text`, whose `[SPEAKERn]` tags refer to `speakers`.

    Recordings become earlier turns; descriptions, or a mixture, go into the system message (boson-ai/higgs-audio).
    Raises ValueError for a tag without a speaker, and unless speakers with a recording are numbered 0, 1, ...
    """
    voices = [speakers[number] for number in sorted(speakers)]
    recorded = [voice for voice in voices if voice.audio is not None]
    if not recorded:
        return chatml.dialogue(text, {number: voice.description for number, voice in speakers.items()}, scene)
    if sorted(speakers) != list(range(len(speakers))):
        raise ValueError(f"speakers with a recording are numbered 0, 1, ..., got {sorted(speakers)}")
    if len(recorded) == len(voices):
        pairs = [(voice.transcript, voice.reference) for voice in voices]
        return chatml.voices_clone(text, pairs, scene)
    described = [v.description if v.audio is None else v.reference for v in voices]
    return chatml.voices_in_system(text, described, scene)


def recording_of(folder: str | Path, voice: Voice) -> Path | AudioContent | None:
    """How the voice sounds, to compare with: its own recording, or that of a described one in the folder profiles/."""
    examples = {unicodedata.normalize("NFC", path.stem): path for path in Path(folder).glob("profiles/*.flac")}
    return voice.audio or examples.get(voice.name)


@dataclass(frozen=True)
class Finding:
    """A flaw of a recording: `fatal` if it cannot serve as a reference, else a warning."""

    fatal: bool
    message: str


def check_recording(
    recording: Source, transcript: str | None, decoded: tuple[Tensor, int, int | None] | None = None
) -> list[Finding]:
    """Findings on length, channels, and those of `check_speech`; without a transcript, on the sound alone.

    `decoded` is what `read_mono` gives of the recording, where it was read before.
    """
    try:
        rate, channels, seconds = probe(recording)
        if seconds > SECONDS[1]:  # not decoded: it may be very long
            return [Finding(True, f"{seconds:.2f} s long: {SECONDS[0]:.0f} to {SECONDS[1]:.0f} s are possible")]
        waveform, _, channel = decoded or read_mono(recording)
    except (ValueError, OSError) as error:
        return [Finding(True, str(error))]
    mixed = "they are averaged" if channel is None else f"they cancel each other out, and number {channel + 1} is used"
    possible, good = (f"{low:.0f} to {high:.0f} s" for low, high in (SECONDS, GOOD_SECONDS))
    checks = [
        (GOOD_SECONDS[0] <= seconds <= GOOD_SECONDS[1], SECONDS[0] <= seconds <= SECONDS[1],
         f"{seconds:.2f} s long: {possible} are possible, {good} are good"),
        (channels == 1, True, f"{channels} channels: {mixed}"),
    ]  # fmt: skip
    return _findings(checks) + check_speech(waveform, rate, transcript)


def check_speech(waveform: Tensor, rate: int, transcript: str | None) -> list[Finding]:
    """[L] at its own sample rate -> findings on that, on level, clipping and silence, and on words per second."""
    level, seconds, peak = speech_level(waveform, rate), len(waveform) / rate, waveform.abs().max().item()
    clipped = (waveform.abs() >= CLIPPED_AT).double().mean().item() if peak <= MAX_PEAK else 0.0
    before, after, silent = silence(waveform, rate)
    checks = [
        (rate >= SAMPLE_RATES[1], rate >= SAMPLE_RATES[0],
         f"{rate} Hz: {SAMPLE_RATES[1]} Hz or more preserve the voice"),
        (peak <= MAX_PEAK, False, f"samples reach {peak:.0f}, not about 1: divide 16-bit integers by 32768"),
        (level >= LEVELS_DBFS[1], level >= LEVELS_DBFS[0],
         f"speech at {level:.0f} dBFS: {LEVELS_DBFS[1]:.0f} or more is wanted"),
        (clipped <= CLIPPED_SHARES[1], clipped <= CLIPPED_SHARES[0],
         f"{clipped:.1%} of the samples are clipped: record it at a lower level"),
        (before <= SILENT_SECONDS, True, f"{before:.1f} s of silence before the speech: leave {SILENT_SECONDS} s"),
        (after <= SILENT_SECONDS, True, f"{after:.1f} s of silence after the speech: leave {SILENT_SECONDS} s"),
        (silent <= SILENT_SHARE, True, f"{silent:.0%} of it is silent: {SILENT_SHARE:.0%} or less is wanted"),
    ]  # fmt: skip
    if transcript is not None:
        speaking_rate = count_words(transcript) / seconds
        good, possible = (low <= speaking_rate <= high for low, high in (WORDS_PER_SECOND, POSSIBLE_WORDS_PER_SECOND))
        doubt = "does the transcript match the recording?"
        checks.append((good, possible, f"{speaking_rate:.1f} words a second by its transcript: {doubt}"))
    return _findings(checks)


def usable(findings: Sequence[Finding], what: str) -> list[str]:
    """-> warnings. ValueError for what cannot serve as a reference."""
    if fatal := [finding.message for finding in findings if finding.fatal]:
        raise ValueError(f"{what} cannot serve as a reference: {'; '.join(fatal)}")
    return [finding.message for finding in findings]


def _findings(checks: Sequence[tuple[bool, bool, str]]) -> list[Finding]:
    """(no finding, usable nevertheless, message) of each check -> the findings."""
    return [Finding(not usable, message) for good, usable, message in checks if not good]


def add_voice(
    folder: str | Path, name: str, source: str | Path, transcript: str, force: bool = False
) -> tuple[Voice, list[Finding]]:
    """A recording -> `NAME.flac` (mono, 24 kHz) and `NAME.txt` in the folder; its voice, and warnings.

    Raises ValueError, and writes nothing, for an invalid name, an existing voice without `force`, and fatal findings.
    """
    folder = Path(folder)
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a voice: letters, digits, '-', '_' and '.', and no path")
    if not (words := transcript.strip()):
        raise ValueError(f"the transcript is empty: it must be the text that is spoken in {source}")
    check_text(words)
    description = profiles(folder).get(name)
    files, suffixes = [], (*AUDIO_SUFFIXES, ".txt")
    if folder.is_dir():
        same = unicodedata.normalize("NFC", name)
        files = [path for path in folder.iterdir() if unicodedata.normalize("NFC", path.stem) == same]
    paths = [path for path in files if path.suffix.lower() in suffixes]
    if not force and (description is not None or paths):
        raise ValueError(f"{folder} has a voice {name!r} already; --force replaces it")
    if any(Path(source).resolve() == path.resolve() for path in paths):
        raise ValueError(f"{source} is a file of this voice itself: write {name}.txt next to it, or move it first")
    findings = check_recording(source, words)
    usable(findings, str(source))
    waveform, _ = load_audio(source, SAMPLE_RATE)
    folder.mkdir(parents=True, exist_ok=True)
    # Both are written before either is replaced: a full disk leaves the existing voice intact.
    with replacing(folder / f"{name}.txt") as partial:
        partial.write_text(f"{words}\n", encoding="utf-8")
        save_audio(folder / f"{name}.flac", waveform, SAMPLE_RATE)
    for path in paths:  # of another type or spelling: one recording and one transcript are left
        if path.name not in (f"{name}.flac", f"{name}.txt"):
            path.unlink()
    return Voice(name, folder / f"{name}.flac", words, description), findings
