"""A job as parts, made by one process or by many. A part is named by all that its result depends on; its result lies
under that name in a folder or in a bucket, and what has a record there is done.

So a job that was killed goes on by a listing, wherever it goes on, and a part that is made twice is written twice with
the same bytes.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from safetensors.torch import save
from torch import Tensor

from higgs.files import check_place, sha256, write_atomically
from higgs.jobs.cluster import Cluster, check_device, disconnect, make_on_ray
from higgs.workers import WORK, Workers
from higgs.workflow.outputs import output_path, progress

T = TypeVar("T")
FORMAT = 1  # of results: in the name of every part
CONTENT, RECORD, SHARED, MARK = ".safetensors", ".json", ".shared", "format.txt"
AT_ONCE = 256  # objects of a bucket that are asked for together
HEADER = 1 << 16  # bytes in which the header of most safetensors files ends


@dataclass(frozen=True)
class Part:
    """What a worker gets: items, and the files that they name (path -> SHA-256)."""

    name: str
    items: Sequence[Any]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a worker makes of a part. One that is not `final` is used once, and made again by the next run."""

    record: dict[str, Any]
    tensors: dict[str, Tensor] | None = None
    final: bool = True


Make = Callable[[], Callable[[Sequence[Any]], Result]]  # what a worker loads: a function of a part's items


def s3(url: str) -> contextlib.AbstractContextManager[Any]:
    """The file system of a bucket, for many objects."""
    from higgs.checkpoint.s3 import patient

    return patient(url)


def digests(paths: Iterable[str | Path | None]) -> dict[str, str]:
    """Path -> SHA-256 of the files that are there."""
    return {str(path): sha256(path) for path in sorted({*paths} - {None}) if Path(path).is_file()}


def make_part(job: Any, items: Sequence[Any], files: Mapping[str, str] | None = None) -> Part:
    """The part's name is a hash over `job` (all settings and weights), the items, and the `digests` of files."""
    content = json.dumps([FORMAT, job, items, files or {}], sort_keys=True, default=_plain)
    return Part(hashlib.sha256(content.encode()).hexdigest()[:32], items, files or {})


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return [type(value).__name__, dict(value)]
    if is_dataclass(value):
        return [type(value).__name__, {f.name: getattr(value, f.name) for f in fields(value)}]
    raise TypeError(f"{type(value).__name__} cannot be part of the name of a result")


def cut(items: Iterable[T], target: float, key: Callable[[T], str], weight: Callable[[T], float]) -> Iterator[list[T]]:
    """Items -> groups of about `target`, at least half and about twice that.

    A group ends where an item's own hash says so: one that is added or left out changes the groups around it alone.
    """
    group: list[T] = []
    total = 0.0
    for item in items:
        group.append(item)
        total += (heavy := weight(item))
        chance = int.from_bytes(hashlib.sha256(key(item).encode()).digest()[:8]) / 2**64
        if total >= 2 * target or (total >= target / 2 and chance < 2 * heavy / target):
            yield group
            group, total = [], 0.0
    if group:
        yield group


@dataclass(frozen=True)
class Store:
    """Results in a folder or below `s3://bucket/prefix`: NAME.safetensors, where there are tensors, then NAME.json.

    Each is written whole; the second says that the part is done. What workers elsewhere have to read lies below
    `files/` under the first half of its SHA-256.
    """

    place: str

    @classmethod
    def of_stage(cls, stage: str) -> "Store":
        """`work` of params.yaml, or a folder that `clear` removes when the stage is done; another while exploring."""
        return cls(os.environ.get(WORK, "").rstrip("/") or str(output_path(f"results/partial/{stage}")))

    @property
    def remote(self) -> bool:
        return self.place.startswith("s3://")

    def check(self) -> None:
        """Before work: raises OSError, within seconds, unless results can be written here."""
        if not self.remote:
            return check_place(f"{self.place}/{MARK}")
        from higgs.checkpoint.s3 import connect

        with connect(self.place) as files:
            files.pipe_file(f"{self.place}/{MARK}", f"{FORMAT}\n".encode())

    def names(self, suffix: str = RECORD) -> set[str]:
        """Of the parts with such a file. An index, too, may lie beside them."""
        return {file[:32] for file, _ in self._files() if file[32:] == suffix}

    def done(self, names: Iterable[str]) -> set[str]:
        """Those of `names` with a record and the content that it counts: of a folder, files are lost or cut off."""
        there, sizes = set(), {}
        for file, size in self._files():
            if file[32:] == RECORD:
                there.add(file[:32])
            elif file[32:] == CONTENT:
                sizes[file[:32]] = size
        there.intersection_update(names)
        doubtful = [name for name in there if not (self.remote and name in sizes)]  # objects of a bucket are whole
        records = zip(doubtful, self.records(doubtful), strict=True)
        return there.difference(name for name, record in records if sizes.get(name, 0) != record["bytes"])

    def _files(self) -> Iterator[tuple[str, int]]:
        """Names and sizes of the parts' files."""
        named = re.compile(r"[0-9a-f]{32}\.\w+").fullmatch
        if self.remote:
            from higgs.checkpoint.s3 import list_keys

            with s3(self.place) as files:
                yield from ((key, size) for key, size, _ in list_keys(files, self.place) if named(key))
        else:
            with contextlib.suppress(FileNotFoundError), os.scandir(self.place) as entries:
                yield from ((entry.name, entry.stat().st_size) for entry in entries if named(entry.name))

    def write(self, name: str, content: bytes | None, record: Mapping[str, Any] | None) -> None:
        """The content, and then the record: the order makes a part that was killed between the two one to do."""
        if content is not None:
            self._write(name + CONTENT, content)
        if record is not None:
            self._write(name + RECORD, json.dumps(record, ensure_ascii=False).encode())

    def _write(self, file: str, content: bytes) -> None:
        if self.remote:
            with s3(self.place) as files:
                files.pipe_file(f"{self.place}/{file}", content)
            return
        write_atomically(Path(self.place, file), content)

    def read(self, files: Sequence[str], end: int | None = None) -> list[bytes]:
        """The first `end` bytes of each. Raises FileNotFoundError."""
        if not self.remote:
            return [_head(Path(self.place, file), end) for file in files]
        with s3(self.place) as bucket:
            paths = [f"{self.place}/{file}" for file in files]
            return bucket.cat_ranges(paths, None if end is None else 0, end, on_error="raise")

    def records(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        for some in _batches(names):
            yield from map(json.loads, self.read([name + RECORD for name in some]))

    def headers(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Of the tensors: name -> `{"shape": ..., ...}`."""
        for some in _batches(names):
            for name, head in zip(some, self.read([name + CONTENT for name in some], HEADER), strict=True):
                end = 8 + int.from_bytes(head[:8], "little")
                (head,) = self.read([name + CONTENT], end) if end > len(head) else (head,)
                yield {k: v for k, v in json.loads(head[8:end]).items() if k != "__metadata__"}

    def share(self, parts: Iterable[Part]) -> None:
        """Puts the files that parts name where `fetch` finds them on any machine."""
        there = Store(f"{self.place}/files").names(SHARED)
        for path, digest in {pair for part in parts for pair in part.files.items()}:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{path}: workers elsewhere read files below the working directory only")
            if digest[:32] not in there:
                self._write(f"files/{digest[:32]}{SHARED}", _checked(Path(path).read_bytes(), digest, path))

    def fetch(self, part: Part) -> None:
        """Puts the files of a part, where they are not, below the working directory."""
        missing = {path: digest for path, digest in part.files.items() if not Path(path).is_file()}
        contents = self.read([f"files/{digest[:32]}{SHARED}" for digest in missing.values()]) if missing else []
        for path, content in zip(missing, contents, strict=True):
            write_atomically(path, _checked(content, part.files[path], path))

    def clear(self) -> None:
        """Nothing in a bucket: other runs find there what this one has made."""
        if not self.remote:
            shutil.rmtree(self.place, ignore_errors=True)

    def delete(self, names: Iterable[str]) -> None:
        """Records first: what has a record has its content."""
        for file in [name + suffix for suffix in (RECORD, CONTENT) for name in names]:
            if self.remote:
                with s3(self.place) as files:
                    files.rm_file(f"{self.place}/{file}")
            else:
                Path(self.place, file).unlink(missing_ok=True)


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    names = iter(names)
    while some := list(islice(names, AT_ONCE)):
        yield some


def _checked(content: bytes, digest: str, path: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != digest:
        raise OSError(f"{path} has changed since the job began: run it again")
    return content


def _head(path: Path, end: int | None) -> bytes:
    with path.open("rb") as file:
        return file.read(end)


class LostParts(RuntimeError):
    """Parts whose workers died again and again. All others are done; the next run tries these again."""


def worker(make: Make, store: Store, device: str) -> Callable[[Part], dict[str, Any] | None]:
    """What a worker does with a part: makes and writes it. -> the record of a result that is not final."""
    check_device(device)
    function = make()

    def work(part: Part) -> dict[str, Any] | None:
        result = function(part.items)
        content = save(result.tensors) if result.tensors else b""
        record = {"part": part.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        record |= result.record
        store.write(part.name, content or None, record if result.final else None)
        return None if result.final else record

    return work


class Job:
    """`make` and a store for one list of parts after another. Processes live until `close`."""

    def __init__(self, make: Make, store: Store, cluster: Cluster | None = None) -> None:
        self.store, self.cluster = store, cluster or Cluster.of_environment()
        self._load = partial(worker, make, store, self.cluster.device)
        self._workers = Workers(self._load, self.cluster.processes)

    def run(self, parts: Iterable[Part], label: str | None = "parts") -> Iterator[dict[str, Any]]:
        """-> the parts' records, in order; no bar without a label. Raises LostParts after all the others are done."""
        self.store.check()
        parts = list(parts)
        done = self.store.done(part.name for part in parts)
        todo = list({part.name: part for part in parts if part.name not in done}.values())
        if self.cluster.address is None:
            made = ((part, record, None) for part, record in zip(todo, self._workers.map(todo), strict=True))
        else:
            made = make_on_ray(self._load, todo, self.store, self.cluster)
        once: dict[str, dict[str, Any]] = {}
        lost: list[str] = []
        if todo and label:
            made = progress(made, label, total=len(todo))
        for part, record, problem in made:
            if record is not None:
                once[part.name] = record
            if problem is not None:
                lost.append(f"{part.name}, {len(part.items)} items from {part.items[0]!r:.120} on: {problem}")
        if lost:
            what = f"{len(lost)} of {len(parts)} parts are lost, all others are done; the next run tries them again"
            raise LostParts("\n  ".join([what, *lost]))
        names = [part.name for part in parts]
        stored = self.store.records(name for name in names if name not in once)
        return (once[name] if name in once else next(stored) for name in names)

    def close(self) -> None:
        self._workers.close()
        disconnect(self.cluster)


def run(make: Make, parts: Iterable[Part], store: Store, cluster: Cluster | None = None, label: str = "parts"):
    """`Job(make, store, cluster).run(parts)`, then closes it."""
    with contextlib.closing(Job(make, store, cluster)) as job:
        return job.run(parts, label)
