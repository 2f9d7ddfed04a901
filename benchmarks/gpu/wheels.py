"""What `make gpu` imports beside torch and transformers, for a machine without a network: `... FOLDER --python 3.12`.

Downloads the wheels here, some 5 MB in the versions of constraints.txt, and says what to type there.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRIED = (
    "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions", "ruamel.yaml",
    "soundfile", "cffi", "num2words",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pinned() -> list[str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return [re.search(rf"^{re.escape(name)}==.*$", text, re.M | re.I)[0] for name in CARRIED]


def download(folder: Path, python: str) -> list[str]:
    """-> the command of pip."""
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    words += ["--implementation", "cp", "--python-version", python]
    return words + [word for name in PLATFORMS for word in ("--platform", name)] + pinned()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU (default: %(default)s)")
    arguments = parser.parse_args(words)
    if code := subprocess.run(download(arguments.folder, arguments.python)).returncode:
        return code
    print("There: python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl")
    print("       PYTHONPATH=SITE make gpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
