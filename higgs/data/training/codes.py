"""Codes on disk: int16 [K, T] per clip in safetensors, in one file or in a folder of shards:

index.json                 {"num_codebooks": 8, "shards": [{"file": "codes-00000.safetensors", "bytes": 67108912,
                            "sha256": "...", "clips": {"a.wav": 250, ...}}, ...]}: the frames T of each clip
codes-00000.safetensors    many clips: one file per clip would be slow to list, copy and fetch
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from higgs.files import read_text, replacing, sha256
from higgs.jobs.parts import CONTENT, Store
from higgs.validation import Record, parse_json, validate

INDEX = "index.json"
SAMPLE = 40  # clips of a corpus that a report decodes and shows
TABLE, FAILED = "index.parquet", "failed.jsonl"
MOST_CLIPS, MOST_SHOWN = 1_000_000, 50  # clips that index.json names (100 MB of memory), failures that a report shows


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


def packed(codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """[K, T] by name -> the same as int16. Raises ValueError for codes that are not [K, T] of 0 ... 32767."""
    for name, clip in codes.items():
        _check(name, clip)
    return {name: clip.to(torch.int16).cpu().contiguous() for name, clip in codes.items()}


def save_codes(path: str | Path, codes: Mapping[str, Tensor]) -> None:
    """Writes the file whole or not at all. Raises ValueError as `packed` does."""
    tensors = packed(codes)
    with replacing(path) as partial:
        save_file(tensors, partial)


def load_codes(path: str | Path) -> dict[str, Tensor]:
    return {name: clip.long() for name, clip in load_file(path).items()}


def _check(name: str, clip: Tensor) -> None:
    is_codes = not clip.is_floating_point() and clip.dim() == 2 and clip.numel()
    if not is_codes or clip.min() < 0 or clip.max() > 32767:
        raise ValueError(f"codes {name!r} must be [K, T] of 0 ... 32767, with T at least 1")
    if name == "__metadata__":
        raise ValueError("no clip can be called '__metadata__': safetensors reserves that name")


def index_folder(store: Store, whole: bool, folder: Path) -> Path:
    """Where the index of a stage goes: to `folder`, or beside the shards where its sample holds all codes (`whole`)."""
    return Path(store.place) if whole and not store.remote else folder


def write_index(store: Store, records: Iterable[Mapping[str, Any]], folder: str | Path) -> dict[str, Any]:
    """The records of tokenized parts, in order -> index.json in `folder`, or index.parquet for over a million clips,
    and failed.jsonl where there are failures. -> counts, and the first failures.

    Raises ValueError where two parts have a clip of one name.
    """
    folder, first, small = Path(folder), [], []
    kinds: Counter[str] = Counter()
    clips = frames = 0
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        failed = table = None
        for record in records:
            clips, frames = clips + record["clips"], frames + record["frames"]
            for failure in record["failed"]:
                kinds[failure["kind"]] += 1
                first += [failure] if len(first) < MOST_SHOWN else []
                failed = failed or stack.enter_context(
                    stack.enter_context(replacing(folder / FAILED)).open("w", encoding="utf-8")
                )
                failed.write(json.dumps(failure, ensure_ascii=False) + "\n")
            if record["clips"]:
                names = ("bytes", "sha256", "clips", "frames")
                if not store.remote:
                    _link(Path(store.place), folder, record["part"] + CONTENT)
                small.append({"file": record["part"] + CONTENT} | {name: record[name] for name in names})
            if clips > MOST_CLIPS and len(small) >= 10_000:
                table = table or stack.enter_context(_table(folder / TABLE))
                small = table(small)
        if clips > MOST_CLIPS:
            (table or stack.enter_context(_table(folder / TABLE)))(small)
    stale = [FAILED] * (not kinds) + [INDEX if clips > MOST_CLIPS else TABLE]
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    if clips <= MOST_CLIPS:
        _write_index(store, small, folder)
    return {"clips": clips, "frames": frames, "failed": dict(kinds), "first": first}


def _link(source: Path, folder: Path, file: str) -> None:
    """The shards of a stage stay when its store is removed. An index may lie in the store itself."""
    if (folder / file).exists() and (folder / file).samefile(source / file):
        return  # to unlink it may be to lose it
    (folder / file).unlink(missing_ok=True)
    try:
        os.link(source / file, folder / file)
    except OSError:  # another disk
        shutil.copyfile(source / file, folder / file)


def _write_index(store: Store, shards: Sequence[dict[str, Any]], folder: Path) -> None:
    headers = store.headers(shard["file"].removesuffix(CONTENT) for shard in shards)
    listed, books, there = [], None, set()
    for shard, header in zip(shards, headers, strict=True):
        named = {name: tensor["shape"] for name, tensor in header.items()}
        books = books or next(iter(named.values()))[0]
        if odd := [name for name, (count, _) in named.items() if count != books or name in there]:
            raise ValueError(f"{shard['file']}: {odd[:3]} are in another part too, or have not {books} codebooks")
        there |= set(named)
        lengths = {name: named[name][1] for name in sorted(named)}
        listed.append({name: shard[name] for name in ("file", "bytes", "sha256")} | {"clips": lengths})
    with replacing(folder / INDEX) as new:
        new.write_text(json.dumps({"num_codebooks": books, "shards": listed}, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _table(path: Path) -> Iterator[Callable[[list[dict[str, Any]]], list]]:
    """A function that appends shards, and returns an empty list for the next ones."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    with replacing(path) as new:
        first = pyarrow.Table.from_pylist([{"file": "", "bytes": 0, "sha256": "", "clips": 0, "frames": 0}])
        with ParquetWriter(new, first.schema) as writer:
            yield lambda shards: writer.write_table(pyarrow.Table.from_pylist(shards, first.schema)) or []


def shards_of(folder: Path) -> Iterator[dict[str, Any]]:
    """`file`, `bytes` and `sha256` of each, of either kind of index."""
    if not (folder / TABLE).is_file():
        yield from (shard.model_dump(exclude={"clips"}) for shard in Index.read(folder).shards)
        return
    from pyarrow.parquet import ParquetFile

    for batch in ParquetFile(folder / TABLE).iter_batches(columns=["file", "bytes", "sha256"]):
        yield from batch.to_pylist()


class CodesReader:
    """Codes by name, read on access, of `save_codes` or of an index. ValueError names shards missing or cut off.

    The shards lie beside the index, or in a `bucket` (`s3://bucket/prefix`): one is fetched when a clip of it is asked
    for, and kept under HIGGS_CACHE by its hash.
    """

    def __init__(self, path: str | Path, bucket: str | None = None):
        self.path = self.folder = Path(path)
        self.store = Store(bucket if bucket and bucket.startswith("s3://") else str(path))
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
        index, faults = self._index(), []
        self.num_codebooks = index.num_codebooks
        for shard in index.shards:
            path = self.folder / shard.file
            if not self.store.remote and not path.is_file():
                faults.append(f"{shard.file}: missing")
            elif not self.store.remote and (size := path.stat().st_size) != shard.bytes:
                faults.append(f"{shard.file}: {size} bytes where {shard.bytes} were written")
            self.hashes[shard.file] = shard.sha256
            self.frames |= shard.clips
            self._shard_of |= dict.fromkeys(shard.clips, shard.file)
        if faults:
            raise ValueError(f"{self.path}: {'; '.join(faults)}; fetch the shards again")

    def _index(self) -> Index:
        """Of index.parquet, the clips are in the shards' own headers."""
        if not (self.path / TABLE).is_file():
            return Index.read(self.path)
        listed = list(shards_of(self.path))
        headers = self.store.headers(shard["file"].removesuffix(CONTENT) for shard in listed)
        shapes = [{name: tensor["shape"] for name, tensor in header.items()} for header in headers]
        clips = [{name: frames for name, (_, frames) in shape.items()} for shape in shapes]
        shards = [Shard(**shard, clips=some) for shard, some in zip(listed, clips, strict=True)]
        return Index(num_codebooks=next(iter(shapes[0].values()))[0], shards=shards)

    def verify(self) -> None:
        """Reads every shard of the folder. Raises ValueError naming those whose bytes have changed."""
        changed = [name for name, digest in self.hashes.items() if sha256(self._file(name)) != digest]
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
                self._handles[file] = safe_open(self._file(file), framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.folder / file} is damaged: {error}") from error
        return self._handles[file]

    def _file(self, file: str) -> Path:
        if not self.store.remote:
            return self.folder / file
        cache = Path(os.environ.get("HIGGS_CACHE", Path.home() / ".cache" / "higgs"))
        path = cache / "codes" / f"{self.hashes[file]}{CONTENT}"
        if not path.is_file():
            (content,) = self.store.read([file])
            if hashlib.sha256(content).hexdigest() != self.hashes[file]:
                raise ValueError(f"{self.store.place}/{file} is not the shard that {self.path} names")
            with replacing(path) as new:
                new.write_bytes(content)
        return path
