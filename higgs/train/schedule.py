"""What every training job shares: a wall-clock schedule, logging, and checkpoints that survive a kill."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from higgs.files import replacing


class Clock:
    """A budget in minutes; `rate` is the learning rate's factor: warm-up over steps, then a cosine over time."""

    def __init__(self, minutes: float, warmup_steps: int = 100, floor: float = 0.03):
        self.budget, self.warmup_steps, self.floor = 60 * minutes, warmup_steps, floor
        self.spent, self.step, self.last = 0.0, 0, time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        # No step takes a minute: a job that was suspended has not spent the time.
        self.spent += min(now - self.last, 60.0)
        self.last, self.step = now, self.step + 1

    @property
    def done(self) -> bool:
        return self.spent >= self.budget

    def rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent / self.budget)))
        return warm * (cosine * (1 - self.floor) + self.floor)

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent, "step": self.step}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent, self.step, self.last = state["spent"], state["step"], time.monotonic()


def trapezoid(step: int, steps: int, warmup_steps: int, decay_share: float) -> float:
    """The learning rate's factor: up over `warmup_steps`, flat, down to 2 % over the last share of the run."""
    left = (steps - step) / max(1.0, decay_share * steps)
    return min(1.0, (step + 1) / warmup_steps, 0.02 + 0.98 * max(0.0, left))


class Averages:
    """Running sums of named numbers, emptied when read."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, **values: float) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def read(self) -> dict[str, float]:
        means = {name: round(total / max(1, self.count), 4) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


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


def read_part(folder: Path, name: str, key: str) -> dict[str, torch.Tensor]:
    """One state out of the checkpoint `folder/NAME.pt`. Raises FileNotFoundError that names the job to run."""
    path = folder / f"{name}.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train the {name} first")
    return torch.load(path, weights_only=True)[key]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.get("base_lr", group["lr"])
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * rate
