"""What the nano model is trained on: the corpus in every form of conversation that the product renders."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from higgs.data.lexicon import SPELL, WORD
from higgs.data.text import TextTokenizer
from higgs.tokens import TokenIds
from higgs.train.align import spoken_token
from higgs.train.schedule import save_state
from higgs.train.shards import Shards

HELD_OUT = 200
DESCRIBED = {"ada": "feminine", "ben": "masculine", "kit": "childlike"}
MAX_REFERENCE_FRAMES = 75
TEMPLATE_POSITIONS = 55  # of a conversation beside its texts and frames, for each utterance
SPELLED = 0.12  # share of the words that are left as letters, so that unknown ones can be read too


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


def spell_some(text: str, rng: random.Random) -> str:
    """Marks a few words of the text to be read as letters."""
    return WORD.sub(lambda word: (SPELL if rng.random() < SPELLED else "") + word[0], text)


class Corpus:
    """Texts, codes and alignments of all utterances."""

    def __init__(self, shards: Shards, codes_path: Path, tokenizer: TextTokenizer):
        stored = torch.load(codes_path, weights_only=True)
        self.texts = [u.text for u in shards.utterances]
        if tokenizer.lexicon:
            self.texts = [spell_some(text, random.Random(i)) for i, text in enumerate(self.texts)]
        self.lengths = [len(tokenizer.encode(text)) for text in self.texts]
        self.speakers = [coarse_speaker(u.speaker) for u in shards.utterances]
        self.codes = stored["codes"]
        aligned = codes_path.with_name("aligned.pt")
        if not aligned.exists() or aligned.stat().st_mtime < codes_path.stat().st_mtime:
            pairs = zip(stored["posteriors"], self.texts, strict=True)
            rows = [
                torch.from_numpy(
                    spoken_token(p.float().numpy(), text, tokenizer.lexicon).astype(np.int16)
                )
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
        """A conversation with this utterance, in a form that the product renders."""
        speaker, draw = self.speakers[index], rng.random()
        own = speaker in DESCRIBED
        if own and draw < 0.55:
            return self.sized(self.single(index, rng), (index,))
        if own and draw < 0.68:
            more = rng.choices(self.by_speaker[speaker], k=rng.choice((1, 1, 2)))
            return self.turns(self.single(index, rng), [index, *more])
        if own and draw < 0.86:
            return self.spoken_dialogue(index, rng, by_turns=draw < 0.78)
        return self.clone(index, rng)

    def sized(self, sample: ChatMLSample, utterances: Sequence[int]) -> Item:
        size = sum(self.lengths[i] + self.codes[i].shape[1] for i in utterances)
        return Item(sample, tuple(utterances), size + TEMPLATE_POSITIONS * len(utterances))

    def single(self, index: int, rng: random.Random) -> ChatMLSample:
        """One of our own voices by its description; the first is also what speaks without one."""
        speaker = self.speakers[index]
        scene = QUIET_ROOM if rng.random() < 0.2 else None
        named = speaker != "ada" or rng.random() < 0.3
        return smart_voice(self.texts[index], scene, DESCRIBED[speaker] if named else None)

    def turns(self, first: ChatMLSample, utterances: list[int], tags: Sequence[str] = ()) -> Item:
        """Long form: what has been spoken stands as earlier turns."""
        messages = list(first.messages)
        for place, index in enumerate(utterances[1:], start=1):
            tag = tags[place] if tags else ""
            messages += [
                Message("assistant", AudioContent()),
                Message("user", tag + self.texts[index]),
            ]
        return self.sized(ChatMLSample(messages), utterances)

    def spoken_dialogue(self, index: int, rng: random.Random, by_turns: bool) -> Item:
        """Two of our own voices: two lines in one go, or two to four lines as turns."""
        pair = [
            self.speakers[index],
            rng.choice([name for name in DESCRIBED if name != self.speakers[index]]),
        ]
        count = rng.choice((2, 3, 4)) if by_turns else 2
        speakers = [pair[place % 2] for place in range(count)]
        utterances = [index, *(rng.choice(self.by_speaker[name]) for name in speakers[1:])]
        rng.shuffle(pair)
        numbers = [pair.index(name) for name in speakers]
        described = {number: DESCRIBED[name] for number, name in enumerate(pair)}
        lines = [(n, self.texts[i]) for n, i in zip(numbers, utterances, strict=True)]
        if not by_turns:
            return self.sized(dialogue(lines, described), utterances)
        tags = [f"[SPEAKER{number}] " for number in numbers]
        return self.turns(dialogue(lines[:1], described), utterances, tags)

    def clone(self, index: int, rng: random.Random) -> Item:
        """Another utterance of the speaker as the reference, a short one where there is one."""
        others = self.by_speaker.get(self.speakers[index], [])
        others = [i for i in rng.sample(others, k=min(6, len(others))) if i != index]
        if not others:
            return self.item(rng.choice(self.by_speaker["ada"]), rng)
        short = [i for i in others if self.codes[i].shape[1] <= MAX_REFERENCE_FRAMES]
        reference = (short or others)[0]
        scene = QUIET_ROOM if rng.random() < 0.3 else None
        sample = voice_clone(self.texts[index], self.texts[reference], AudioContent(), scene)
        return self.sized(sample, (reference, index))

    def row(self, item: Item, config: ModelConfig) -> dict[str, Tensor]:
        """-> the conversation's tensors, with `spoken`: the place of the text token spoken at each position, or -1."""
        answer = Message("assistant", AudioContent())
        tokens = tokenize(ChatMLSample([*item.sample.messages, answer]), self.tokenizer)
        codes = [self.codes[i] for i in item.utterances]
        together = len(item.sample.audios) + 1 < len(codes)  # a dialogue in one go is one segment
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
        starts = [int(segment[0]) for segment in audio.tensor_split(breaks.tolist())]
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


def plan(corpus: Corpus, indices: Sequence[int], seed: int, positions: int) -> list[list[Item]]:
    """One epoch: conversations of like length together, at most `positions` in a batch, batches shuffled."""
    rng = random.Random(seed)
    items = sorted((corpus.item(i, rng) for i in indices), key=lambda item: item.positions)
    batches: list[list[Item]] = [[]]
    for item in items:
        if (len(batches[-1]) + 1) * item.positions > positions and batches[-1]:
            batches.append([])
        batches[-1].append(item)
    rng.shuffle(batches)
    return batches


def make_batch(corpus: Corpus, items: list[Item], config: ModelConfig) -> tuple[Batch, Tensor]:
    """-> the batch, and `spoken` [B, S]."""
    rows = [corpus.row(item, config) for item in items]
    batch = collate(rows, corpus.ids, labels=True)
    spoken = torch.full_like(batch.input_ids, -1)
    for index, row in enumerate(rows):
        spoken[index, : len(row["spoken"])] = row["spoken"]
    return batch, spoken
