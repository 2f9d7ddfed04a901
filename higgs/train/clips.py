"""Clips to fine-tune on: a manifest of recordings and texts, looked at before use, and their codes."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from higgs.audio import load_audio
from higgs.codec.tokenizer import AudioTokenizer
from higgs.data.training.codes import load_codes, save_codes

MAX_SECONDS = 30.0
SAVE_EVERY = 100  # clips


@dataclass(frozen=True)
class Clip:
    """A recording and what is said in it; `description` asks for its voice, where that is not the new one."""

    name: str
    path: Path
    text: str
    seconds: float
    description: str | None = None


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used, and why."""

    where: str
    what: str


def read_clips(manifest: str | Path) -> tuple[list[Clip], list[Problem]]:
    """JSON Lines with `audio` (relative to the manifest) and `text` -> what can be used, and what cannot.

    Raises ValueError when nothing can be used.
    """
    manifest = Path(manifest)
    clips: list[Clip] = []
    problems: list[Problem] = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            clips.append(read_clip(json.loads(line), manifest.parent, f"{number:05d}"))
        except (ValueError, OSError, TypeError, KeyError) as error:
            problems.append(Problem(f"{manifest}, line {number}", str(error)))
    if not clips:
        told = "; ".join(f"{problem.where}: {problem.what}" for problem in problems[:5])
        raise ValueError(f"{manifest}: no clip can be used. {told}")
    return clips, problems


def read_clip(row: dict, folder: Path, name: str) -> Clip:
    """Raises ValueError or OSError that says what is wrong with the row."""
    if missing := [key for key in ("audio", "text") if not isinstance(row.get(key), str)]:
        raise ValueError(f"lacks {' and '.join(missing)}")
    if not row["text"].strip():
        raise ValueError("the text is empty")
    path = folder / row["audio"]
    waveform, sample_rate = load_audio(path)
    seconds = waveform.shape[-1] / sample_rate
    if seconds > MAX_SECONDS:
        raise ValueError(f"{path}: {seconds:.1f} s, at most {MAX_SECONDS:.0f} s: cut it at pauses")
    return Clip(name, path, row["text"].strip(), seconds, row.get("description"))


def encode_clips(codec: AudioTokenizer, clips: list[Clip], folder: Path) -> list[Tensor]:
    """-> codes [K, T] of each clip. What a run has encoded is in `folder`, and the next one goes on from there."""
    groups = [clips[at : at + SAVE_EVERY] for at in range(0, len(clips), SAVE_EVERY)]
    codes: dict[str, Tensor] = {}
    for group in tqdm(groups, unit=f"{SAVE_EVERY} clips", desc="encode"):
        path = folder / f"{group[0].name}-{group[-1].name}.safetensors"
        if not path.is_file():
            waveforms = [load_audio(clip.path, codec.sample_rate)[0] for clip in group]
            made = codec.encode(waveforms)
            save_codes(path, {c.name: frames for c, frames in zip(group, made, strict=True)})
        codes |= load_codes(path)
    return [codes[clip.name] for clip in clips]
