"""Voices: a folder of reference recordings and descriptions.

`NAME.flac` (or `.wav`) with its transcript in `NAME.txt` is a voice to imitate. `profiles.json` maps names to
descriptions ("feminine"), for voices that the model knows by their description; a recording may have one too.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from higgs.audio import load_audio, probe, save_audio
from higgs.data.chatml import (
    AudioContent,
    ChatMLSample,
    dialogue,
    smart_voice,
    voice_clone,
    voices_clone,
    voices_in_system,
)
from higgs.data.loudness import silence, speech_level
from higgs.data.text.checks import check_text
from higgs.data.text.chunks import count_words
from higgs.files import read_text, replacing
from higgs.validation import parse_json, validate

AUDIO_SUFFIXES = (".flac", ".wav")
SAMPLE_RATE = 24_000  # of the recordings that `add_voice` writes: the codec's
NAME = re.compile(r"[^\W_][\w.-]{0,63}")
SECONDS, GOOD_SECONDS = (1.0, 60.0), (3.0, 30.0)
SAMPLE_RATES = (8_000, 16_000)  # the least, and the least that is not warned of
LEVELS_DBFS = (-60.0, -40.0)
CLIPPED_AT, CLIPPED_SHARES = 0.999, (0.05, 0.001)
SILENT_SECONDS, SILENT_SHARE = 0.5, 0.5
WORDS_PER_SECOND = (0.8, 6.0)


@dataclass(frozen=True)
class Voice:
    """A name, and a recording with its transcript, or a description, or both."""

    name: str
    audio: Path | None = None
    transcript: str | None = None
    description: str | None = None

    def prompt(self, text: str, scene: str | None = None) -> ChatMLSample:
        """A conversation that ends in `text`, to be spoken in this voice."""
        if self.audio is not None:
            return voice_clone(text, self.transcript, AudioContent(str(self.audio)), scene)
        return smart_voice(text, scene, self.description)


def speakers_prompt(speakers: dict[int, Voice], text: str, scene: str | None = None) -> ChatMLSample:
    """A conversation that ends in `text`, whose `[SPEAKERn]` tags name the voices.

    Recordings are earlier turns, descriptions go into the system message, and both together there, as in the reference
    implementation (boson-ai/higgs-audio). Raises ValueError for a tag without a voice, and for speakers with a
    recording that are not numbered 0, 1, ...
    """
    voices = [speakers[number] for number in sorted(speakers)]
    recorded = [voice for voice in voices if voice.audio is not None]
    if not recorded:
        return dialogue(text, {number: speakers[number].description for number in speakers}, scene)
    if sorted(speakers) != list(range(len(speakers))):
        raise ValueError(f"speakers with a recording are numbered 0, 1, ..., got {sorted(speakers)}")
    if len(recorded) == len(voices):
        pairs = [(voice.transcript, AudioContent(str(voice.audio))) for voice in voices]
        return voices_clone(text, pairs, scene)
    described = [v.description if v.audio is None else AudioContent(str(v.audio)) for v in voices]
    return voices_in_system(text, described, scene)


def list_voices(folder: str | Path) -> dict[str, Voice]:
    """-> every voice of the folder by name, sorted.

    Raises ValueError for a recording without its transcript or with two files, and for profiles that are not names
    with descriptions.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"voice folder {folder} does not exist; name one with --voices. The repository's own is data/voices in its "
            "root, and `dvc pull data.dvc` fetches it"
        )
    descriptions, voices = _profiles(folder), {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in AUDIO_SUFFIXES and p.name[0] != "."):
        name, transcript = path.stem, path.with_suffix(".txt")
        if name in voices:
            raise ValueError(f"voice {name}: {voices[name].audio} and {path}; keep one of them")
        if not transcript.is_file() or not (said := read_text(transcript).strip()):
            raise ValueError(
                f"voice {name}: the transcript {transcript} is missing; write into it what is said in {path.name}"
            )
        voices[name] = Voice(name, path, said, descriptions.pop(name, None))
    for name, description in descriptions.items():
        voices[name] = Voice(name, description=description)
    return dict(sorted(voices.items()))


def _profiles(folder: Path) -> dict[str, str]:
    path = folder / "profiles.json"
    if not path.is_file():
        return {}
    return validate(dict[str, str], parse_json(read_text(path), str(path)), str(path))


def find_voice(folder: str | Path, name: str) -> Voice:
    """Raises ValueError that lists the voices when there is none of that name."""
    voices = list_voices(folder)
    if name not in voices:
        raise ValueError(f"no voice {name!r} in {folder}; there are: {', '.join(voices) or 'none'}")
    return voices[name]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a recording: `fatal` where it cannot serve as a reference, else what would make it better."""

    fatal: bool
    message: str


def check_recording(path: str | Path, transcript: str) -> list[Finding]:
    """Length, sample rate, channels, level, clipping, silence, and whether so much text fits into it -> findings."""
    try:
        (rate, channels, seconds), (waveform, _) = probe(path), load_audio(path)
    except (ValueError, OSError) as error:
        return [Finding(True, str(error))]
    level = speech_level(waveform, rate)
    clipped = (waveform.abs() >= CLIPPED_AT).double().mean().item()
    before, behind, silent = silence(waveform, rate)
    pace = count_words(transcript) / seconds
    possible, good = (f"{low:.0f} to {high:.0f} s" for low, high in (SECONDS, GOOD_SECONDS))
    # (it is as wanted, it can be used all the same, what to say)
    checks = [
        (_within(seconds, GOOD_SECONDS), _within(seconds, SECONDS),
         f"{seconds:.2f} s long: {possible} are possible, {good} are good"),
        (rate >= SAMPLE_RATES[1], rate >= SAMPLE_RATES[0],
         f"{rate} Hz: {SAMPLE_RATES[1]} Hz or more keep what makes a voice"),
        (channels == 1, True, f"{channels} channels: they are averaged"),
        (level >= LEVELS_DBFS[1], level >= LEVELS_DBFS[0],
         f"speech at {level:.0f} dBFS: {LEVELS_DBFS[1]:.0f} or more is wanted"),
        (clipped <= CLIPPED_SHARES[1], clipped <= CLIPPED_SHARES[0],
         f"{clipped:.1%} of the samples are clipped: record it at a lower level"),
        (before <= SILENT_SECONDS, True, f"{before:.1f} s of silence before the speech: leave {SILENT_SECONDS} s"),
        (behind <= SILENT_SECONDS, True, f"{behind:.1f} s of silence behind the speech: leave {SILENT_SECONDS} s"),
        (silent <= SILENT_SHARE, True, f"{silent:.0%} of it is silent: {SILENT_SHARE:.0%} or less is wanted"),
        (_within(pace, WORDS_PER_SECOND), pace > 0,
         f"{pace:.1f} words a second by its transcript: is that what is said, and all of it?"),
    ]  # fmt: skip
    return [Finding(not usable, message) for wanted, usable, message in checks if not wanted]


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def add_voice(
    folder: str | Path,
    name: str,
    source: str | Path,
    transcript: str,
    force: bool = False,
) -> tuple[Voice, list[Finding]]:
    """A recording -> `NAME.flac` (mono, 24 kHz) and `NAME.txt` in the folder; its voice, and what could be better.

    Raises ValueError for a name that is no file's name, an existing voice without `force`, and a recording or
    transcript that `check_recording` finds unfit; nothing is written then.
    """
    folder = Path(folder)
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a voice: letters, figures, '-', '_' and '.', and no path")
    if not (said := transcript.strip()):
        raise ValueError(f"the transcript is empty; write what is said in {source}")
    check_text(said)
    described = _profiles(folder).get(name)
    taken = [folder / f"{name}{suffix}" for suffix in (*AUDIO_SUFFIXES, ".txt")]
    if not force and (described is not None or any(path.exists() for path in taken)):
        raise ValueError(f"{folder} has a voice {name!r} already; --force replaces it")
    if Path(source).resolve() in [path.resolve() for path in taken]:
        raise ValueError(
            f"{source} is a file of this voice itself, and would be lost: write {name}.txt beside it, or move it first"
        )
    findings = check_recording(source, said)
    if fatal := [finding.message for finding in findings if finding.fatal]:
        raise ValueError(f"{source} cannot serve as a reference: {'; '.join(fatal)}")
    waveform, _ = load_audio(source, SAMPLE_RATE)
    folder.mkdir(parents=True, exist_ok=True)
    # Both are written before one is replaced: a full disk leaves the voice that was there, not halves of two.
    with replacing(folder / f"{name}.txt") as partial:
        partial.write_text(f"{said}\n", encoding="utf-8")
        save_audio(folder / f"{name}.flac", waveform, SAMPLE_RATE)
    (folder / f"{name}.wav").unlink(missing_ok=True)
    return Voice(name, folder / f"{name}.flac", said, described), findings
