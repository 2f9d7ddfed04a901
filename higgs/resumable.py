"""What results depend on besides settings and data: the code, its libraries, and the arithmetic of the machine."""

import hashlib
import shutil
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path

import torch

from higgs.arithmetic import pinned
from higgs.files import sha256

# Libraries whose versions results depend on. Others, such as those of a cluster's image, change no result's name.
COMPUTING = {
    "torch", "torchaudio", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "soundfile", "onnxruntime",
    "jiwer", "pystoi", "num2words", "peft", "moonshine-voice", "whisper-normalizer", "resemblyzer", "speechmos",
}  # fmt: skip


@lru_cache
def code_hash(device: str | None = None, *within: str) -> str:
    """Of this package's modules, or of those at its top and below the paths `within`; of the libraries that compute,
    without their builds; of the kernels, of our own where it is compiled, and of the `device`, None for the one that
    PyTorch finds.
    """
    kernels = [torch.backends.cpu.get_cpu_capability(), "cc" if not pinned() and shutil.which("cc") else ""]
    computer = device or str(torch.accelerator.current_accelerator(check_available=True))
    names = {(found.name or "").lower().replace("_", "-"): found.version for found in distributions()}
    installed = sorted(f"{name}=={version.partition('+')[0]}" for name, version in names.items() if name in COMPUTING)
    digest = hashlib.sha256(f"{kernels} {computer} {installed}".encode())
    package = Path(__file__).parent
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".c")):
        place = str(path.relative_to(package))
        if not within or "/" not in place or place.startswith(within):
            digest.update(f"{place}\0{sha256(path)}\0".encode())
    return digest.hexdigest()
