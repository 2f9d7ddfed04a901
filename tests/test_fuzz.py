"""Damaged files at random: each is read right, or refused with an error of this package that names it.

The draws are seeded: a failure names its number, and comes again. `pytest -m fuzz` draws 2000 of each kind.
"""

import copy
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from test_checkpoints import INDEX, PICKLE, SINGLE, load
from test_checkpoints import write as write_checkpoint

from higgs import AudioTokenizer
from higgs.audio import load_audio
from higgs.checkpoint.tensors import CheckpointError
from higgs.config import ConfigError
from higgs.data.scripts import read_scripts
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.voices import find_voice
from higgs.serve.generation_config import GenerationConfig
from higgs.validation import ParamsError
from higgs.workflow.params import read_params
from training.nano.byte_tokenizer import byte_tokenizer

CASES, MANY = 60, 2000
SECONDS_EACH = 20.0  # of one case, on a loaded machine: longer is a hang
RATE = 24_000
CLEAR = (ValueError, FileNotFoundError)
EXTREMES = [
    None, True, False, 0, -1, 1, 3, 7, 2**31, 10**9, 10**30, -0.5, 0.0, 1e-30, 1e30, 0.1, "", "x", "8", "\ud800", [],
    {}, [1], ["a", None], {"a": 1}, [[[]]], "é" * 1000,
]  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at, size = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 50, 1000])
        if rng.random() < 0.3:
            at = rng.randrange(min(len(data), 200))  # headers are short, and matter
        how = rng.choice(["bit", "bit", "bytes", "zeros", "ones", "cut", "drop", "insert", "repeat"])
        if how == "bit":
            data[at] ^= 1 << rng.randrange(8)
        elif how in ("bytes", "zeros", "ones"):
            filled = {"bytes": rng.randbytes(size), "zeros": bytes(size), "ones": b"\xff" * size}[how]
            data[at : at + size] = filled[: len(data) - at]
        elif how == "cut" and at:
            del data[at:]
        elif how == "drop" and at and at + size < len(data):
            del data[at : at + size]
        elif how == "insert":
            data[at:at] = rng.randbytes(size)
        else:
            data[at:at] = data[at : at + size]
    return bytes(data)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Another value, a missing or a doubled key somewhere; or nesting without end, or bytes as above."""
    if (how := rng.random()) < 0.15:
        return mutate_bytes(content, rng)
    if how < 0.2:
        return rng.choice([b"[" * 200_000, b'{"a":' * 100_000, b"1" * 5000, b"\xef\xbb\xbf" + content, b"null", b""])
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 3])):
        inner, parent, key = value, None, None
        while isinstance(inner, dict | list) and inner and (parent is None or rng.random() < 0.8):
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            parent, key = inner, rng.choice(keys)
            inner = parent[key]
        if parent is None:
            break
        if rng.random() < 0.2:
            del parent[key]
        elif isinstance(inner, int | float) and rng.random() < 0.4:
            parent[key] = rng.choice([-inner, inner + 1, inner * 2, inner / 3, inner * 10**6, str(inner), [inner]])
        else:
            parent[key] = copy.deepcopy(rng.choice(EXTREMES))
    return json.dumps(value).encode()


def mutate_header(content: bytes, rng: random.Random) -> bytes:
    """Of a safetensors file: its JSON, or the length of it, or any byte of them."""
    size = int.from_bytes(content[:8], "little")
    head, rest = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.2:
        length = rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1])
        return length.to_bytes(8, "little") + head + rest
    if rng.random() < 0.3:
        return mutate_bytes(content[: 8 + size], rng) + rest
    head = mutate_json(head, rng)
    return len(head).to_bytes(8, "little") + head + rest


@dataclass(frozen=True)
class Target:
    """A file in a folder, how it is damaged, what reads the folder, and what is wrong with a value that was read."""

    make: Callable[[Path], Path]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], Any]
    fault: Callable[[Any, Any, bytes, bytes], str | None] = lambda value, right, content, before: None
    cost: int = 1  # that many times fewer are drawn


def audio(suffix: str, **how: Any) -> Target:
    def make(folder: Path) -> Path:
        noise = np.random.default_rng(0).standard_normal(RATE) * 0.1
        soundfile.write(folder / f"clip.{suffix}", noise, RATE, **how)
        return folder / f"clip.{suffix}"

    def fault(value: Any, right: Any, content: bytes, before: bytes) -> str | None:
        (waveform, rate), (expected, _) = value, right
        if not torch.isfinite(waveform).all() or len(waveform) == 0:
            return "no finite samples"
        if suffix in ("flac", "ogg") and content[:42] == before[:42] and not torch.equal(waveform, expected):
            return f"{len(waveform)} other samples, without a word"
        # Sizes in the header of a WAV file, and gaps of the encoder's in that of an MP3 file, have no checksum.
        head = {"mp3": 300, "wav": 60, "aiff": 60}.get(suffix, 42)
        same = content[:head] == before[:head] and len(content) == len(before)
        return f"{len(waveform)} samples at {rate} Hz" if same and len(waveform) != len(expected) else None

    return Target(make, mutate_bytes, lambda folder: load_audio(folder / f"clip.{suffix}"), fault)


def checkpoint(kind: str, name: str, mutate: Callable[[bytes, random.Random], bytes], cost: int = 1) -> Target:
    def read(folder: Path) -> Any:
        part = load(folder / kind)
        if isinstance(part, AudioTokenizer):  # what is loaded can be run
            part.decode(part.encode(torch.zeros(3000), part.sample_rate, pad_to_hop=True))
        return part

    return Target(lambda folder: write_checkpoint(kind, folder / kind) / name, mutate, read, cost=cost)


def tokenizer(name: str, mutate: Callable[[bytes, random.Random], bytes]) -> Target:
    def make(folder: Path) -> Path:
        byte_tokenizer(("\ue000", "\ue001")).save(str(folder / "tokenizer.json"))
        (folder / "lexicon.json").write_text(json.dumps({"phonemes": "tæ", "words": {"at": "æt"}}))
        return folder / name

    return Target(make, mutate, lambda folder: TextTokenizer.from_pretrained(folder).encode("At seven, a cat."))


def text(name: str, content: str, read: Callable[[Path], Any]) -> Target:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return Target(make, mutate_bytes if name.endswith("yaml") else mutate_json, read)


VOICES = ROOT / "data" / "voices"
SCRIPT = '{"id": "a", "form": "smart_voice", "text": "Hello, world.", "voice": "ada", "max_new_tokens": 9}'
TARGETS = {
    "wav": audio("wav"), "flac": audio("flac"), "mp3": audio("mp3"), "vorbis": audio("ogg"),
    "opus": audio("ogg", subtype="OPUS"), "aiff": audio("aiff"), "caf": audio("caf"),
    "gsm": audio("wav", subtype="GSM610"),
    "model config": checkpoint("model-transformers", "config.json", mutate_json),
    "original model config": checkpoint("model-original", "config.json", mutate_json),
    "codec config": checkpoint("codec-transformers", "config.json", mutate_json, 4),
    "original codec config": checkpoint("codec-original", "config.json", mutate_json, 10),
    "index": checkpoint("model-original", INDEX, mutate_json),
    "safetensors": checkpoint("model-transformers", SINGLE, mutate_header),
    "pickle": checkpoint("codec-original", PICKLE, mutate_bytes, 10),
    "tokenizer": tokenizer("tokenizer.json", mutate_json),
    "lexicon": tokenizer("lexicon.json", mutate_json),
    "generation config": text(
        "generation_config.json", '{"temperature": 0.5, "top_k": 20, "chunking": {"max_words": 9}, "do_sample": true}',
        lambda folder: GenerationConfig.from_pretrained(folder),
    ),
    "profiles": text("profiles.json", '{"ada": "feminine", "ben": "old"}', lambda folder: find_voice(folder, "ada")),
    "scripts": text("s.jsonl", SCRIPT, lambda folder: read_scripts(folder / "s.jsonl", VOICES)),
    "params": text("params.yaml", "seed: 1\nsome:\n  list: [1, 2]\n", lambda f: read_params(f / "params.yaml")),
}  # fmt: skip


def check(name: str, cases: range, folder: Path) -> dict[str, int]:
    """-> how many were read, and how many refused."""
    target, counts = TARGETS[name], {"read": 0, "refused": 0}
    path = target.make(folder)
    before, right = path.read_bytes(), target.read(folder)
    for case in cases:
        content = target.mutate(before, random.Random(f"{name} {case}"))
        path.unlink()  # not written over: a tensor may be mapped from it
        path.write_bytes(content)
        start = time.monotonic()
        try:
            value = target.read(folder)
        except CLEAR as error:
            counts["refused"] += 1
            assert str(path.parent) in str(error), f"case {case}: without the file's name: {error!r}"
            own = (CheckpointError, ConfigError, ParamsError, FileNotFoundError)
            assert isinstance(error, own) or type(error) is ValueError, f"case {case}: {error!r}"
        except Exception as error:
            raise AssertionError(f"case {case}: {error!r}") from error
        else:
            counts["read"] += 1
            fault = target.fault(value, right, content, before)
            assert fault is None, f"case {case}: {fault}"
        assert time.monotonic() - start < SECONDS_EACH, f"case {case}: too long"
    return counts


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(tmp_path, name):
    counts = check(name, range(CASES // TARGETS[name].cost), tmp_path)
    assert counts["refused"] > 0, "the draw damages files"


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_files(tmp_path, name):
    print(name, check(name, range(MANY // TARGETS[name].cost), tmp_path))
