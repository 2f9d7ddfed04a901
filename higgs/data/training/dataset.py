"""Training data: a manifest and codes -> rows for the collator, and batches in an order that can be taken up again."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import tokenize
from higgs.data.collator import Row, collate, count_positions, spread
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.training.codes import CodesReader
from higgs.data.training.manifest import DataError, Example, Manifest, Problem
from higgs.tokens import TokenIds


class Dataset:
    """Conversations with their codes. `dataset[i]` is a row for `collate`; codes are read when it is asked for.

    `manifest` has what is left of the examples, and names the rows that cannot be used: wrong, or without codes, or of
    more than `max_positions`. Raises DataError for any, unless `leave_out` says to go on without them.
    """

    def __init__(
        self,
        manifest: Manifest,
        codes: CodesReader,
        tokenizer: TextTokenizer,
        config: ModelConfig,
        max_positions: int = 4096,
        leave_out: bool = False,
    ):
        if codes.num_codebooks != config.num_codebooks:
            raise ValueError(f"{codes.path} has {codes.num_codebooks} codebooks, the model {config.num_codebooks}")
        self.codes, self.tokenizer, self.config = codes, tokenizer, config
        self.ids, self.max_positions = TokenIds.of(tokenizer), max_positions
        self.positions: list[int] = []  # of each example: what it costs
        self.hashes: list[str] = []  # of all that it consists of
        problems = [problem for e in manifest.examples for problem in self._look_at(e)]
        self.manifest = manifest.without(problems)
        self.examples: Sequence[Example] = self.manifest.examples
        if self.manifest.problems and not leave_out:
            raise DataError(self.manifest)

    def _look_at(self, example: Example) -> list[Problem]:
        """What is wrong with the example; if nothing is, its length and its hash are filed."""
        if missing := self.codes.missing(dict.fromkeys(example.keys)):
            told = [f"{key} has no codes in {self.codes.path}" for key in missing]
            return [Problem("no codes", example.place, what) for what in told]
        try:
            tokens = tokenize(example.sample, self.tokenizer)
        except KeyError as error:
            return [Problem("wrong row", example.place, error.args[0])]
        frames = [self.codes.frames[key] for key in example.keys]
        positions = count_positions(tokens, frames, self.config.num_codebooks)
        if positions > self.max_positions:
            what = f"{example.id!r} takes {positions} positions, at most {self.max_positions}"
            return [Problem("too long", example.place, what)]
        self.positions.append(positions)
        told = repr((example.id, tokens.input_ids, tokens.labels, example.keys, frames))
        self.hashes.append(hashlib.sha256(told.encode()).hexdigest())
        return []

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Row:
        sample = self.examples[index].sample
        codes: list[Tensor] = [self.codes[key] for key in self.examples[index].keys]
        return spread(tokenize(sample, self.tokenizer), codes, self.ids, self.config, True)

    def part(self, indices: Sequence[int]) -> "Dataset":
        """-> those examples alone."""
        part = copy.copy(self)
        for name in ("examples", "positions", "hashes"):
            setattr(part, name, [getattr(self, name)[index] for index in indices])
        return part

    @property
    def fingerprint(self) -> str:
        """Another one for other examples, texts, tokens or keys of codes, and for another order."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()[:16]


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
            for index in sorted(order[start : start + settings["pool"]], key=self.dataset.positions.__getitem__):
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

    def draw(self) -> list[int]:
        """-> the examples of the next batch."""
        if self.done == len(self._plan):
            self.epoch, self.done = self.epoch + 1, 0
            self._plan = self.plan(self.epoch)
        self.done += 1
        return self._plan[self.done - 1]

    def __next__(self) -> Batch:
        rows = [self.dataset[index] for index in self.draw()]
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
