"""Checkpoints: "local folder | hub id @ revision | s3://bucket/prefix" -> a local folder, and what is in it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.pth", "*.jinja"]


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """-> a local folder that holds the checkpoint, downloaded (and cached, and resumed) where necessary.

    `source` is a folder, `organisation/name`, `organisation/name@revision`, or `s3://bucket/prefix`.
    Raises FileNotFoundError when it is none of them.
    """
    text = str(source)
    if text.startswith("s3://"):
        return _from_s3(text)
    if Path(text).is_dir():
        return Path(text)
    name, _, pinned = text.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise FileNotFoundError(
            f"checkpoint {text!r}: no such folder, and not a hub id (organisation/name@revision)"
        )
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name, revision=revision or pinned or None, allow_patterns=CHECKPOINT_FILES
        )
    )


def _from_s3(url: str) -> Path:
    """Copies the prefix into the cache folder; what is there already is not fetched again."""
    import s3fs

    cache = Path(os.environ.get("HIGGS_CACHE", Path.home() / ".cache" / "higgs"))
    files = s3fs.S3FileSystem()
    found = files.find(url, detail=True)
    if not found:
        raise FileNotFoundError(f"{url}: nothing there")
    prefix = url.removeprefix("s3://").rstrip("/") + "/"
    # Another version under the same name has other tags, and gets a folder of its own.
    tags = json.dumps(
        [(key, info.get("ETag"), info["size"]) for key, info in sorted(found.items())]
    )
    folder = cache / prefix / hashlib.sha256(tags.encode()).hexdigest()[:16]
    for key, info in found.items():
        target = folder / key.removeprefix(prefix)
        if target.exists() and target.stat().st_size == info["size"]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        files.get_file(key, str(partial))
        partial.rename(target)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json: not a checkpoint, or only half of one"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def weight_files(folder: Path) -> list[Path]:
    """The files that together hold the weights: one safetensors file, shards named by an index, or `model.pth`."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder}: {index.name} names shards that are not there: {missing}"
            )
        return [folder / name for name in names]
    if (folder / "model.pth").is_file():
        return [folder / "model.pth"]
    raise FileNotFoundError(
        f"{folder} holds no model.safetensors, shards with an index, or model.pth"
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """-> every tensor of the checkpoint on the CPU. A damaged file is an error that names it."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        if path.suffix == ".pth":
            tensors |= torch.load(path, map_location="cpu", weights_only=True)
            continue
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}
        except Exception as error:
            raise ValueError(f"{path} is damaged or not completely downloaded: {error}") from error
    return tensors


def fingerprint(source: str | Path) -> str:
    """-> sha256 over the names and bytes of a checkpoint's weights and config: what a report came from."""
    folder = resolve(source)
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weight_files(folder)]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_loaded(result: Any, folder: Path) -> None:
    """Raises ValueError that lists what `load_state_dict(strict=False)` found missing or unexpected."""
    missing = [key for key in result.missing_keys]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{folder}: {len(missing)} tensors missing {missing[:5]}, "
            f"{len(result.unexpected_keys)} unexpected {list(result.unexpected_keys)[:5]}"
        )
