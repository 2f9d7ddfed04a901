"""Recorded speech in a folder or a bucket, as loose files or tars of them -> codes, part by part.

A listing has a line of JSON for each object: {"id": "a/b.flac", "url": "s3://bucket/prefix/a/b.flac", "size": 118000,
"etag": "..."}. Clips of a tar are called `TAR/MEMBER`.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from heapq import nsmallest
from itertools import accumulate, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, Strict
from torch import Tensor

from higgs.audio import READABLE, load_audio
from higgs.data.recordings import Recording, read_recordings
from higgs.data.training.codes import SAMPLE, packed
from higgs.files import absent, as_utf8, files_below, sha256
from higgs.jobs.parts import Part, Result, cut, make_part, s3
from higgs.resumable import code_hash
from higgs.validation import Count, Record, explained, parse_json

PART_BYTES, LEAST_BYTES = 800_000_000, 250_000  # about ten hours as FLAC
PARTS = 16  # that a small corpus is cut into, for several processes to share it
TAR, TAR_BLOCK = ".tar", 8 << 20
AT_ONCE, BYTES_AT_ONCE, SECONDS_AT_ONCE = 16, 64 << 20, 300  # that are fetched, and that are encoded, together
MISSING, UNUSABLE, CHANGED = "missing audio", "unusable audio", "changed audio"
WITHIN = ("checkpoint/", "codec/", "data/corpus.py")  # the modules that codes depend on
GPUS = 0.5  # of a worker: one reads while another encodes
ALL = "all"  # in place of a language, where it is not known


class Item(NamedTuple):
    """An object and its version: an S3 ETag, or the SHA-256 of a local file. Of a tar, `skip` are members left out."""

    id: str
    url: str
    size: int
    etag: str
    skip: tuple[str, ...] = ()


class Member(tarfile.TarInfo):
    """ReadError for a header that is none: tarfile would take it, and a tar that is cut, for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


class Line(Record):
    id: Annotated[str, Field(min_length=1)]
    url: Annotated[str, Field(min_length=1)]
    size: Count
    etag: str
    skip: Annotated[tuple[str, ...], Strict(False)] = ()  # a list in JSON


class Failure(NamedTuple):
    """Why a clip has no codes."""

    kind: str
    id: str
    what: str


class Clip(NamedTuple):
    """Of a sample: a file, or its content."""

    id: str
    language: str
    audio: Path | bytes


@dataclass(frozen=True)
class Corpus:
    """What is to be encoded; of a manifest, its recordings too."""

    items: list[Item]
    recordings: list[Recording]

    @property
    def is_small(self) -> bool:
        """Whether a sample holds all of it."""
        return 0 < len(self.recordings) <= SAMPLE

    @property
    def digest(self) -> str:
        versions = json.dumps([(item.id, item.size, item.etag, item.skip) for item in self.items])
        return hashlib.sha256(versions.encode()).hexdigest()

    def sample(self, encoded: Iterable[str]) -> list[Clip]:
        """SAMPLE of those that have codes, by their hashes, in order; those of tars are of one tar, if it has so many.

        Raises ValueError where there is none.
        """
        items = {item.id: item for item in self.items}

        def order(name: str) -> tuple[bytes, bytes]:
            return tuple(hashlib.sha256(text.encode()).digest() for text in (_object(name, items), name))

        chosen = set(nsmallest(SAMPLE, encoded, key=order))
        if self.recordings:
            clips = [Clip(r.id, r.language, r.path) for r in self.recordings if r.id in chosen]
        else:
            objects = [items[name] for name in sorted({_object(name, items) for name in chosen})]
            clips = [Clip(name, ALL, content) for name, content in _contents(objects, []) if name in chosen]
        if not clips:
            raise ValueError(f"none of {len(self.items)} recordings or tars could be encoded")
        return clips


def read_corpus(
    source: str, languages: list[str] | None = None, max_clips: int | None = None, skip: Iterable[str] = ()
) -> Corpus:
    """A manifest, of which languages and a number of clips may be chosen; a listing, a folder, or s3://bucket/prefix.

    `skip` are ids, of tars' members too, to be left out beside those of a listing. ValueError where nothing is left.
    """
    recordings, left_out = [], frozenset(skip)
    if _is_manifest(source):
        recordings = [r for r in read_recordings(source, languages, max_clips) if r.id not in left_out]
        items = [Item(r.id, str(r.path), r.path.stat().st_size, r.sha256) for r in recordings]
    else:
        if not (source.startswith("s3://") or Path(source).exists()):
            raise absent("corpus", source, "name s3://BUCKET/PREFIX, a folder, a listing or a manifest")
        listed = read_listing(source) if Path(source).is_file() else list_corpus(source)
        items = [item for item in listed if item.id not in left_out]
        if left_out:
            members = sorted(name for name in left_out if TAR in name.lower())
            more = ([name for name in members if name.startswith(f"{item.id}/")] for item in items)
            items = [i._replace(skip=tuple(dict.fromkeys([*i.skip, *new]))) for i, new in zip(items, more, strict=True)]
    if not items:
        raise ValueError(f"{source} holds no audio file and no tar")
    return Corpus(items, recordings)


def _is_manifest(source: str) -> bool:
    """By its first line: a listing says where objects are."""
    if not Path(source).is_file():
        return False
    with Path(source).open(encoding="utf-8-sig") as lines:
        try:
            first = json.loads(next(filter(str.strip, lines), ""))
        except ValueError:
            first = None
    return not (isinstance(first, dict) and "url" in first)


def _object(name: str, ids: Iterable[str]) -> str:
    """The one of `ids` that a clip is, or is a member of; "" for none."""
    while name and name not in ids:
        name = name.rpartition("/")[0]
    return name


def is_speech(name: str) -> bool:
    """By the ending; macOS writes `._a.flac` beside `a.flac`, which is no sound."""
    return Path(name).suffix.lower() in (*READABLE, TAR) and Path(name).name[0] != "."


def list_corpus(url: str) -> Iterator[Item]:
    """The audio files and tars below `s3://bucket/prefix` or in a folder, sorted by id."""
    if url.startswith("s3://"):
        from higgs.checkpoint.s3 import connect, list_keys

        with connect(url) as files:
            for key, size, etag in list_keys(files, url):
                if is_speech(key):
                    yield Item(id=key, url=f"{url.rstrip('/')}/{key}", size=size, etag=etag)
        return
    if not Path(url).is_dir():
        raise FileNotFoundError(f"{url} is neither a folder nor s3://BUCKET/PREFIX")
    for name, path in sorted((str(path.relative_to(url)), path) for path in files_below(Path(url))):
        if is_speech(name):
            yield Item(id=as_utf8(name), url=str(path), size=path.stat().st_size, etag=sha256(path))


def read_listing(path: str | Path) -> Iterator[Item]:
    """ParamsError names the line at fault. Blank lines are none."""
    with Path(path).open(encoding="utf-8-sig") as lines:  # one by one: there may be millions
        for number, line in enumerate(lines, start=1):
            if line.strip():
                with explained(where := f"{path}, line {number}", kind=Line):
                    yield Item(*Line.model_validate(parse_json(line, where)).__dict__.values())


def parts_of(
    items: Iterable[Item], codec: str, pad_to_hop: bool, device: str = "cpu", target: float | None = None
) -> Iterator[Part]:
    """`codec` is its fingerprint. A part's name depends on the ids and versions of its items, not on where they lie.

    Parts have about `target` bytes: None, 800 MB, or a power of two below that for less than 150 hours.
    """
    items = sorted(items)
    if equal := [one.id for one, other in pairwise(items) if one.id == other.id]:
        raise ValueError(f"{equal[0]!r} is there twice: ids are the names of codes")
    total = sum(item.size for item in items)
    target = target or min(PART_BYTES, max(LEAST_BYTES, 1 << max(0, (total // PARTS).bit_length() - 1)))
    job = {"codec": codec, "pad_to_hop": pad_to_hop, "device": device, "code": code_hash(device, *WITHIN)}
    for group in cut(items, target, attrgetter("id"), attrgetter("size")):
        local = {item.url: item.etag for item in group if _is_local(item)}
        yield replace(make_part(job, [(i.id, i.size, i.etag, *i.skip) for i in group]), items=group, files=local)


@dataclass(frozen=True)
class Encode:
    """What a worker loads to tokenize parts: audio -> codes [K, T] by the clip's name."""

    load_codec: Callable[[], Any]
    pad_to_hop: bool

    def __call__(self) -> Callable[[Sequence[Any]], Result]:
        return partial(self.encode, self.load_codec())

    def encode(self, codec: Any, items: Sequence[Any]) -> Result:
        codes: dict[str, Tensor] = {}
        failures: list[Failure] = []
        for some in _groups(_waveforms(items, codec.sample_rate, failures), codec.sample_rate):
            for name, clip in self._encode(codec, some, failures):
                if name in codes or name == "__metadata__":
                    failures.append(Failure(UNUSABLE, name, "another clip has this name, or safetensors reserves it"))
                else:
                    codes[name] = clip
        changed = tuple(f"{failure.id}/" for failure in failures if failure.kind == CHANGED)  # tars
        codes = {name: clip for name, clip in codes.items() if not name.startswith(changed)}
        failures.sort(key=lambda failure: failure.id)
        record = {"clips": len(codes), "frames": sum(clip.shape[1] for clip in codes.values())}
        final = all(failure.kind == UNUSABLE for failure in failures)
        return Result(record | {"failed": [failure._asdict() for failure in failures]}, packed(codes), final)

    def _encode(self, codec: Any, clips: list[tuple[str, Tensor]], failures: list[Failure]) -> list[tuple[str, Tensor]]:
        """All together; where the codec refuses one, each by itself."""
        names, waveforms = zip(*clips, strict=True)
        try:
            return list(zip(names, codec.encode(list(waveforms), pad_to_hop=self.pad_to_hop), strict=True))
        except (ValueError, TypeError) as error:
            if len(clips) > 1:
                return [pair for clip in clips for pair in self._encode(codec, [clip], failures)]
            failures.append(Failure(UNUSABLE, names[0], str(error)))
            return []


def _groups(clips: Iterable[tuple[str, Tensor]], sample_rate: int) -> Iterator[list[tuple[str, Tensor]]]:
    group: list[tuple[str, Tensor]] = []
    for clip in clips:
        group.append(clip)
        if len(group) == AT_ONCE or sum(len(waveform) for _, waveform in group) > SECONDS_AT_ONCE * sample_rate:
            yield group
            group = []
    if group:
        yield group


def _waveforms(items: Sequence[Item], rate: int, failures: list[Failure]) -> Iterator[tuple[str, Tensor]]:
    """Clip by clip, fetched some at a time. Errors of the server, the disk and the memory are raised."""
    for name, content in _contents(items, failures):
        try:
            yield name, load_audio(content, rate)[0]
        except ValueError as error:
            failures.append(Failure(UNUSABLE, name, str(error)))


def _contents(items: Sequence[Item], failures: list[Failure]) -> Iterator[tuple[str, bytes]]:
    tars, loose = ([item for item in items if item.id.lower().endswith(TAR) == tar] for tar in (True, False))
    while loose:
        sizes = accumulate(item.size for item in loose[:AT_ONCE])
        count = max(1, sum(size <= BYTES_AT_ONCE for size in sizes))
        some, loose = loose[:count], loose[count:]
        for item, content in zip(some, _read(some), strict=True):
            kind = "sha256" if _is_local(item) else "md5"
            etag = None if content is None else hashlib.new(kind, content).hexdigest()
            if etag not in (None, item.etag) and not _is_local(item):
                etag = _etag(item)  # of an upload in parts, or encrypted
            if etag == item.etag:
                yield item.id, content
            else:
                failures.append(_lost(item, etag))
    for item in tars:
        yield from _members(item, failures)


def _lost(item: Item, etag: str | None) -> Failure:
    """Of an object that has another version by now; None: it is gone."""
    if etag is None:
        return Failure(MISSING, item.id, "there is no such object any more")
    return Failure(CHANGED, item.id, "it is not the object that was listed")


def _is_local(item: Item) -> bool:
    return not item.url.startswith("s3://")


def _read(items: Sequence[Item]) -> list[bytes | None]:
    """The contents of objects of one kind of place; None for those that are not there."""
    if _is_local(items[0]):
        return [Path(item.url).read_bytes() if Path(item.url).is_file() else None for item in items]
    with s3(items[0].url) as files:
        found = files.cat_ranges([item.url for item in items], None, None, on_error="return")
        for content in found:
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
    return [None if isinstance(content, Exception) else content for content in found]


def _etag(item: Item) -> str | None:
    """Of the object as it is now."""
    if _is_local(item):
        return sha256(item.url) if Path(item.url).is_file() else None
    with s3(item.url) as files:
        try:
            return files.info(item.url)["ETag"].strip('"')
        except FileNotFoundError:
            return None


def _members(item: Item, failures: list[Failure]) -> Iterator[tuple[str, bytes]]:
    """The audio files of a tar, as a stream. A tar that changes meanwhile is one failure, and has no clips."""
    try:
        if (etag := _etag(item)) == item.etag:
            with ExitStack() as stack, tarfile.open(fileobj=_opened(item, stack), mode="r|", tarinfo=Member) as tar:
                for member in tar:
                    name = f"{item.id}/{as_utf8(member.name)}"
                    if member.isfile() and is_speech(member.name) and name not in item.skip:
                        yield name, tar.extractfile(member).read()
                    tar.members = []  # it would hold the header of each
            etag = _etag(item)
    except tarfile.TarError as error:
        failures.append(Failure(UNUSABLE, item.id, f"this tar is damaged: {error}"))
    if etag != item.etag:
        failures.append(_lost(item, etag))


def _opened(item: Item, stack: ExitStack) -> Any:
    if _is_local(item):
        return stack.enter_context(Path(item.url).open("rb"))
    return stack.enter_context(stack.enter_context(s3(item.url)).open(item.url, "rb", block_size=TAR_BLOCK))
