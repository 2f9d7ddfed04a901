"""Training the generation model on text and codes. `python -m higgs.train.model --help`."""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import (
    QUIET_ROOM,
    AudioContent,
    ChatMLSample,
    Message,
    dialogue,
    smart_voice,
    tokenize,
    voice_clone,
)
from higgs.data.collator import collate, spread
from higgs.data.text import TextTokenizer, byte_tokenizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.tokens import TokenIds
from higgs.train.align import spoken_byte
from higgs.train.helps import HelpConfig, Helps, corrupt, initialise_from_codebooks
from higgs.train.nano import NANO_CODEC, NANO_MODEL, NANO_PHRASES
from higgs.train.schedule import Averages, Clock, load_state, log, save_state, set_rate
from higgs.train.shards import Shards, split
from higgs.train.teacher import trained_teacher

HELD_OUT = 200
POSITIONS = 2600  # per batch, padding included
DESCRIBED = {"ada": "feminine", "ben": "masculine"}
MAX_REFERENCE_FRAMES = 75


@dataclass(frozen=True)
class Item:
    """One training conversation: utterances in the order of its audios, and the text that holds each."""

    sample: ChatMLSample
    utterances: tuple[int, ...]
    positions: int


def coarse_speaker(name: str) -> str:
    """Speakers drawn at random (`p0.87f0.96`) are rarely drawn twice: those of like pitch and formants count as one."""
    if name in DESCRIBED:
        return name
    pitch, formant = name.removeprefix("p").split("f")
    return f"p{round(float(pitch) * 16)}f{round(float(formant) * 25)}"


class Corpus:
    """Texts, codes and alignments of all utterances."""

    def __init__(self, shards: Shards, codes_path: Path, tokenizer: TextTokenizer):
        stored = torch.load(codes_path, weights_only=True)
        self.texts = [u.text for u in shards.utterances]
        self.speakers = [coarse_speaker(u.speaker) for u in shards.utterances]
        self.codes = stored["codes"]
        aligned = codes_path.with_name("aligned.pt")
        if not aligned.exists() or aligned.stat().st_mtime < codes_path.stat().st_mtime:
            pairs = zip(stored["posteriors"], self.texts, strict=True)
            rows = [
                torch.from_numpy(spoken_byte(p.float().numpy(), text).astype(np.int16))
                for p, text in tqdm(pairs, desc="align", total=len(self.texts), mininterval=10)
            ]
            save_state(aligned, rows=rows)
        self.aligned = torch.load(aligned, weights_only=True)["rows"]
        self.tokenizer = tokenizer
        self.ids = TokenIds.of(tokenizer)
        self.by_speaker: dict[str, list[int]] = {}
        for index in range(len(self.texts) - HELD_OUT):
            self.by_speaker.setdefault(self.speakers[index], []).append(index)

    def item(self, index: int, rng: random.Random) -> Item:
        """A conversation that ends in this utterance, in a form that the product renders."""
        text, speaker, draw = self.texts[index], self.speakers[index], rng.random()
        others = self.by_speaker.get(speaker, [])
        if speaker in DESCRIBED and draw < 0.62:
            scene = QUIET_ROOM if rng.random() < 0.2 else None
            described = DESCRIBED[speaker] if speaker != "ada" or rng.random() < 0.3 else None
            sample, utterances = smart_voice(text, scene, described), (index,)
        elif speaker in DESCRIBED and draw < 0.72:
            other = "ben" if speaker == "ada" else "ada"
            second = rng.choice(self.by_speaker[other])
            order = {"ada": 0, "ben": 1}
            lines = [(order[speaker], text), (order[other], self.texts[second])]
            described = {order[name]: word for name, word in DESCRIBED.items()}
            sample, utterances = dialogue(lines, described), (index, second)
        else:
            others = [i for i in rng.sample(others, k=min(6, len(others))) if i != index]
            short = [i for i in others if self.codes[i].shape[1] <= MAX_REFERENCE_FRAMES]
            if not others:
                return self.item(rng.choice(self.by_speaker["ada"]), rng)
            reference = (short or others)[0]
            scene = QUIET_ROOM if rng.random() < 0.3 else None
            sample = voice_clone(text, self.texts[reference], AudioContent(), scene)
            utterances = (reference, index)
        size = sum(len(self.texts[i]) + self.codes[i].shape[1] for i in utterances)
        return Item(sample, utterances, size + 55 * len(utterances))

    def row(self, item: Item, config: ModelConfig) -> dict[str, Tensor]:
        """-> the conversation's tensors, with `spoken`: the position of the byte spoken at each position, or -1."""
        answer = Message("assistant", AudioContent())
        tokens = tokenize(ChatMLSample([*item.sample.messages, answer]), self.tokenizer)
        codes = [self.codes[i] for i in item.utterances]
        together = len(item.sample.audios) + 1 < len(codes)  # a dialogue is one segment
        row = spread(
            tokens, [torch.cat(codes, dim=1)] if together else codes, self.ids, config, True
        )
        row["spoken"] = self.spoken(row, item, together)
        return row

    def spoken(self, row: dict[str, Tensor], item: Item, together: bool) -> Tensor:
        ids, spoken = row["input_ids"], torch.full_like(row["input_ids"], -1)
        audio = (ids == self.ids.audio_out).nonzero()[:, 0]
        content = ids.tolist()
        # Segments are runs of the placeholder; column j of a segment predicts frame j of codebook 0.
        breaks = (audio.diff() > 1).nonzero()[:, 0] + 1
        segments = list(audio.tensor_split(breaks.tolist()))
        starts = [int(segment[0]) for segment in segments]
        search, at = 0, starts[0]
        for number, index in enumerate(item.utterances):
            wanted = self.tokenizer.encode(self.texts[index])
            place = find(content, wanted, search)
            search = place + len(wanted)
            aligned = place + self.aligned[index].long()
            if not together:
                at = starts[number]
            spoken[at : at + len(aligned)] = aligned
            at += len(aligned)
        return spoken


def find(content: list[int], wanted: list[int], start: int) -> int:
    for place in range(start, len(content) - len(wanted) + 1):
        if content[place : place + len(wanted)] == wanted:
            return place
    raise ValueError("the text of an utterance is not in its conversation")


def plan(corpus: Corpus, indices: range, seed: int) -> list[list[Item]]:
    """One epoch: conversations of like length together, at most POSITIONS in a batch, batches shuffled."""
    rng = random.Random(seed)
    items = sorted((corpus.item(i, rng) for i in indices), key=lambda item: item.positions)
    batches: list[list[Item]] = [[]]
    for item in items:
        if (len(batches[-1]) + 1) * item.positions > POSITIONS and batches[-1]:
            batches.append([])
        batches[-1].append(item)
    rng.shuffle(batches)
    return batches


def make_batch(corpus: Corpus, items: list[Item], config: ModelConfig) -> tuple[Batch, Tensor]:
    rows = [corpus.row(item, config) for item in items]
    batch = collate(rows, corpus.ids, labels=True)
    spoken = torch.full_like(batch.input_ids, -1)
    for index, row in enumerate(rows):
        spoken[index, : len(row["spoken"])] = row["spoken"]
    return batch, spoken


def losses(
    model: HiggsAudio, helps: Helps, batch: Batch, spoken: Tensor, noise: float
) -> dict[str, Tensor]:
    """-> text loss, codebook losses [K], and those of the helps; heads run only where something is predicted."""
    config = helps.config
    inputs = corrupt(batch, noise, model.config.codebook_size) if noise else batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, states = model.hidden(inputs)
        text_labels, code_labels = batch.labels[:, 1:], batch.code_labels[:, 1:]
        text_rows, code_rows = text_labels >= 0, (code_labels >= 0).any(-1)
        text_logits = model.text_head(hidden[:, :-1][text_rows])
        code_logits = model.audio_head(hidden[:, :-1][code_rows])
        parts = {}
        if config.character_layer is not None:
            parts["characters"] = helps.character_loss(
                states[config.character_layer + 1], batch, spoken
            )
    targets = code_labels[code_rows]
    # Flat: a strided softmax over the codebook axis is twice as slow on a CPU.
    each = torch.nn.functional.cross_entropy(
        code_logits.float().view(-1, model.config.code_vocab_size),
        targets.reshape(-1),
        reduction="none",
        ignore_index=-100,
    ).view(targets.shape)
    parts["codebooks"] = each.sum(0) / (targets >= 0).sum(0)
    parts["text"] = torch.nn.functional.cross_entropy(text_logits.float(), text_labels[text_rows])
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


def optimizer_for(model: HiggsAudio, helps: Helps, rate: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() < 2] + list(helps.parameters())
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


class Training:
    """One run: the model, what helps it, and how far it is. `folder/model.pt` holds all of it."""

    def __init__(self, folder: Path, corpus: Corpus, clock: Clock, rate: float, config: HelpConfig):
        torch.manual_seed(0)
        self.folder, self.corpus, self.clock = folder, corpus, clock
        self.train_on, held_out = split(len(corpus.texts), HELD_OUT)
        self.checks = [
            make_batch(corpus, items, NANO_MODEL) for items in plan(corpus, held_out, 0)[:6]
        ]
        self.model = HiggsAudio(NANO_MODEL)
        initialise(self.model)
        if config.codebook_init:
            teacher = trained_teacher(folder, NANO_CODEC)
            initialise_from_codebooks(self.model, teacher.quantizer.quantizer)
        self.helps = Helps(self.model, config)
        self.optimizer = optimizer_for(self.model, self.helps, rate)
        self.averages, self.hours = Averages(), 0.0

    @property
    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "helps": self.helps,
            "optimizer": self.optimizer,
            "clock": self.clock,
        }

    def resume(self) -> None:
        if state := load_state(self.folder / "model.pt"):
            for name, part in self.parts.items():
                part.load_state_dict(state[name])

    def save(self) -> None:
        save_state(
            self.folder / "model.pt", **{k: part.state_dict() for k, part in self.parts.items()}
        )

    def step(self, batch: Batch, spoken: Tensor) -> None:
        config = self.helps.config
        set_rate(self.optimizer, self.clock.rate())
        parts = losses(self.model, self.helps, batch, spoken, config.input_noise)
        self.optimizer.zero_grad()
        total(parts, config).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.clock.tick()
        self.hours += float(batch.audio_out_mask.sum()) / 25 / 3600
        books = parts.pop("codebooks").detach()
        shown = {name: part.detach() for name, part in parts.items()}
        self.averages.add(cb0=books[0], cb1=books[1], cb7=books[7], **shown)

    def report(self) -> None:
        """Every 100 steps the losses of training, every 1000 those of held-out speech by codebook."""
        row = {"step": self.clock.step, "seconds": round(self.clock.spent)}
        if self.clock.step % 100 == 0:
            row |= {"hours": round(self.hours, 2)} | self.averages.read()
        if self.clock.step % 1000 == 0 or self.clock.done:
            with torch.no_grad():
                held = [
                    losses(self.model, self.helps, b, s, 0.0)["codebooks"] for b, s in self.checks
                ]
            row["held_out"] = [round(float(x), 3) for x in torch.stack(held).mean(0)]
        if len(row) > 2:
            log(self.folder / "model.jsonl", **row)

    def run(self) -> HiggsAudio:
        """Trains until the clock is done, saving every four minutes."""
        epoch, saved, batches = self.clock.step, self.clock.spent, []
        while not self.clock.done:
            if not batches:
                epoch += 1
                batches = plan(self.corpus, self.train_on, epoch)
            self.step(*make_batch(self.corpus, batches.pop(), NANO_MODEL))
            self.report()
            if self.clock.spent - saved > 240 or self.clock.done:
                saved = self.clock.spent
                self.save()
        return self.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("training/out/corpus"))
    parser.add_argument("--out", type=Path, default=Path("training/out"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--plain", action="store_true", help="without the helps: the plain model's loss"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plain = HelpConfig(False, (), 0.0, None, 0.0, 0.0, (1,) * 8)
    tokenizer = TextTokenizer(byte_tokenizer(NANO_PHRASES))
    corpus = Corpus(Shards(arguments.corpus), arguments.out / "codes.pt", tokenizer)
    clock = Clock(arguments.minutes, warmup_steps=150, floor=0.02)
    config = plain if arguments.plain else HelpConfig()
    training = Training(arguments.out, corpus, clock, arguments.rate, config)
    training.resume()
    training.run()


if __name__ == "__main__":
    main()
