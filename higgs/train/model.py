"""Training the generation model on text and codes. `python -m higgs.train.model --help`.

A run is a function of its seed: the learning rate depends on the step, batches on (seed, epoch), noise on (seed, step).
So a run that was killed and resumed gives the weights of one that was not.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.batch import Batch
from higgs.data.lexicon import Lexicon
from higgs.data.text import TextTokenizer, byte_tokenizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.train.conversations import HELD_OUT, Corpus, Item, make_batch, plan
from higgs.train.helps import HelpConfig, Helps, corrupt, initialise_from_codebooks
from higgs.train.losses import speech_losses
from higgs.train.nano import NANO_CODEC, NANO_MODEL, NANO_PHRASES
from higgs.train.optimizer import Optimizer
from higgs.train.schedule import Averages, load_state, log, save_state, trapezoid
from higgs.train.shards import Shards, split
from higgs.train.teacher import trained_teacher

SAVE_SECONDS = 240


@dataclass(frozen=True)
class TrainingConfig:
    """`rate` is Muon's (matrices inside the layers), `adam_rate` that of everything else."""

    steps: int = 12_000
    seed: int = 0
    rate: float = 4e-3
    adam_rate: float = 2e-3
    warmup_steps: int = 150
    decay_share: float = 0.3
    positions: int = 2600  # of a batch, padding included
    compile: bool = False  # the layers: two minutes once, then a third quicker
    helps: HelpConfig = HelpConfig()


def losses(
    model: HiggsAudio, helps: Helps, batch: Batch, spoken: Tensor, noise: float
) -> dict[str, Tensor]:
    """-> text loss, codebook losses [K], and those of the helps."""
    config = helps.config
    inputs = corrupt(batch, noise, model.config.codebook_size) if noise else batch
    share = config.fine_share if noise else 1.0
    parts, states = speech_losses(model, inputs, batch, share)
    if config.character_layer is not None:
        state = states[config.character_layer + 1]
        parts["characters"] = helps.character_loss(state, batch, spoken)
    if config.attention_layers:
        parts["attention"] = helps.attention_loss(spoken)
    return parts


def total(parts: dict[str, Tensor], config: HelpConfig) -> Tensor:
    weights = torch.tensor(config.codebook_weights)
    loss = (parts["codebooks"] * weights).sum() / weights.sum() + 0.1 * parts["text"]
    if "attention" in parts:
        loss = loss + config.attention_weight * parts["attention"]
    if "characters" in parts:
        loss = loss + config.character_weight * parts["characters"]
    return loss


def initialise(model: HiggsAudio) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0, 0.02)
    for layer in model.layers:
        scale = (2 * len(model.layers)) ** -0.5
        for last in (
            layer.attention.o_proj,
            layer.text_ffn[1].down_proj,
            layer.audio_ffn[1].down_proj,
        ):
            last.weight.data.mul_(scale * 2)


class Training:
    """One run: the model, what helps it, and how far it is. `folder/model.pt` holds all of it."""

    def __init__(self, folder: Path, corpus: Corpus, config: TrainingConfig):
        torch.manual_seed(config.seed)
        self.folder, self.corpus, self.config = folder, corpus, config
        self.train_on, held_out = split(len(corpus.texts), HELD_OUT)
        self.checks = [
            make_batch(corpus, items, NANO_MODEL)
            for items in plan(corpus, held_out, 0, config.positions)[:6]
        ]
        self.model = HiggsAudio(NANO_MODEL)
        initialise(self.model)
        if config.helps.codebook_init:
            teacher = trained_teacher(folder, NANO_CODEC)
            initialise_from_codebooks(self.model, teacher.quantizer.quantizer)
        self.helps = Helps(self.model, config.helps)
        if config.compile:
            for layer in self.model.layers:
                layer.compile(dynamic=True)
        self.optimizer = Optimizer(self.model, self.helps, config.rate, config.adam_rate)
        self.step, self.epoch, self.taken = 0, 0, 0
        self.seconds, self.hours, self.averages = 0.0, 0.0, Averages()

    @property
    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "helps": self.helps, "optimizer": self.optimizer}

    def resume(self) -> None:
        if state := load_state(self.folder / "model.pt"):
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            vars(self).update(state["progress"])

    def start_from(self, source: Path) -> None:
        """Takes the weights of a finished checkpoint; the optimiser and what helps start anew.

        Raises ValueError for one of other sizes, or one whose text tokens are not those of this corpus.
        """
        given = HiggsAudio.from_pretrained(source)
        if given.config != NANO_MODEL:
            raise ValueError(f"{source} is {given.config}; to go on from it takes {NANO_MODEL}")
        theirs, ours = TextTokenizer.from_pretrained(source), self.corpus.tokenizer
        same_tokens = theirs.backend.get_vocab() == ours.backend.get_vocab()
        if not same_tokens or theirs.lexicon != ours.lexicon:
            raise ValueError(
                f"{source} reads text in another way: copy its lexicon.json, if it has one, to {self.folder}, "
                "and delete aligned.pt there"
            )
        self.model.load_state_dict(given.state_dict())

    def save(self) -> None:
        names = ("step", "epoch", "taken", "seconds", "hours")
        progress = {name: getattr(self, name) for name in names}
        states = {name: part.state_dict() for name, part in self.parts.items()}
        save_state(self.folder / "model.pt", **states, progress=progress)

    def advance(self, items: list[Item]) -> None:
        """One step. Raises FloatingPointError naming the texts of a batch whose loss is not a number."""
        config, helps = self.config, self.config.helps
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        batch, spoken = make_batch(self.corpus, items, NANO_MODEL)
        self.optimizer.set_rate(
            trapezoid(self.step, config.steps, config.warmup_steps, config.decay_share)
        )
        parts = losses(self.model, self.helps, batch, spoken, helps.input_noise)
        loss = total(parts, helps)
        if not torch.isfinite(loss):
            texts = [self.corpus.texts[i] for item in items for i in item.utterances]
            raise FloatingPointError(f"step {self.step}: the loss is {loss.item()}; batch: {texts}")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step, self.taken = self.step + 1, self.taken + 1
        self.hours += float(batch.audio_out_mask.sum()) / 25 / 3600
        books = parts.pop("codebooks").detach()
        shown = {name: part.detach() for name, part in parts.items()}
        self.averages.add(cb0=books[0], cb1=books[1], cb7=books[7], **shown)

    def report(self) -> None:
        """Every 100 steps the losses of training, every 1000 those of held-out speech by codebook."""
        row: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds)}
        if self.step % 100 == 0:
            row |= {"hours": round(self.hours, 2)} | self.averages.read()
        if self.step % 1000 == 0 or self.step == self.config.steps:
            with torch.no_grad():
                held = [
                    losses(self.model, self.helps, b, s, 0.0)["codebooks"] for b, s in self.checks
                ]
            row["held_out"] = [round(float(x), 3) for x in torch.stack(held).mean(0)]
        if len(row) > 2:
            log(self.folder / "model.jsonl", **row)

    def run(self, stop_after: int | None = None) -> HiggsAudio:
        """Trains to the last step (or to step `stop_after`), saving every four minutes and at the end."""
        stop = min(self.config.steps, stop_after or self.config.steps)
        batches: Sequence[list[Item]] = []
        saved = self.seconds
        with tqdm(total=stop, initial=self.step, unit="step", mininterval=10) as bar:
            while self.step < stop:
                started = time.monotonic()
                if not batches or self.taken == len(batches):
                    if batches:
                        self.epoch, self.taken = self.epoch + 1, 0
                    seed = self.config.seed * 1000 + self.epoch
                    batches = plan(self.corpus, self.train_on, seed, self.config.positions)
                self.advance(batches[self.taken])
                self.seconds += time.monotonic() - started
                self.report()
                bar.update()
                if self.seconds - saved > SAVE_SECONDS or self.step == stop:
                    saved = self.seconds
                    self.save()
        return self.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=Path("training/out/corpus"))
    parser.add_argument("--out", type=Path, default=Path("training/out"))
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps)
    parser.add_argument("--seed", type=int, default=TrainingConfig.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without compiling (no C++ compiler)")
    parser.add_argument("--plain", action="store_true", help="without the helps")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        help="folder of a finished model whose weights to start with",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plain = HelpConfig(False, (), 0.0, None, 0.0, 0.0, (1,) * 8, 1.0)
    helps = plain if arguments.plain else HelpConfig()
    lexicon = Lexicon.read(arguments.out)
    phrases = (*NANO_PHRASES, *(lexicon.tokens if lexicon else ()))
    tokenizer = TextTokenizer(byte_tokenizer(phrases), lexicon)
    corpus = Corpus(Shards(arguments.corpus), arguments.out / "codes.pt", tokenizer)
    config = TrainingConfig(
        arguments.steps, arguments.seed, helps=helps, compile=not arguments.eager
    )
    training = Training(arguments.out, corpus, config)
    if arguments.source and not (arguments.out / "model.pt").is_file():
        training.start_from(arguments.source)
    training.resume()
    training.run()


if __name__ == "__main__":
    main()
