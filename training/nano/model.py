"""Training the generation model on text and codes. `python -m training.nano.model --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import CodecConfig, ModelConfig
from higgs.data.text.lexicon import FILE as LEXICON
from higgs.data.text.lexicon import Lexicon
from higgs.data.text.tokenizer import TextTokenizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.train.checkpointing import save_state, warmup_stable_decay
from higgs.train.losses import corrupt, speech_losses
from training.corpus.shards import Shards
from training.corpus.voices import DESCRIBED
from training.nano.auxiliary_losses import AuxiliaryConfig, AuxiliaryLosses, initialise_from_codebooks, sampled_losses
from training.nano.byte_tokenizer import byte_tokenizer
from training.nano.conversations import LONG, SHORT, Corpus, Item, Limits, batches_of, make_batch, plan
from training.nano.job import Job, canonical, job_arguments
from training.nano.mel_autoencoder import trained_autoencoder
from training.nano.muon import Muon
from training.nano.sizes import NANO_CODEC, NANO_MODEL, NANO_PHRASES

SNAPSHOTS = "snapshots"
OTHERS = "others"  # held-out speakers of the validation set, cloned


@dataclass(frozen=True)
class TrainingConfig:
    """`lr` is Muon's (matrices inside the layers), `adam_lr` that of everything else."""

    lr: float = 4e-3
    adam_lr: float = 2e-3
    warmup_steps: int = 150
    decay_share: float = 0.3
    short_share: float = 0.8  # of the run, with short conversations only
    positions: int = 2600  # of a batch, padding included
    compile: bool = False  # the layers
    model: ModelConfig = NANO_MODEL
    codec: CodecConfig = NANO_CODEC
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()


def initialise(model: HiggsAudio) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0, 0.02)
    for layer in model.layers:
        for output in (layer.attention.o_proj, layer.text_ffn[1].down_proj, layer.audio_ffn[1].down_proj):
            output.weight.data.mul_(2 * (2 * len(model.layers)) ** -0.5)


class ModelJob(Job):
    """The model with its auxiliary losses; `epoch`, `taken` and `planned_at` are its position in the data.

    Beside its state it writes the weights of every `snapshot_every` steps in float16, which the report lets speak.
    """

    name = "model"
    sources: tuple[str, ...] = (LEXICON, "quantizer.pt")
    snapshot_every = 2000

    def __init__(
        self, folder: Path, corpus: Corpus, steps: int, seed: int = 0, config: TrainingConfig = TrainingConfig()
    ):
        super().__init__(folder, steps, seed)
        self.corpus, self.config = corpus, config
        self.model = HiggsAudio(config.model)
        initialise(self.model)
        if config.auxiliary.codebook_init:
            autoencoder = trained_autoencoder(folder, config.codec)
            initialise_from_codebooks(self.model, autoencoder.quantizer.quantizer)
        self.auxiliary = AuxiliaryLosses(self.model, config.auxiliary)
        self.model.to(self.device)
        self.auxiliary.to(self.device)
        self.parts = {"model": self.model, "auxiliary": self.auxiliary}
        self.optimizers = self.make_optimizers()
        self.validation = self.validation_batches()
        if config.compile:
            self.compile()
        self.epoch, self.taken, self.planned_at, self.frames = -1, 0, 0, 0
        self.batches: list[list[Item]] = []

    def compile(self) -> None:
        """Kernels depend on the first shape that is compiled: always the same one, or a resumed run would differ."""
        for layer in self.model.layers:
            layer.compile(dynamic=True)
        batch = self.validation[0][1]
        parts, _ = speech_losses(self.model, batch, batch, dtype=self.dtype)
        parts["codebooks"].sum().backward()
        self.model.zero_grad()
        with torch.no_grad():
            speech_losses(self.model, batch, batch, dtype=self.dtype)

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Muon for matrices inside layers, AdamW for embeddings, heads, norms and auxiliary losses."""
        inner = [p for p in self.model.layers.parameters() if p.dim() == 2]
        outer = [p for name, p in self.model.named_parameters() if p.dim() == 2 and not name.startswith("layers.")]
        rest = [p for p in self.model.parameters() if p.dim() < 2]
        rest += self.auxiliary.parameters()
        groups = [{"params": outer, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, lr=self.config.adam_lr, betas=(0.9, 0.95), fused=True)
        return {"muon": Muon(inner, self.config.lr, self.dtype), "adamw": adamw}

    def lr_factor(self) -> float:
        config = self.config
        return warmup_stable_decay(self.step, self.steps, config.warmup_steps, config.decay_share)

    def position(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("epoch", "taken", "planned_at", "frames")}

    @property
    def long_from(self) -> int:
        """The step at which an epoch of conversations of any length begins."""
        return round(self.config.short_share * self.steps)

    def next_batch(self) -> list[Item]:
        """Batches of an epoch are a function of the seed, the epoch and the step at which it began."""
        if not self.batches and self.epoch >= 0:
            self.plan_epoch()  # after a resume
        now_long = self.planned_at < self.long_from <= self.step
        if self.taken == len(self.batches) or now_long:
            self.epoch, self.taken, self.planned_at = self.epoch + 1, 0, self.step
            self.plan_epoch()
        self.taken += 1
        return self.batches[self.taken - 1]

    @property
    def limits(self) -> Limits:
        """Of the epoch's conversations."""
        return SHORT if self.planned_at < self.long_from else LONG

    def plan_epoch(self) -> None:
        seed, indices = self.seed * 1000 + self.epoch, self.corpus.shards.training
        self.batches = plan(self.corpus, indices, seed, self.config.positions, self.limits)

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        items = self.next_batch()
        config = self.config.auxiliary
        batch, alignment = (part.to(self.device) for part in make_batch(self.corpus, items, self.config.model))
        self.items = items
        inputs, labels = self.prepared(batch)
        parts, states = speech_losses(self.model, inputs, labels, self.dtype, sampled_losses(config.fine_share))
        weights = torch.tensor(config.codebook_weights, device=self.device)
        loss = (parts["codebooks"] * weights).sum() / weights.sum() + 0.1 * parts["text"]
        shown = {f"cb{k}": parts["codebooks"][k] for k in (0, 1, 7)} | {"text": parts["text"]}
        if config.character_layer is not None:
            state = states[config.character_layer + 1]
            with self.autocast():
                shown["characters"] = self.auxiliary.character_loss(state, batch, alignment)
            loss = loss + config.character_weight * shown["characters"]
        if config.attention_layers:
            shown["attention"] = self.auxiliary.attention_loss(alignment)
            loss = loss + config.attention_weight * shown["attention"]
        self.frames += int(batch.audio_out_mask.sum())
        return loss, shown

    def prepared(self, batch: Batch) -> tuple[Batch, Batch]:
        """-> what the model reads, and what it is to predict."""
        return corrupt(batch, self.config.auxiliary.input_noise, self.config.model.codebook_size), batch

    def shipped(self) -> dict[str, Any]:
        """The weights in float16, and what they are of."""
        weights = {name: tensor.half().cpu() for name, tensor in self.model.state_dict().items()}
        return {"record": self.record, "progress": {"step": self.step, **self.position()}, "model": weights}

    def after_step(self) -> None:
        if self.step % self.snapshot_every == 0:
            path = self.folder / SNAPSHOTS / f"model-{self.step:05d}.pt"
            path.parent.mkdir(exist_ok=True)
            save_state(path, **canonical(self.shipped()))

    def describe_batch(self) -> str:
        texts = [self.corpus.texts[i] for item in self.items for i in item.utterances]
        return f"; batch: {texts}"

    def validation_batches(self) -> list[tuple[str, Batch, Tensor]]:
        """(voice, batch, mask of positions that predict a loud frame of codebook 0 [B, S]), of the last audio only."""
        corpus, groups = self.corpus, {}
        first: dict[str, int] = {}
        for index in corpus.shards.validation:
            speaker = corpus.speakers[index]
            reference = first.setdefault(speaker, index)
            if speaker in DESCRIBED:
                groups.setdefault(speaker, []).append(corpus.plain(index))
            elif reference != index:
                groups.setdefault(OTHERS, []).append(corpus.cloned(index, reference))
        batches = []
        for voice, items in groups.items():
            items.sort(key=lambda item: item.positions)
            for some in batches_of(items, self.config.positions):
                batch, alignment = make_batch(corpus, some, self.config.model)
                loud = torch.zeros_like(alignment, dtype=torch.bool)
                for index, item in enumerate(some):
                    mask = corpus.loud(item.utterances[-1])
                    loud[index, (alignment[index] >= 0).nonzero()[-len(mask) :, 0]] = mask
                batches.append((voice, batch.to(self.device), loud.to(self.device)))
        return batches

    def validate(self) -> dict[str, Any]:
        """Loss of codebook 0 at loud frames with clean inputs, by voice, in nats; hours of speech trained on."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for voice, batch, loud in self.validation:
            with self.autocast():
                hidden, _ = self.model.hidden(batch)
                logits = self.model.audio_head(hidden[loud]).float()
            size = self.config.model.code_vocab_size
            targets = batch.code_labels[..., 0].roll(-1, 1)[loud]
            nats = torch.nn.functional.cross_entropy(logits[:, :size], targets, reduction="sum")
            sums[voice] = sums.get(voice, 0.0) + nats
            counts[voice] = counts.get(voice, 0) + int(loud.sum())
        means = {voice: round(float(sums[voice]) / counts[voice], 3) for voice in sums}
        return {"validation": means, "hours": round(self.frames / 25 / 3600, 2)}


def text_tokenizer(lexicon: Lexicon | None) -> TextTokenizer:
    phrases: Sequence[str] = (*NANO_PHRASES, *(lexicon.tokens if lexicon else ()))
    return TextTokenizer(byte_tokenizer(phrases), lexicon)


def train(doc: str, steps: int, corpus: type[Corpus], job: type[ModelJob], config: type[TrainingConfig]) -> None:
    """The command line of a job of the model, with its default number of steps."""
    arguments = job_arguments(doc, steps)
    texts = corpus(Shards(arguments.corpus), arguments.out, text_tokenizer(Lexicon.read(arguments.out)))
    job(arguments.out, texts, arguments.steps, arguments.seed, config(compile=not arguments.eager)).run()


if __name__ == "__main__":
    train(__doc__, 16_000, Corpus, ModelJob, TrainingConfig)
