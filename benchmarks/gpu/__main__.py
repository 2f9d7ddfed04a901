"""`make gpu`: what the released sizes do on a GPU, in at most eight minutes: `python -m benchmarks.gpu --help`.

Random weights of the released shapes are made on the device; nothing is downloaded. Each part is a process with a time
limit of its own. Its figures are written to the JSON file as they come, so a part that crashes or is stopped takes
nothing along, and a run that was cut off goes on with the parts that are missing. Without a GPU it rehearses: the same
parts, small, on the CPU. `python -m benchmarks.gpu.table FILE` makes tables of it.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "triton")
# What the parts import beside them, by module; `benchmarks.gpu.wheels` carries it to a machine without a network.
NEEDED = ("torch", "transformers", "numpy", "pydantic", "ruamel.yaml", "soundfile", "num2words", "torchaudio")
DONE, LEAST_SECONDS = "done", 10


def missing_modules() -> list[str]:
    found = []
    for name in NEEDED:
        try:
            found += [] if find_spec(name) else [name]
        except ModuleNotFoundError:
            found.append(name)
    return found


def about(device: str, size: str) -> dict[str, Any]:
    """What figures depend on: a run goes on only where all of it is the same."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    versions["torch"] = torch.__version__  # with its build
    found = {"size": size, "device": device, "rehearsal": device == "cpu" or size != "released", **versions}
    if device == "cpu":
        return found | {"card": import_module("higgs.workflow.speed").cpu_name(), "commit": commit()}
    card = torch.cuda.get_device_properties(device)
    memory = f"{card.total_memory / 1e9:.0f} GB"
    return found | {"card": card.name, "memory": memory, "cuda": torch.version.cuda, "commit": commit()}


def commit() -> str | None:
    """Of the working tree; None where it is none of Git."""
    try:
        words = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class Results:
    """The JSON file, written whole after each line: `about`, and `parts` with state, seconds and figures by name."""

    def __init__(self, path: Path, identity: dict[str, Any], again: bool = False):
        self.path = path
        self.content: dict[str, Any] = {"about": identity, "date": time.strftime("%Y-%m-%d"), "parts": {}}
        if path.is_file() and not again:
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
                old["about"], old["parts"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} holds no figures ({error}): name another file, or say --again") from error
            if old["about"] != identity:
                known = {k: v for k, v in old["about"].items() if identity.get(k) != v}
                raise ValueError(f"{path} is of another run ({known}): name another file, or say --again")
            self.content = old

    def is_done(self, part: str) -> bool:
        return self.content["parts"].get(part, {}).get("state") == DONE

    def begin(self, part: str) -> None:
        self.content["parts"][part] = {"state": "begun", "seconds": 0.0, "figures": {}}

    def add(self, part: str, figure: dict[str, Any]) -> None:
        self.content["parts"][part]["figures"][figure.pop("name")] = figure
        self.write()

    def end(self, part: str, state: str, seconds: float = 0.0) -> None:
        found = self.content["parts"].setdefault(part, {"figures": {}})
        found |= {"state": state, "seconds": round(seconds, 1)}
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.tmp")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def run_child(command: Sequence[str], results: Results, part: str, limit: float, environment: dict[str, str]) -> None:
    """A part in a process group of its own, killed after `limit` seconds; its figures are kept as they come."""
    results.begin(part)
    started, stopped = time.monotonic(), threading.Event()
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, process_group=0)

    def stop() -> None:
        stopped.set()
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(limit, stop)
    timer.start()
    try:
        for line in child.stdout:
            results.add(part, json.loads(line))
            sys.stderr.write(f"  {part}: {line}")
        code = child.wait()
    finally:
        timer.cancel()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    state = f"stopped after {limit:.0f} s" if stopped.is_set() else DONE
    if code and not stopped.is_set():
        state = f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
    results.end(part, state, time.monotonic() - started)


def run_all(results: Results, parts: dict[str, float], arguments: argparse.Namespace, scratch: Path) -> None:
    """The parts that are not done, in order, until the time is over."""
    # One cache of compiled code for all parts.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"), "PYTHONPATH": _search_path()}
    deadline = time.monotonic() + 60 * arguments.minutes
    for part, limit in parts.items():
        if results.is_done(part):
            continue
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            results.end(part, f"not run: {arguments.minutes:g} minutes were over")
            continue
        sys.stderr.write(f"{part}: at most {min(limit, left):.0f} s\n")
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--scratch", str(scratch)]
        command += ["--size", arguments.size, "--device", arguments.device]
        run_child(command, results, part, min(limit, left), environment)


def _search_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "reports/gpu.json", metavar="FILE")
    parser.add_argument("--size", choices=("released", "small", "tiny"), help="default: released; on the CPU tiny")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: %(default)g)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--again", action="store_true", help="start over, whatever the file has")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if missing := missing_modules():
        carry = "python -m benchmarks.gpu.wheels --help says how to carry them"
        sys.stderr.write(f"missing here: {', '.join(missing)}. Without a network: {carry}\n")
        return 1
    import torch

    if not arguments.device:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.size = arguments.size or ("tiny" if arguments.device == "cpu" else "released")
    parts = import_module("benchmarks.gpu.parts")
    if arguments.part:
        parts.run_part(arguments.part, arguments.size, arguments.device, arguments.scratch)
        return 0
    if unknown := set(arguments.only or ()) - parts.PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(parts.PARTS)}")
    if arguments.device == "cpu":
        sys.stderr.write("no CUDA device is used: this is a rehearsal, and measures nothing of a GPU\n")
    chosen = {name: limit for name, (_, limit) in parts.PARTS.items() if name in (arguments.only or parts.PARTS)}
    try:
        results = Results(arguments.json, about(arguments.device, arguments.size), arguments.again)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the part is ended, too
    with tempfile.TemporaryDirectory(prefix="higgs-gpu-") as scratch:
        run_all(results, chosen, arguments, Path(scratch))
    table = import_module("benchmarks.gpu.table")
    print(table.markdown(results.content))
    print(f"\n{arguments.json}")
    states = {name: part["state"] for name, part in results.content["parts"].items()}
    return 0 if all(states.get(name) == DONE for name in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
