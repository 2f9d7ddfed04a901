"""Codes on disk: int16 in safetensors, one tensor [K, T] for each clip."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_codes(path: str | Path, codes: dict[str, Tensor]) -> None:
    """Writes the file whole or not at all. Raises ValueError for codes that are not [K, T] of 0 ... 32767."""
    path = Path(path)
    for name, clip in codes.items():
        if clip.dim() != 2 or clip.min() < 0 or clip.max() > 32767:
            raise ValueError(f"codes {name!r} must be [K, T] of 0 ... 32767")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    save_file({k: v.to(torch.int16).cpu().contiguous() for k, v in codes.items()}, partial)
    os.replace(partial, path)


def load_codes(path: str | Path) -> dict[str, Tensor]:
    """-> int64 [K, T] for each clip."""
    return {name: clip.long() for name, clip in load_file(path).items()}
