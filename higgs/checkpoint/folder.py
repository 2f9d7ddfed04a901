"""A checkpoint's folder: which kind and layout it has, the headers of its tensors, and the tensors.

Two layouts are about: that of the original release, and that of transformers. Both are recognised by content. Where
the weights lie there in both, as in the hub's repositories since April 2026, `config.json` decides: the weights of its
layout are read, the others are not looked at. Weights of the other layout alone are an error: half of an update.
"""

import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from higgs.checkpoint.config_json import CODEC, MODEL, ORIGINAL, TRANSFORMERS, recognise
from higgs.files import replacing

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "model.pth"
# In which order the weights are looked for; the first in the layout of config.json is taken.
ORDER = {TRANSFORMERS: (SINGLE, INDEX, PICKLE), ORIGINAL: (INDEX, PICKLE, SINGLE)}
# The first part of a tensor's name that only one layout has.
ROOTS = {
    ORIGINAL: "embed_tokens layers norm audio_codebook_embeddings audio_decoder_proj "
    "encoder decoder_2 fc_prior fc_post1 fc_post2",
    TRANSFORMERS: "model text_lm_head audio_lm_head acoustic_encoder acoustic_decoder fc fc1 fc2",
}
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or not one of Higgs Audio V2, with the file or tensor named."""


def layout_of(names: Iterable[str], what: str = "checkpoint") -> str:
    """Which of the two layouts the tensors' names are of; CheckpointError when of neither."""
    names = list(names)
    votes = Counter(layout for name in names for layout in ROOTS if name.split(".")[0] in ROOTS[layout].split())
    if not votes:
        raise CheckpointError(f"{what}: not of Higgs Audio V2: names like {sorted(names)[:4]}")
    return votes.most_common(1)[0][0]


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or not completely downloaded: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Raises FileNotFoundError where there is none, CheckpointError where it is no JSON object."""
    if not (folder / CONFIG).is_file():
        inside = [name for name in (MODEL, CODEC) if (folder / name / CONFIG).is_file()]
        advice = f"; did you mean {folder / inside[0]}?" if inside else broken_off(folder)
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: not a checkpoint, or only half of one{advice}")
    return read_json(folder / CONFIG)


def broken_off(folder: Path) -> str:
    """What an unfinished download left in or beside a folder, as the end of a sentence."""
    found = [*folder.glob(".*.tmp"), *(folder / ".cache").rglob("*.incomplete")]
    if folder.parent.name == "snapshots":  # of the hub's cache
        found += (folder.parent.parent / "blobs").glob("*.incomplete")
    return f"; a download was broken off ({found[0]}): start it again" if found else ""


def choose_weights(folder: Path, names: Set[str]) -> list[str]:
    """Which of the files `names` hold the weights: those in the layout of the folder's config.json (see `ORDER`).

    Files that are named but not yet downloaded are told by their names alone. Raises FileNotFoundError when there are
    none, or not all; CheckpointError when all are of the other layout.
    """
    _, layout = recognise(read_config(folder), str(folder / CONFIG))
    others = []
    for name in ORDER[layout]:
        if name in names:
            found = weights_layout(folder / name)
            if found in (layout, None):
                return _shards(folder, names) if name == INDEX else [name]
            if name != INDEX or names & set(_weight_map(folder / name).values()):
                others.append(f"{name} has {found} names")
    if others:
        raise CheckpointError(
            f"{folder}: {CONFIG} is in the {layout} layout, but {' and '.join(others)}: take both of one revision"
        )
    shards = sorted(name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name))
    there = f"{shards} without {INDEX}" if shards else f"only {sorted(names)[:8]}"
    raise FileNotFoundError(
        f"{folder} holds no {SINGLE}, no shards with an index and no {PICKLE}: {there}{broken_off(folder)}"
    )


def weights_layout(path: Path) -> str | None:
    """The layout of a file of weights or of an index; None for a safetensors file that is not there yet."""
    if path.name == PICKLE:
        return ORIGINAL  # transformers writes none
    if path.name == INDEX:
        return layout_of(_weight_map(path), str(path))
    return layout_of(safetensors_header(path), str(path)) if path.is_file() else None


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> shard, of an index. A shard is a file beside it, nothing else."""
    named = read_json(path).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise CheckpointError(f"{path}: no weight_map")
    for shard in set(named.values()):
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
            raise CheckpointError(f"{path}: {shard!r} is no name of a shard")
    return named


def _shards(folder: Path, names: Set[str]) -> list[str]:
    shards = sorted(set(_weight_map(folder / INDEX).values()))
    if missing := [shard for shard in shards if shard not in names]:
        raise FileNotFoundError(f"{folder}: {INDEX} names shards that are not there: {missing}{broken_off(folder)}")
    return shards


def weight_files(folder: Path) -> list[Path]:
    """The files that together hold the weights: one safetensors file, the shards of an index, or `model.pth`."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return [folder / name for name in choose_weights(folder, names)]


def read_headers(folder: Path) -> dict[str, Tensor]:
    """-> every tensor of the checkpoint on the meta device: name, shape and type, at the cost of reading none."""
    return _gather(folder, safetensors_header, "meta")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """-> every tensor of the checkpoint on the CPU, mapped from the file until it is used."""
    return _gather(folder, _safetensors, "cpu")


def _gather(folder: Path, read: Callable[[Path], dict[str, Tensor]], device: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    files = weight_files(folder)
    for path in files:
        part = _pickled(path, device) if path.name == PICKLE else read(path)
        if twice := sorted(tensors.keys() & part.keys()):
            raise CheckpointError(f"{path}: {twice[:5]} stand in another shard as well")
        tensors |= part
    if files[0].name not in (SINGLE, PICKLE):
        named = _weight_map(folder / INDEX).keys()
        if differing := sorted(named ^ tensors.keys()):
            where = "are not in the shards" if differing[0] in named else "are not in the index"
            raise CheckpointError(f"{folder / INDEX}: {differing[:5]} {where}")
    return tensors


def safetensors_header(path: Path) -> dict[str, Tensor]:
    """-> the file's tensors on the meta device. A file of another length than its header says is an error."""
    with path.open("rb") as file:
        pointer = _pointer(file.read(8))
    if pointer:
        raise CheckpointError(f"{path} is no safetensors file{pointer}")
    try:
        with safe_open(path, framework="pt") as file:
            entries = {key: file.get_slice(key) for key in file.keys()}
            return {
                key: torch.empty(entry.get_shape(), dtype=DTYPES[entry.get_dtype()], device="meta")
                for key, entry in entries.items()
            }
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or not completely downloaded: {path.stat().st_size:,} bytes, {error}"
        ) from error


def _pointer(start: bytes) -> str:
    """Advice where a file of Git LFS holds the address in place of the content."""
    return ", but a pointer of Git LFS: fetch it with `git lfs pull`" if start == b"version " else ""


def _safetensors(path: Path) -> dict[str, Tensor]:
    safetensors_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _pickled(path: Path, device: str) -> dict[str, Tensor]:
    """A `.pth` file. Whatever is no tensor is refused, and never run."""
    with path.open("rb") as file:
        start = file.read(8)
    whole = zipfile.is_zipfile(path)
    if not start or (start.startswith(b"PK") and not whole):
        size = path.stat().st_size
        raise CheckpointError(f"{path} is damaged or not completely downloaded: {size:,} bytes")
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=whole)
    except pickle.UnpicklingError as error:
        # Not chained: the error's own text advises to run the code.
        code = re.search(r"unsupported GLOBAL (\S+)", str(error), re.IGNORECASE)
        why = f"holds code ({code[1]}); it was not run" if code else "is no file of tensors"
        raise CheckpointError(f"{path} {why}{_pointer(start)}. Take it from its source again") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not completely downloaded: {error}") from error
    strays = (
        {"": content}
        if not isinstance(content, dict)
        else {k: v for k, v in content.items() if not isinstance(v, Tensor)}
    )
    if strays:
        name, value = next(iter(strays.items()))
        raise CheckpointError(
            f"{path}: expected names and tensors, got {type(value).__name__} {'at ' + repr(name) if name else ''}"
        )
    return content


def write(folder: str | Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes `config.json` and `model.safetensors`, each by renaming: what is read there meanwhile stays whole.

    Loaded tensors are mapped from their file, so saving over the file that one came from must not touch it.
    """
    folder = Path(folder)
    with replacing(folder / SINGLE) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    with replacing(folder / CONFIG) as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Differences:
    """Between the tensors of a checkpoint and those that its config asks for, under the checkpoint's names."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def lines(self, limit: int = 5) -> list[str]:
        """One line for each kind, with the first few names."""
        return [
            f"{len(names)} {kind}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
            for kind, names in vars(self).items()
            if names
        ]


def compare(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], their_name: Callable[[str], str]
) -> Differences:
    """Tensors by this package's names, shapes compared. `their_name` says what the checkpoint calls one."""
    return Differences(
        missing=tuple(their_name(name) for name in expected if name not in found),
        unexpected=tuple(their_name(name) for name in found if name not in expected),
        misshapen=tuple(
            f"{their_name(name)} is {list(found[name].shape)}, the config asks for {list(expected[name].shape)}"
            if found[name].shape != expected[name].shape
            else f"{their_name(name)} is {found[name].dtype}, a floating point type is needed"
            for name in expected
            if name in found and (found[name].shape != expected[name].shape or not found[name].is_floating_point())
        ),
    )
