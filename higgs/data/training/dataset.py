"""Training data: a manifest and codes -> features for the collator, and batches in a resumable order."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import tokenize
from higgs.data.collator import Features, collate, count_positions, expand_audio_placeholders
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.training.codes import CodesReader
from higgs.data.training.manifest import DataError, Example, Manifest, Problem
from higgs.tokens import TokenIds


class Dataset:
    """Conversations with their codes. `dataset[i]` are features for `collate`; codes are read once here, for a hash of
    all that is trained on, and again on access.

    `manifest` lists the usable examples and all problems: also of records without codes, or of more than
    `max_positions`. Raises DataError for any problem, unless `leave_out`.
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
        if codes.num_codebooks not in (None, config.num_codebooks):  # None: conversations without audio
            raise ValueError(f"{codes.path} has {codes.num_codebooks} codebooks, the model {config.num_codebooks}")
        self.codes, self.tokenizer, self.config = codes, tokenizer, config
        self.ids, self.max_positions = TokenIds.of(tokenizer), max_positions
        self.positions: list[int] = []  # length of each example
        self.hashes: list[str] = []  # of each example's id, tokens, labels and codes
        problems = [problem for example in manifest.examples for problem in self._add(example)]
        self.manifest = manifest.without(problems)
        self.examples: Sequence[Example] = self.manifest.examples
        if self.manifest.problems and not leave_out:
            raise DataError(self.manifest)

    def _add(self, example: Example) -> list[Problem]:
        """-> the example's problems; without any, records its length and hash."""
        if missing := [key for key in dict.fromkeys(example.keys) if key not in self.codes]:
            return [Problem("no codes", example.place, f"{key} has no codes in {self.codes.path}") for key in missing]
        try:
            tokens = tokenize(example.sample, self.tokenizer)
        except KeyError as error:
            return [Problem("invalid record", example.place, error.args[0])]
        marks = sum(token in (self.ids.audio_in, self.ids.audio_out) for token in tokens.input_ids)
        if more := marks - len(example.keys):
            what = f"{example.id!r} has {more} tokens of audio in its text: audio is an entry of the content, not text"
            return [Problem("invalid record", example.place, what)]
        codes = [self.codes[key] for key in example.keys]
        positions = count_positions(tokens, [clip.shape[1] for clip in codes], self.config.num_codebooks)
        if positions > self.max_positions:
            what = f"{example.id!r} takes {positions} positions, at most {self.max_positions}"
            return [Problem("too long", example.place, what)]
        self.positions.append(positions)
        digest = hashlib.sha256(repr((example.id, tokens.input_ids, tokens.labels)).encode())
        for clip in codes:
            digest.update(f"{tuple(clip.shape)}".encode() + clip.short().numpy().tobytes())
        self.hashes.append(digest.hexdigest())
        return []

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Features:
        example = self.examples[index]
        codes = [self.codes[key] for key in example.keys]
        tokens = tokenize(example.sample, self.tokenizer)
        return expand_audio_placeholders(tokens, codes, self.ids, self.config, True)

    def subset(self, indices: Sequence[int]) -> "Dataset":
        subset = copy.copy(self)
        for name in ("examples", "positions", "hashes"):
            setattr(subset, name, [getattr(self, name)[index] for index in indices])
        return subset

    @property
    def fingerprint(self) -> str:
        """Differs for other examples, texts, tokens, codes or order."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()[:16]


class Batches:
    """An endless, resumable iterator over batches with labels; (seed, epoch) determines the order of each epoch.

    An epoch has every example once. Shuffled examples are sorted by length within pools of `pool` and batched, as many
    as fit into `max_positions` with padding; then the batches are shuffled.
    """

    def __init__(self, dataset: Dataset, max_positions: int, seed: int = 0, pool: int = 2048, round_to: int = 8):
        longest = max(dataset.positions, default=0)
        if not longest:
            raise ValueError("the dataset is empty")
        if longest + -longest % round_to > max_positions:
            size = f"{longest} positions (rounded up to a multiple of {round_to})"
            raise ValueError(f"the longest example takes {size}, and a batch holds {max_positions}")
        self.dataset = dataset
        options = {"seed": seed, "max_positions": max_positions, "pool": pool, "round_to": round_to}
        self.settings = options | {"dataset": dataset.fingerprint}
        self.epoch, self.done = 0, 0
        self._plan = self.plan(0)

    def plan(self, epoch: int) -> list[list[int]]:
        """The indices of the examples in each batch of an epoch."""
        max_positions, pool, round_to = (self.settings[name] for name in ("max_positions", "pool", "round_to"))

        def random_key(purpose: str, index: int) -> bytes:
            key = f"{self.settings['seed']} {epoch} {purpose} {self.dataset.examples[index].id}"
            return hashlib.blake2b(key.encode(), digest_size=16).digest()

        order = sorted(range(len(self.dataset)), key=lambda index: random_key("example", index))
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            batch: list[int] = []
            for index in sorted(order[start : start + pool], key=self.dataset.positions.__getitem__):
                length = self.dataset.positions[index]
                length += -length % round_to
                if batch and length * (len(batch) + 1) > max_positions:
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        return sorted(batches, key=lambda batch: random_key("batch", batch[0]))

    def __iter__(self) -> "Batches":
        return self

    def next_indices(self) -> list[int]:
        if self.done == len(self._plan):
            self.epoch, self.done = self.epoch + 1, 0
            self._plan = self.plan(self.epoch)
        self.done += 1
        return self._plan[self.done - 1]

    def __next__(self) -> Batch:
        examples = [self.dataset[index] for index in self.next_indices()]
        return collate(examples, self.dataset.ids, labels=True, round_to=self.settings["round_to"])

    def state_dict(self) -> dict[str, Any]:
        return self.settings | {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of other data or settings: the order would differ."""
        check_same_run(self.settings, state, "this state belongs to other batches")
        self.epoch, self.done = state["epoch"], state["done"]
        self._plan = self.plan(self.epoch)


def check_same_run(settings: dict[str, Any], saved: dict[str, Any], what: str, advice: str = "") -> None:
    """Raises ValueError naming the settings that differ from the saved ones."""
    changed = [name for name, value in settings.items() if saved.get(name) != value]
    if changed:
        changes = ", ".join(f"{name} was {saved.get(name)!r} and is {settings[name]!r}" for name in changed)
        raise ValueError(f"{what}: {changes}{advice}")
