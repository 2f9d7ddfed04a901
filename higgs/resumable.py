"""Results of a long run that survive a kill, by a key over all settings: the same run, started again, continues."""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from higgs.files import sha256


@lru_cache
def code_hash() -> str:
    """Of this package's modules, the installed distributions, and the device and kernels that PyTorch computes with."""
    computer = [torch.backends.cpu.get_cpu_capability(), torch.accelerator.current_accelerator(check_available=True)]
    installed = sorted({f"{found.name}=={found.version}" for found in distributions()})
    digest = hashlib.sha256(f"{computer} {installed}".encode())
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0{sha256(path)}\0".encode())
    return digest.hexdigest()


def settings_key(settings: Any) -> str:
    """Mappings, lists and scalars -> a SHA-256 in hexadecimal digits; other values count as their `str`.

    With the code, its libraries and the machine: after a change of one, nothing that was made before is used.
    """
    content = json.dumps([code_hash(), settings], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def settings_folder(above: str | Path, settings: Any) -> Path:
    return Path(above) / settings_key(settings)[:16]


class ResultLog(dict[str, Any]):
    """Results by key in an append-only file of JSON Lines. One writer at a time.

    A last line that a kill has cut off is dropped; another broken line is a ValueError.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        content = self.path.read_bytes() if self.path.is_file() else b""
        *lines, torn = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                self[entry["key"]] = entry["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}: {error}; delete the file") from error
        if torn:
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

    def append(self, key: str, result: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}, ensure_ascii=False) + "\n")
        self[key] = result
