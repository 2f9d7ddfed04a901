"""Results of a long run that survive a kill, by a key over all settings: the same run, started again, continues."""

import hashlib
import json
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from higgs.files import sha256

# Libraries whose versions results depend on. Others, such as those of a cluster's image, change no result's name.
COMPUTING = {
    "torch", "torchaudio", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "soundfile", "onnxruntime",
    "jiwer", "pystoi", "num2words", "peft", "moonshine-voice", "whisper-normalizer", "resemblyzer", "speechmos",
}  # fmt: skip


@lru_cache
def code_hash(device: str | None = None, *within: str) -> str:
    """Of this package's modules, or of those at its top and below the paths `within`; of the libraries that compute,
    without their builds; of the kernels and the `device`, None for the one that PyTorch finds.
    """
    kernels = torch.backends.cpu.get_cpu_capability()
    computer = device or str(torch.accelerator.current_accelerator(check_available=True))
    names = {(found.name or "").lower().replace("_", "-"): found.version for found in distributions()}
    installed = sorted(f"{name}=={version.partition('+')[0]}" for name, version in names.items() if name in COMPUTING)
    digest = hashlib.sha256(f"{kernels} {computer} {installed}".encode())
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        place = str(path.relative_to(package))
        if not within or "/" not in place or place.startswith(within):
            digest.update(f"{place}\0{sha256(path)}\0".encode())
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
