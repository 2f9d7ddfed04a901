"""The loop that the jobs share.

A job is a function of its seed and its number of steps: the learning rate depends on the step, the random numbers of a
step on (seed, step). So a job that was killed and resumed ends with the same bytes as one that was not. That holds for
one kind of processor: another rounds differently, and may compute in another number format. Format, threads and torch's
version are in the record of each checkpoint; a job is resumed in the format in which it began. The record has hashes of
the results of other jobs, too, that this one uses: with others it is another run.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.data.training.dataset import check_same_run
from higgs.files import replacing, sha256
from higgs.train.checkpointing import load_state, log, read_log, save_state
from higgs.train.losses import autocast, best_dtype

OUT = Path("training/out")
CORPUS = OUT / "corpus"


def warmup_cosine(step: int, steps: int, warmup_steps: int = 100, floor: float = 0.03) -> float:
    """The learning rate's factor: up over `warmup_steps`, then half a cosine down to `floor`."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / warmup_steps) * (cosine * (1 - floor) + floor)


def hashes(folder: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Of files; None for one that is not there."""
    return {name: sha256(folder / name)[:16] if (folder / name).is_file() else None for name in names}


class Job:
    """One run: `folder/NAME.pt` is its whole state, `folder/NAME.jsonl` its log.

    A subclass defines `parts` (whatever has a state), `optimizers` and `losses`, and overrides what it needs.
    """

    name = "job"
    sources: tuple[str, ...] = ()  # files of `folder` that the result depends on
    max_norm = 1.0  # of the gradient
    log_every, validate_every = 100, 1000  # steps
    save_seconds = 180
    device = "cpu"
    compiled = True

    def __init__(self, folder: Path, steps: int, seed: int = 0):
        torch.manual_seed(seed)
        self.folder, self.steps, self.seed = folder, steps, seed
        self.step, self.seconds = 0, 0.0
        self.averages: dict[str, Any] = {"sums": {}, "count": 0}  # of the values to log since the last row
        self.key: dict[str, Any] = {"steps": steps, "seed": seed, "compiled": self.compiled}
        self.key |= hashes(folder, self.sources)
        self.saved = load_state(self.path)
        self.dtype = getattr(torch, self.saved["record"]["dtype"]) if self.saved else best_dtype(self.device)
        self.parts: dict[str, Any] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def record(self) -> dict[str, Any]:
        """What the result depends on, beside the code."""
        return self.key | {
            "steps": self.steps,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }

    def lr_factor(self) -> float:
        return warmup_cosine(self.step, self.steps)

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """-> the loss of this step, and the values to log."""
        raise NotImplementedError

    def after_step(self) -> None:
        pass

    def describe_batch(self) -> str:
        return ""

    def validate(self) -> dict[str, Any]:
        return {}

    def position(self) -> dict[str, int]:
        """Attributes that say where in its data the job is; saved and restored."""
        return {}

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)

    def save(self) -> None:
        parts = self.parts | self.optimizers
        state = {
            "record": self.record,
            "progress": {"step": self.step, **self.position()},
            "averages": self.averages,
            **{name: part.state_dict() for name, part in parts.items()},
        }
        save_state(self.path, **canonical(state))

    def resume(self) -> None:
        """Restores the checkpoint, if any, and drops later rows of the log. Raises ValueError for another run's."""
        if self.saved is None:
            return
        what, advice = f"{self.path} is of another run", "; delete it to train again"
        check_same_run(self.key, self.saved["record"], what, advice)
        for name, part in (self.parts | self.optimizers).items():
            part.load_state_dict(self.saved[name])
        self.averages = self.saved["averages"]
        vars(self).update(self.saved["progress"])
        self.saved = None
        path = self.folder / f"{self.name}.jsonl"
        rows = [row for row in read_log(path) if row["step"] <= self.step] if path.exists() else []
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def advance(self) -> None:
        """One step. Raises FloatingPointError, before anything has changed, where the loss is not a number."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        factor = self.lr_factor()
        for group in (g for o in self.optimizers.values() for g in o.param_groups):
            group["lr"] = group.setdefault("base_lr", group["lr"]) * factor
        loss, shown = self.losses()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {self.step}: the loss is {loss.item()}{self.describe_batch()}")
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        parameters = [p for o in self.optimizers.values() for g in o.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.step += 1
        self.after_step()
        sums, self.averages["count"] = self.averages["sums"], self.averages["count"] + 1
        for name, value in shown.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())

    def report(self) -> None:
        last = self.step == self.steps
        row: dict[str, Any] = {}
        if self.step % self.log_every == 0 or last:
            row |= {name: round(total / self.averages["count"], 4) for name, total in self.averages["sums"].items()}
            self.averages = {"sums": {}, "count": 0}
        if self.step % self.validate_every == 0 or last:
            with torch.no_grad():
                row |= self.validate()
        if row:
            about = {"step": self.step, "seconds": round(self.seconds)}
            log(self.folder / f"{self.name}.jsonl", **about, **row)

    def run(self, stop_after: int | None = None) -> None:
        """Trains to the last step (or to step `stop_after`), saving every few minutes and at the end."""
        self.resume()
        stop = min(self.steps, stop_after or self.steps)
        saved = self.seconds
        with tqdm(total=stop, initial=self.step, unit="step", mininterval=10) as bar:
            while self.step < stop:
                started = time.monotonic()
                self.advance()
                self.seconds += time.monotonic() - started
                self.report()
                bar.update()
                if self.seconds - saved > self.save_seconds or self.step == stop:
                    saved = self.seconds
                    self.save()


def canonical(value: Any) -> Any:
    """The same content in new containers, and strings interned: equal states become equal bytes in a pickle."""
    if isinstance(value, dict):
        return {canonical(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([canonical(item) for item in value])
    return sys.intern(value) if isinstance(value, str) else value


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """The checkpoint `folder/NAME.pt`. Raises FileNotFoundError that names the job to run."""
    path = folder / f"{name}.pt"
    if (state := load_state(path)) is None:
        raise FileNotFoundError(f"{path} is missing: train the {name} first")
    return state


def read_part(folder: Path, name: str, key: str) -> dict[str, Tensor]:
    """One part of that checkpoint."""
    return read_state(folder, name)[key]


def check_parts(folder: Path, names: Sequence[str]) -> None:
    """Raises ValueError where a job is not finished, or has begun with other files than those in `folder`.

    A run on a GPU, which cannot be resumed, is taken as far as it came.
    """
    for name in names:
        state = read_state(folder, name)
        record, step = state["record"], state["progress"]["step"]
        if step < record["steps"] and "device" not in record:
            raise ValueError(f"{folder / name}.pt is at step {step} of {record['steps']}: train it to its end")
        sources = [source for source in record if (folder / source).is_file()]
        check_same_run(hashes(folder, sources), record, f"{folder / name}.pt was made from other files")


def job_arguments(doc: str, steps: int, jobs: Sequence[str] = (), **sizes: int) -> argparse.Namespace:
    """Parses the command line of a job: the common options, `jobs` to choose from, and `sizes` with their defaults.

    Limits torch to one thread, because another number of threads rounds differently.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    if jobs:
        parser.add_argument("job", choices=jobs)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--eager", action="store_true", help="without compiling (no C++ compiler)")
    for name, default in {"steps": steps, "seed": 0, **sizes}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    Job.compiled = not arguments.eager
    return arguments
