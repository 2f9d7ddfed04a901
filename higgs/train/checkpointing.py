"""What every training job needs: a learning rate by step, a log, and checkpoints that survive a kill."""

import json
from pathlib import Path
from typing import Any

import torch

from higgs.files import replacing


def warmup_stable_decay(step: int, steps: int, warmup_steps: int, decay_share: float) -> float:
    """The learning rate's factor: up over `warmup_steps`, flat, down to 2 % over the last share of the run."""
    left = (steps - step) / max(1.0, decay_share * steps)
    return min(1.0, (step + 1) / warmup_steps, 0.02 + 0.98 * max(0.0, left))


def log(path: Path, **row: Any) -> None:
    """Appends one JSON line to the log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log by step. A run that was killed may have told a step twice: the last time counts."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def save_state(path: Path, **parts: Any) -> None:
    """Writes a checkpoint whole or not at all."""
    # Through a file of ours: given a path, torch does not say what kept it from writing.
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(parts, file)


def load_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.is_file() else None
