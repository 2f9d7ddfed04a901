"""Codes on disk: int16 in safetensors, one tensor [K, T] for each clip; in one file, or in a folder of shards:

index.json                 {"num_codebooks": 8, "shards": [{"file": "codes-00000.safetensors", "bytes": 67108912,
                            "sha256": "...", "clips": {"a.wav": 250, ...}}, ...]}: the frames T of each clip
codes-00000.safetensors    many small clips together: a file for each would be slow to list, copy and fetch
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from higgs.files import replacing

INDEX = "index.json"
SHARD_BYTES = 64 * 1024**2


def save_codes(path: str | Path, codes: dict[str, Tensor]) -> None:
    """Writes the file whole or not at all. Raises ValueError for codes that are not [K, T] of 0 ... 32767."""
    path = Path(path)
    for name, clip in codes.items():
        _check(name, clip)
    with replacing(path) as partial:
        save_file({k: v.to(torch.int16).cpu().contiguous() for k, v in codes.items()}, partial)


def load_codes(path: str | Path) -> dict[str, Tensor]:
    """-> int64 [K, T] for each clip."""
    return {name: clip.long() for name, clip in load_file(path).items()}


def _check(name: str, clip: Tensor) -> None:
    whole = not clip.is_floating_point() and clip.dim() == 2 and clip.numel()
    if not whole or clip.min() < 0 or clip.max() > 32767:
        raise ValueError(f"codes {name!r} must be [K, T] of 0 ... 32767, with T at least 1")
    if name == "__metadata__":
        raise ValueError("no clip can be called '__metadata__': safetensors keeps that name")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return {"num_codebooks": index["num_codebooks"], "shards": list(index["shards"])}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} holds no codes: there is no {INDEX}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged: {error!r}") from error


class CodesWriter:
    """Packs clips into shards of about `shard_bytes`; goes on where an earlier writer of the same folder stopped.

    A shard is written whole, then the index: a writer that is killed loses the clips of one shard at most, and
    `name in writer` tells which are safe. One writer at a time. As a context manager it flushes at the end.
    """

    def __init__(self, folder: str | Path, shard_bytes: int = SHARD_BYTES):
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        there = (self.folder / INDEX).exists()
        self.index = _read_index(self.folder) if there else {"num_codebooks": None, "shards": []}
        self.written = {name for shard in self.index["shards"] for name in shard["clips"]}
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self.written or name in self.pending

    def add(self, name: str, codes: Tensor) -> None:
        """[K, T] under a name. Raises ValueError for a name that is taken, and for another number of codebooks."""
        _check(name, codes)
        if name in self:
            raise ValueError(f"{self.folder} has codes for {name!r} already")
        wanted = self.index["num_codebooks"] or len(codes)
        if len(codes) != wanted:
            raise ValueError(f"{name!r} has {len(codes)} codebooks, the clips before it {wanted}")
        self.index["num_codebooks"] = wanted
        self.pending[name] = codes.to(torch.int16).cpu()
        self.pending_bytes += 2 * codes.numel()
        if self.pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as a shard."""
        if not self.pending:
            return
        path = self.folder / f"codes-{len(self.index['shards']):05d}.safetensors"
        save_codes(path, self.pending)
        shard = {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
        clips = {name: clip.shape[1] for name, clip in self.pending.items()}
        self.index["shards"].append(shard | {"clips": clips})
        with replacing(self.folder / INDEX) as partial:
            partial.write_text(json.dumps(self.index, ensure_ascii=False), encoding="utf-8")
        self.written |= set(self.pending)
        self.pending, self.pending_bytes = {}, 0

    def __enter__(self) -> "CodesWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()


class CodesReader:
    """Codes by name, from a folder that `CodesWriter` filled or from one file of `save_codes`.

    Opening reads the index and the sizes of the shards; a clip is read when it is asked for. Raises ValueError naming
    every shard that is missing or has another size.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._open: dict[str, Any] = {}
        self.hashes: dict[str, str] = {}
        self.frames: dict[str, int] = {}
        self._shard_of: dict[str, str] = {}
        self.num_codebooks: int | None = None
        if self.path.is_file():
            self.folder = self.path.parent
            self._take_file(self.path.name)
        else:
            self.folder = self.path
            self._take_index(_read_index(self.path))

    def _take_file(self, name: str) -> None:
        shard = self._shard(name)
        for clip in shard.keys():  # noqa: SIM118
            self.num_codebooks, self.frames[clip] = shard.get_slice(clip).get_shape()
            self._shard_of[clip] = name

    def _take_index(self, index: dict[str, Any]) -> None:
        wrong = []
        for shard in index["shards"]:
            path = self.folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "missing" if size is None else f"{size} bytes where {shard['bytes']} were written"
                wrong.append(f"{path.name}: {found}")
            self.hashes[path.name] = shard["sha256"]
            self.frames |= shard["clips"]
            self._shard_of |= dict.fromkeys(shard["clips"], path.name)
        if wrong:
            raise ValueError(f"{self.path}: {'; '.join(wrong)}; fetch the shards again")
        self.num_codebooks = index["num_codebooks"]

    def verify(self) -> None:
        """Reads every shard of the folder. Raises ValueError naming those whose bytes have changed."""
        changed = [n for n, wanted in self.hashes.items() if _sha256(self.folder / n) != wanted]
        if changed:
            raise ValueError(f"{self.path}: damaged: {', '.join(changed)}; fetch the shards again")

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self.frames]

    def __contains__(self, name: str) -> bool:
        return name in self.frames

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __getitem__(self, name: str) -> Tensor:
        """-> int64 [K, T]. Raises KeyError for a name that is not here, ValueError for a shard that cannot be read."""
        if name not in self.frames:
            raise KeyError(f"{self.path} has no codes for {name!r}")
        file = self._shard_of[name]
        try:
            codes = self._shard(file).get_tensor(name).long()
        except SafetensorError as error:
            raise ValueError(f"{self.folder / file} is damaged: {error}") from error
        if codes.shape != (self.num_codebooks, self.frames[name]):
            wanted = (self.num_codebooks, self.frames[name])
            raise ValueError(f"{self.folder / file} is damaged: {name!r} is {tuple(codes.shape)}, not {wanted}")
        return codes

    def _shard(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.folder / file} is damaged: {error}") from error
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to another process: it opens its own."""
        return vars(self) | {"_open": {}}
