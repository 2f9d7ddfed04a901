"""What a checkpoint is evaluated on, none of it seen in training, in the formats of `data/`.

A folder with `scripts.jsonl` (the held-out sentences in the in-house voices, clones, dialogues, a long text), `voices/`
(descriptions, and the references to clone) and `recordings/manifest.jsonl`: the sentences by the source TTS, as each
in-house voice and as speakers that are not in the corpus, and human speech. An id begins with its condition.
"""

import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from higgs.audio import probe, save_audio
from higgs.data.recordings import read_recordings
from higgs.files import write_atomically
from training.corpus.texts import HELD_OUT, read_sentences
from training.corpus.voices import DESCRIBED, IN_HOUSE, SAMPLE_RATE, Speaker, speak

# Away from the line that pitch and formants follow in the corpus: every speaker there differs by 5 % or more in one of
# the two. Augmented speakers, whose spectra have other shapes, may come nearer.
UNSEEN = tuple(
    Speaker(f"new-{pitch:.2f}-{formant:.2f}", pitch, formant)
    for pitch, formant in (
        (0.55, 0.90), (0.62, 1.02), (0.83, 1.12), (0.95, 1.18),
        (0.90, 0.76), (1.05, 0.84), (1.35, 0.94), (1.50, 1.10),
    )
)  # fmt: skip
HUMAN = {"human-en": "en-agent-alreadyon", "human-it": "it-followme-sorry"}  # voices to clone, by recording
RECORDINGS = Path("data/recordings/manifest.jsonl")
REFERENCE_TEXT = "The sun was warm, and we sat by the water for an hour."
LONG_SENTENCES = 22  # a minute or more
# First samples only: no chunk is generated again.
CHUNKS = {"per_speaker_context": True, "retries": 0}


@dataclass(frozen=True)
class Sizes:
    """How much of each condition; `seeds` are those of the first in-house voice, `timed` requests measure the speed."""

    sentences: int = 40
    seeds: int = 3
    clone_sentences: int = 8
    dialogues: int = 20
    recordings: int = 20
    timed: int = 6

    @classmethod
    def quick(cls) -> "Sizes":
        return cls(6, 1, 1, 2, 3, 2)


def scripts(texts: list[str], sizes: Sizes) -> list[dict[str, Any]]:
    """Rows as `higgs.data.scripts` reads them."""
    rows: list[dict[str, Any]] = [
        {"id": f"{voice}-{index:02d}", "form": "smart_voice", "voice": voice, "text": text}
        for voice in DESCRIBED
        for index, text in enumerate(texts[: sizes.sentences])
    ]
    rows += [
        {"id": f"clone-{name}-{index}", "form": "voice_clone", "voice": name, "text": text}
        for name in (*(speaker.name for speaker in UNSEEN), *HUMAN)
        for index, text in enumerate(texts[-sizes.clone_sentences :])
    ]
    rng = random.Random(0)
    for index in range(sizes.dialogues):
        pair = rng.sample(list(DESCRIBED), 2)
        lines = [[turn % 2, texts[(4 * index + turn) % len(texts)]] for turn in range(4)]
        voices = dict(zip("01", pair, strict=True))
        rows.append({"id": f"dialogue-{index:02d}", "form": "dialogue", "voices": voices, "lines": lines})
    long = " ".join(texts[: max(4, LONG_SENTENCES * sizes.sentences // 40)])
    rows.append({"id": "long-0", "form": "long_form", "voice": "ada", "text": long})
    return [row | ({"chunks": CHUNKS} if row["form"] in ("dialogue", "long_form") else {}) for row in rows]


def synthesise(tts: Any, path: Path, text: str, speaker: Speaker, seed: int = 0) -> None:
    """The source TTS saying the text, unless the file is there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        audio = torch.from_numpy(speak(tts, text, speaker, 1.0, seed))
        save_audio(path, audio.float() / 32768, SAMPLE_RATE)


def write_voices(folder: Path, tts: Any) -> None:
    """References of the in-house voices (for similarity alone), and of ten voices that training has not had."""
    for speaker in IN_HOUSE:
        synthesise(tts, folder / "profiles" / f"{speaker.name}.flac", REFERENCE_TEXT, speaker)
    for speaker in UNSEEN:
        synthesise(tts, folder / f"{speaker.name}.flac", REFERENCE_TEXT, speaker)
        write_atomically(folder / f"{speaker.name}.txt", REFERENCE_TEXT)
    recordings = {recording.id: recording for recording in read_recordings(RECORDINGS)}
    for name, wanted in HUMAN.items():
        shutil.copyfile(recordings[wanted].path, folder / f"{name}.flac")
        write_atomically(folder / f"{name}.txt", recordings[wanted].text)
    write_atomically(folder / "profiles.json", json.dumps(DESCRIBED))


def write_recordings(folder: Path, speech: list[tuple[str, Speaker, str]], human: int, tts: Any) -> None:
    """`speech` (id, speaker, text) by the source TTS and some `human` recordings -> the audio and `manifest.jsonl`."""
    rows = []
    for index, (name, speaker, text) in enumerate(speech):
        synthesise(tts, folder / f"{name}.flac", text, speaker, seed=10_000 + index)
        rows.append({"id": name, "text": text, "speaker": speaker.name})
    for recording in read_recordings(RECORDINGS, ["en"], human):
        shutil.copyfile(recording.path, folder / f"human-{recording.id}.flac")
        rows.append({"id": f"human-{recording.id}", "text": recording.text, "speaker": recording.speaker})
    for row in rows:
        path = folder / f"{row['id']}.flac"
        row |= {"path": f"{folder.name}/{path.name}", "language": "en", "seconds": probe(path)[2]}
        row["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_lines(folder / "manifest.jsonl", rows)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_held_out(folder: Path, sizes: Sizes, tts: Any) -> None:
    """The whole folder. `tts` is a hibari.Hibari. What it has spoken already is not spoken again."""
    texts = read_sentences(HELD_OUT)
    write_voices(folder / "voices", tts)
    numbered = list(enumerate(texts[: sizes.sentences]))
    speech = [(f"{speaker.name}-{index:02d}", speaker, text) for speaker in IN_HOUSE for index, text in numbered]
    speech += [(f"unseen-{index:02d}", UNSEEN[index % len(UNSEEN)], text) for index, text in numbered]
    write_recordings(folder / "recordings", speech, sizes.recordings, tts)
    write_lines(folder / "scripts.jsonl", scripts(texts, sizes))
