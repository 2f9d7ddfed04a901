"""Training data: a manifest and codes -> rows for the collator, and batches in an order that can be taken up again."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import tokenize
from higgs.data.collator import Row, collate, count_positions, spread
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.training.codes import CodesReader
from higgs.data.training.manifest import Example, Problem, Report, read_manifest
from higgs.tokens import TokenIds


class DataError(ValueError):
    """Rows of a manifest that cannot be used; `report` lists them all."""

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


class Dataset:
    """Conversations with their codes. `dataset[i]` is a row for `collate`; codes are read when it is asked for.

    `report` counts the rows and names those that cannot be used: wrong, or without codes, or of more than
    `max_positions`. Raises DataError for any, unless `leave_out` says to go on without them.
    """

    def __init__(
        self,
        manifest: str | Path,
        codes: CodesReader,
        tokenizer: TextTokenizer,
        config: ModelConfig,
        max_positions: int = 4096,
        leave_out: bool = False,
        allow_special: bool = False,
    ):
        if codes.num_codebooks != config.num_codebooks:
            raise ValueError(
                f"{codes.path} has {codes.num_codebooks} codebooks, the model {config.num_codebooks}"
            )
        self.folder = Path(manifest).parent
        self.codes, self.tokenizer, self.config = codes, tokenizer, config
        self.ids, self.max_positions = TokenIds.of(tokenizer), max_positions
        examples, report = read_manifest(manifest, allow_special)
        self.examples: list[Example] = []
        self.positions: list[int] = []  # of each example: what it costs
        problems = list(report.problems)
        for example in examples:
            if found := self._look_at(example):
                problems += found
        self.report = Report(report.rows, tuple(problems))
        if problems and not leave_out:
            raise DataError(self.report)

    def _look_at(self, example: Example) -> list[Problem]:
        """Files the example if it can be used; else what is wrong with it."""
        if missing := self.codes.missing(dict.fromkeys(example.names)):
            return [self._without_codes(name, example.place) for name in missing]
        frames = [self.codes.frames[name] for name in example.names]
        tokens = tokenize(example.sample, self.tokenizer)
        positions = count_positions(tokens, frames, self.config.num_codebooks)
        if positions > self.max_positions:
            what = f"{example.id!r} takes {positions} positions, at most {self.max_positions}"
            return [Problem("too long", example.place, what)]
        self.examples.append(example)
        self.positions.append(positions)
        return []

    def _without_codes(self, name: str, place: str) -> Problem:
        if (self.folder / name.split("#t=")[0]).is_file():
            return Problem("not encoded", place, f"{name} has no codes in {self.codes.path} yet")
        what = f"{name} has no codes in {self.codes.path}, and is no file in {self.folder}"
        return Problem("missing audio", place, what)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:
        sample = self.examples[index].sample
        codes: list[Tensor] = [self.codes[name] for name in self.examples[index].names]
        return spread(tokenize(sample, self.tokenizer), codes, self.ids, self.config, True)

    @property
    def fingerprint(self) -> str:
        """Another one for other examples, in another order, or of other lengths."""
        rows = zip(self.examples, self.positions, strict=True)
        written = "\n".join(f"{example.id}\t{positions}" for example, positions in rows)
        return hashlib.sha256(written.encode()).hexdigest()[:16]


class Batches:
    """Batches with labels, without end: epoch after epoch, each in an order that (seed, epoch) decides.

    An epoch has every example once. Conversations of like length come together, as many as `max_positions` holds with
    their padding: the shuffled examples are sorted by length within pools of `pool`, and the batches shuffled again.
    `state_dict` says how far it is; after `load_state_dict` exactly the batches follow that would have followed.
    """

    def __init__(
        self,
        dataset: Dataset,
        max_positions: int,
        seed: int = 0,
        pool: int = 2048,
        round_to: int = 8,
    ):
        longest = max(dataset.positions, default=0)
        if not longest:
            raise ValueError("the dataset is empty")
        if longest + -longest % round_to > max_positions:
            raise ValueError(
                f"the longest example takes {longest} positions (rounded up to a multiple of {round_to}), and a batch "
                f"holds {max_positions}"
            )
        self.dataset, self.round_to = dataset, round_to
        self.settings = {
            "seed": seed,
            "max_positions": max_positions,
            "pool": pool,
            "round_to": round_to,
            "dataset": dataset.fingerprint,
        }
        self.epoch, self.done = 0, 0
        self._plan = self.plan(0)

    def plan(self, epoch: int) -> list[list[int]]:
        """The examples of each batch of an epoch."""
        settings = self.settings

        def drawn(purpose: str, index: int) -> bytes:
            """A number that orders at random, and for ever the same."""
            key = f"{settings['seed']} {epoch} {purpose} {self.dataset.examples[index].id}"
            return hashlib.blake2b(key.encode(), digest_size=16).digest()

        order = sorted(range(len(self.dataset)), key=lambda index: drawn("example", index))
        batches: list[list[int]] = []
        for start in range(0, len(order), settings["pool"]):
            batch: list[int] = []
            for index in sorted(
                order[start : start + settings["pool"]], key=self.dataset.positions.__getitem__
            ):
                length = self.dataset.positions[index]
                length += -length % self.round_to
                if batch and length * (len(batch) + 1) > settings["max_positions"]:
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        return sorted(batches, key=lambda batch: drawn("batch", batch[0]))

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self.done == len(self._plan):
            self.epoch, self.done = self.epoch + 1, 0
            self._plan = self.plan(self.epoch)
        rows = [self.dataset[index] for index in self._plan[self.done]]
        self.done += 1
        return collate(rows, self.dataset.ids, labels=True, round_to=self.round_to)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings: JSON can hold it."""
        return self.settings | {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of other data or settings: the order would be another."""
        if other := [name for name, value in self.settings.items() if state.get(name) != value]:
            told = ", ".join(f"{n} was {state.get(n)!r} and is {self.settings[n]!r}" for n in other)
            raise ValueError(f"this state belongs to other batches: {told}")
        self.epoch, self.done = state["epoch"], state["done"]
        self._plan = self.plan(self.epoch)
