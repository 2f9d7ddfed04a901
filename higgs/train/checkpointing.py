"""Learning rate schedule, log, and checkpoints that survive a kill."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from higgs.checkpoint.tensors import PARSER_ERRORS
from higgs.files import replacing


def warmup_stable_decay(step: int, steps: int, warmup_steps: int, decay_share: float) -> float:
    """Learning rate factor: linear warm-up over `warmup_steps`, constant, linear decay to 2 % over `decay_share`."""
    left = (steps - step) / max(1.0, decay_share * steps)
    return min(1.0, (step + 1) / warmup_steps, 0.02 + 0.98 * max(0.0, left))


def log(path: Path, **record: Any) -> None:
    """Appends one JSON line to the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log by step; of a step that a resumed run logged again, the last."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for _, record in sorted({record["step"]: record for record in records}.items())]


def save_state(path: Path, **parts: Any) -> None:
    """Writes a checkpoint whole or not at all."""
    # Through an open file: given a path, torch does not report why writing failed.
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(parts, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote; None without a file. Raises ValueError that names a damaged one."""
    try:
        return torch.load(path, "cpu", weights_only=True) if path.is_file() else None
    except (*PARSER_ERRORS, pickle.UnpicklingError) as error:
        # Not chained: the error's own text advises to run code of the file.
        cause = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise ValueError(f"{path} is cut off or damaged ({cause}): copy it again, or delete it to begin anew") from None
