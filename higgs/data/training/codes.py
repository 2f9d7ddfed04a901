"""Codes on disk: int16 [K, T] per clip in safetensors, in one file or in a folder of shards:

index.json                 {"num_codebooks": 8, "shards": [{"file": "codes-00000.safetensors", "bytes": 67108912,
                            "sha256": "...", "clips": {"a.wav": 250, ...}}, ...]}: the frames T of each clip
codes-00000.safetensors    many clips: one file per clip would be slow to list, copy and fetch
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from higgs.files import read_text, replacing, sha256
from higgs.validation import Record, parse_json, validate

INDEX = "index.json"
SHARD_BYTES = 64 * 1024**2


class Shard(Record):
    file: str
    bytes: int
    sha256: str
    clips: dict[str, int]


class Index(Record):
    num_codebooks: int | None
    shards: list[Shard]

    @classmethod
    def read(cls, folder: Path) -> "Index":
        path = folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no codes: there is no {INDEX}")
        where = f"{path} is damaged"
        return validate(cls, parse_json(read_text(path), where), where)


def save_codes(path: str | Path, codes: dict[str, Tensor]) -> None:
    """Writes the file whole or not at all. Raises ValueError for codes that are not [K, T] of 0 ... 32767."""
    for name, clip in codes.items():
        _check(name, clip)
    with replacing(path) as partial:
        save_file({k: v.to(torch.int16).cpu().contiguous() for k, v in codes.items()}, partial)


def load_codes(path: str | Path) -> dict[str, Tensor]:
    return {name: clip.long() for name, clip in load_file(path).items()}


def _check(name: str, clip: Tensor) -> None:
    is_codes = not clip.is_floating_point() and clip.dim() == 2 and clip.numel()
    if not is_codes or clip.min() < 0 or clip.max() > 32767:
        raise ValueError(f"codes {name!r} must be [K, T] of 0 ... 32767, with T at least 1")
    if name == "__metadata__":
        raise ValueError("no clip can be called '__metadata__': safetensors reserves that name")


class CodesWriter:
    """A context manager that packs clips into shards of about `shard_bytes`; continues an earlier writer's folder.

    A shard is written whole, then the index: a killed writer loses one shard at most. One writer at a time.
    """

    def __init__(self, folder: str | Path, shard_bytes: int = SHARD_BYTES):
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        exists = (self.folder / INDEX).exists()
        index = Index.read(self.folder) if exists else Index(num_codebooks=None, shards=[])
        self.num_codebooks, self.shards = index.num_codebooks, index.shards
        self.written = {name for shard in self.shards for name in shard.clips}
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self.written or name in self.pending

    def add(self, name: str, codes: Tensor) -> None:
        """[K, T] under a name. Raises ValueError for a duplicate name and for another number of codebooks."""
        _check(name, codes)
        if name in self:
            raise ValueError(f"{self.folder} has codes for {name!r} already")
        self.num_codebooks = self.num_codebooks or len(codes)
        if len(codes) != self.num_codebooks:
            raise ValueError(f"{name!r} has {len(codes)} codebooks, the clips before it {self.num_codebooks}")
        self.pending[name] = codes.to(torch.int16).cpu()
        self.pending_bytes += self.pending[name].nbytes
        if self.pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        path = self.folder / f"codes-{len(self.shards):05d}.safetensors"
        save_codes(path, self.pending)
        clips = {name: clip.shape[1] for name, clip in self.pending.items()}
        self.shards.append(Shard(file=path.name, bytes=path.stat().st_size, sha256=sha256(path), clips=clips))
        index = Index(num_codebooks=self.num_codebooks, shards=self.shards).model_dump()
        with replacing(self.folder / INDEX) as partial:
            partial.write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")
        self.written |= set(self.pending)
        self.pending, self.pending_bytes = {}, 0

    def __enter__(self) -> "CodesWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()


class CodesReader:
    """Codes by name, read on access, of `CodesWriter` or `save_codes`. ValueError names shards missing or cut off."""

    def __init__(self, path: str | Path):
        self.path = self.folder = Path(path)
        self._handles, self._shard_of, self.num_codebooks = {}, {}, None
        self.hashes: dict[str, str] = {}  # of each shard
        self.frames: dict[str, int] = {}  # of each clip
        if self.path.is_file():
            self.folder = self.path.parent
            shard = self._open(self.path.name)
            for name in shard.keys():  # noqa: SIM118
                self.num_codebooks, self.frames[name] = shard.get_slice(name).get_shape()
                self._shard_of[name] = self.path.name
            return
        index, faults = Index.read(self.path), []
        self.num_codebooks = index.num_codebooks
        for shard in index.shards:
            path = self.folder / shard.file
            if not path.is_file():
                faults.append(f"{shard.file}: missing")
            elif (size := path.stat().st_size) != shard.bytes:
                faults.append(f"{shard.file}: {size} bytes where {shard.bytes} were written")
            self.hashes[shard.file] = shard.sha256
            self.frames |= shard.clips
            self._shard_of |= dict.fromkeys(shard.clips, shard.file)
        if faults:
            raise ValueError(f"{self.path}: {'; '.join(faults)}; fetch the shards again")

    def verify(self) -> None:
        """Reads every shard of the folder. Raises ValueError naming those whose bytes have changed."""
        changed = [name for name, digest in self.hashes.items() if sha256(self.folder / name) != digest]
        if changed:
            raise ValueError(f"{self.path}: damaged: {', '.join(changed)}; fetch the shards again")

    def __contains__(self, name: str) -> bool:
        return name in self.frames

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __getitem__(self, name: str) -> Tensor:
        """-> int64 [K, T]. Raises KeyError for an unknown name, ValueError for a shard that cannot be read."""
        if name not in self.frames:
            raise KeyError(f"{self.path} has no codes for {name!r}")
        file, shape = self._shard_of[name], (self.num_codebooks, self.frames[name])
        try:
            codes = self._open(file).get_tensor(name).long()
        except SafetensorError as error:
            raise ValueError(f"{self.folder / file} is damaged: {error}") from error
        if codes.shape != shape:
            raise ValueError(f"{self.folder / file} is damaged: {name!r} is {tuple(codes.shape)}, not {shape}")
        return codes

    def _open(self, file: str) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.folder / file} is damaged: {error}") from error
        return self._handles[file]
