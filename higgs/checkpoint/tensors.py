"""A checkpoint's folder: its kind and layout, its weight files, and their tensors.

Tensor names tell the layouts apart: that of the reference implementation (boson-ai/higgs-audio), and transformers'. Of
both in one folder, that of `config.json` is read; the other alone is an error, because two revisions are mixed.
"""

import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from higgs.checkpoint.config_json import CODEC, MODEL, ORIGINAL, TRANSFORMERS, recognise
from higgs.config import ConfigError
from higgs.files import read_text, replacing, write_atomically
from higgs.validation import parse_json

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "model.pth"
DAMAGED = "is damaged or not completely downloaded"
MAX_JSON = 1 << 26  # bytes of a config or an index
# What reading and building from nonsense raises, in this package and in others.
PARSER_ERRORS = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError, MemoryError,
    EOFError,
)  # fmt: skip
# Search order; the first file in the layout of config.json is read.
ORDER = {TRANSFORMERS: (SINGLE, INDEX, PICKLE), ORIGINAL: (INDEX, PICKLE, SINGLE)}
# First parts of tensor names that only one layout has.
ROOTS = {
    ORIGINAL: "embed_tokens layers norm audio_codebook_embeddings audio_decoder_proj "
    "encoder decoder_2 fc_prior fc_post1 fc_post2",
    TRANSFORMERS: "model text_lm_head audio_lm_head acoustic_encoder acoustic_decoder fc fc1 fc2",
}


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or not of Higgs Audio V2; the message names the file or tensor."""


def layout_of(names: Iterable[str], what: str = "checkpoint") -> str:
    """The layout (ORIGINAL or TRANSFORMERS) of tensor names; CheckpointError for neither."""
    names = list(names)
    votes = Counter(layout for name in names for layout in ROOTS if name.split(".")[0] in ROOTS[layout].split())
    if not votes:
        raise CheckpointError(f"{what}: not of Higgs Audio V2: names like {sorted(names)[:4]}")
    return votes.most_common(1)[0][0]


def read_json(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > MAX_JSON:
        raise CheckpointError(f"{path}: {size:,} bytes, expected at most {MAX_JSON:,}")
    try:
        content = parse_json(read_text(path), path.name)
    except ValueError as error:
        raise CheckpointError(f"{path} {DAMAGED}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Raises FileNotFoundError where there is none."""
    if not (folder / CONFIG).is_file():
        below = [name for name in (MODEL, CODEC) if (folder / name / CONFIG).is_file()]
        advice = f"; did you mean {folder / below[0]}?" if below else _partial_download(folder)
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: not a checkpoint, or only half of one{advice}")
    return read_json(folder / CONFIG)


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """A CheckpointError about a tensor of its block names the folder as well."""
    try:
        yield
    except CheckpointError as error:
        if str(folder) in str(error):
            raise
        raise CheckpointError(f"{folder}: {error}") from error


@contextmanager
def config_errors(folder: Path) -> Iterator[None]:
    """Of a block that reads the config of a folder and builds from it: ConfigError that names the file for all errors.

    A CheckpointError or FileNotFoundError stays as it is: it names another file.
    """
    try:
        with naming(folder):
            yield
    except (CheckpointError, FileNotFoundError):
        raise
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from error
    except PARSER_ERRORS as error:
        cause = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{folder / CONFIG}: nothing can be built from it ({cause})") from error


def _partial_download(folder: Path) -> str:
    """The end of an error message: the file, if any, that an unfinished download left."""
    partial = [*folder.glob(".*.tmp"), *(folder / ".cache").rglob("*.incomplete")]
    if folder.parent.name == "snapshots":  # of the hub's cache
        partial += (folder.parent.parent / "blobs").glob("*.incomplete")
    return f"; a download was broken off ({partial[0]}): start it again" if partial else ""


def choose_weights(folder: Path, names: Set[str]) -> list[str]:
    """The files among `names`, downloaded or not, with the weights in the layout of the folder's config.json.

    Raises FileNotFoundError when there are no weights, or not all; CheckpointError when all are of the other layout.
    """
    _, layout = recognise(read_config(folder), str(folder / CONFIG))
    others = []
    for name in ORDER[layout]:
        if name in names:
            files = sorted(set(_weight_map(folder / name).values())) if name == INDEX else [name]
            weights_layout = _weights_layout(folder / name)
            if weights_layout in (layout, None):
                if missing := [file for file in files if file not in names]:
                    partial = _partial_download(folder)
                    raise FileNotFoundError(f"{folder}: {name} names missing shards: {missing}{partial}")
                return files
            if names.intersection(files):
                others.append(f"{name} has {weights_layout} names")
    if others:
        differ = f"{CONFIG} is in the {layout} layout, but {' and '.join(others)}"
        raise CheckpointError(f"{folder}: {differ}: take both of one revision")
    shards = sorted(name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name))
    present = f"{shards} without {INDEX}" if shards else f"only {sorted(names)[:8]}"
    wanted = f"no {SINGLE}, no shards with an index and no {PICKLE}"
    raise FileNotFoundError(f"{folder} holds {wanted}: {present}{_partial_download(folder)}")


def _weights_layout(path: Path) -> str | None:
    """The layout of a weight file or an index; None for a safetensors file that is not downloaded yet."""
    if path.name == PICKLE:
        return ORIGINAL  # transformers writes none
    if path.name == INDEX:
        return layout_of(_weight_map(path), str(path))
    return layout_of(_read_safetensors(path, "meta"), str(path)) if path.is_file() else None


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> shard, of an index. A shard is a file beside it, nothing else."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or len(shard) > 255 or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
            raise CheckpointError(f"{path}: {shard!r:.60} is no name of a shard")
    return weight_map


def weight_files(folder: Path) -> list[Path]:
    """The files that together hold the weights: one safetensors file, the shards of an index, or `model.pth`."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return [folder / name for name in choose_weights(folder, names)]


def read_headers(folder: Path) -> dict[str, Tensor]:
    """-> every tensor of the checkpoint on the meta device: name, shape and type; no weights are read."""
    return read_tensors(folder, "meta")


def read_tensors(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """-> every tensor of the checkpoint, memory-mapped."""
    tensors: dict[str, Tensor] = {}
    files = weight_files(folder)
    for path in files:
        part = (_read_pickle if path.name == PICKLE else _read_safetensors)(path, device)
        if duplicates := sorted(tensors.keys() & part.keys()):
            raise CheckpointError(f"{path}: {duplicates[:5]} are in another shard as well")
        tensors |= part
    if files[0].name not in (SINGLE, PICKLE):
        indexed = _weight_map(folder / INDEX).keys()
        if differing := sorted(indexed ^ tensors.keys()):
            where = "are not in the shards" if differing[0] in indexed else "are not in the index"
            raise CheckpointError(f"{folder / INDEX}: {differing[:5]} {where}")
    return tensors


def _read_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    if advice := _lfs_advice(path):
        raise CheckpointError(f"{path} is no safetensors file{advice}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key).to(device) for key in file.keys()}
    except (SafetensorError, OSError, *PARSER_ERRORS) as error:
        raise CheckpointError(f"{path} {DAMAGED}: {path.stat().st_size:,} bytes, {error}") from error


def _lfs_advice(path: Path) -> str:
    """Advice where a pointer of Git LFS is in the file's place."""
    with path.open("rb") as file:
        return ", but a pointer of Git LFS: fetch it with `git lfs pull`" if file.read(8) == b"version " else ""


def _read_pickle(path: Path, device: str) -> dict[str, Tensor]:
    """A `.pth` file, read with weights_only: code in it is refused, and never run."""
    try:
        if zipped := zipfile.is_zipfile(path):
            _check_zip(path)
        content = torch.load(path, map_location=device, weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # Not chained: the error's own text advises to run the code.
        code = re.search(r"unsupported GLOBAL (\S+)", str(error), re.IGNORECASE)
        cause = f"holds code ({code[1]}); it was not run" if code else DAMAGED
        raise CheckpointError(f"{path} {cause}{_lfs_advice(path)}. Download it again") from None
    except CheckpointError:
        raise
    except (*PARSER_ERRORS, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} {DAMAGED}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected names and tensors, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: expected names and tensors, got {type(value).__name__} at {name!r}")
    return content


def _check_zip(path: Path) -> None:
    """Torch writes tensors as they are: a compressed file could be of any size once it is read."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} holds {size:,} bytes, compressed: expected what torch.save writes")


def write(folder: str | Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes `config.json` and `model.safetensors`, each by renaming: tensors mapped from the old file stay valid."""
    folder = Path(folder)
    with replacing(folder / SINGLE) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def compare(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], their_name: Callable[[str], str]
) -> list[str]:
    """-> a line for each kind of difference, with the first names; [] if all fits. `their_name`: ours -> the file's."""
    misshapen = []
    for name in (name for name in expected if name in tensors):
        shape, wanted, dtype = tensors[name].shape, expected[name].shape, tensors[name].dtype
        if shape != wanted:
            misshapen.append(f"{their_name(name)} is {list(shape)}, the config asks for {list(wanted)}")
        elif not dtype.is_floating_point:
            misshapen.append(f"{their_name(name)} is {dtype}, a floating point type is needed")
    differences = {
        "missing": [their_name(name) for name in expected if name not in tensors],
        "unexpected": [their_name(name) for name in tensors if name not in expected],
        "misshapen": misshapen,
    }
    lines = {kind: ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") for kind, names in differences.items()}
    return [f"{len(differences[kind])} {kind}: {line}" for kind, line in lines.items() if line]
