"""Training conversations of the nano model: the corpus in every prompt form that the package renders."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.data.text.tokenizer import TextTokenizer
from higgs.tokens import TokenIds
from training.corpus.shards import Shards
from training.corpus.voices import DESCRIBED
from training.nano.alignment import marked_texts
from training.nano.quantizer import read_codes

MAX_REFERENCE_FRAMES = 125
TEMPLATE_POSITIONS = 29  # of a conversation beside its texts and frames, for each utterance
# Shares of the in-house voices' utterances; the rest are dialogues. Those of other speakers are cloned.
SINGLE, LONG_FORM = 0.6, 0.2
ANY_LENGTH = 10**9
LOUD = 10**-4.0  # of the power of an utterance's loudest frame


@dataclass(frozen=True)
class Item:
    """One training conversation; `utterances` in the order of its audios, `positions` its estimated length."""

    sample: ChatMLSample
    utterances: tuple[int, ...]
    positions: int


@dataclass(frozen=True)
class Limits:
    """Of the length of a conversation: the cost of attention is quadratic in it."""

    positions: int = 300
    turns: int = 2


SHORT, LONG = Limits(), Limits(ANY_LENGTH, 5)


def loud_frames(waveform: Tensor) -> Tensor:
    """[T * 960] -> bool [T]: frames within 40 dB of the loudest."""
    power = waveform.view(-1, 960).square().mean(1)
    return power > LOUD * power.max()


def coarse_speaker(name: str) -> str:
    """Random speakers (`p0.87f0.96`) rarely come twice: those of similar pitch and formants count as one."""
    if name.isalpha() or "_" in name:
        return name
    pitch, formant = name.removeprefix("p").split("f")
    return f"p{round(float(pitch) * 16)}f{round(float(formant) * 25)}"


class Corpus:
    """Texts, codes and alignments of all utterances; `folder` is that of the quantiser's job."""

    def __init__(self, shards: Shards, folder: Path, tokenizer: TextTokenizer):
        self.shards, self.tokenizer = shards, tokenizer
        self.codes, self.aligned = self.read_codes(folder)
        self.texts = marked_texts([u.text for u in shards.utterances], tokenizer.lexicon)
        self.lengths = [len(tokenizer.encode(text)) for text in self.texts]
        self.speakers = [coarse_speaker(u.speaker) for u in shards.utterances]
        self.ids = TokenIds.of(tokenizer)
        self.by_speaker: dict[str, list[int]] = {}
        for index in shards.training:
            self.by_speaker.setdefault(self.speakers[index], []).append(index)

    def read_codes(self, folder: Path) -> tuple[list[Tensor], list[Tensor]]:
        return read_codes(folder, self.shards)

    def loud(self, index: int) -> Tensor:
        """bool [T]: the frames of an utterance that are speech."""
        return loud_frames(self.shards.waveform(index))

    def item(self, index: int, rng: random.Random, limits: Limits) -> Item | None:
        """A conversation with this utterance, in a random prompt form; None where none is short enough."""
        if self.speakers[index] not in DESCRIBED:
            return self.clone(index, rng, limits)
        draw = rng.random()
        single = self.sized(self.single(index, rng), (index,))
        if draw < SINGLE:
            return single
        if draw < SINGLE + LONG_FORM:
            more = rng.choices(self.by_speaker[self.speakers[index]], k=rng.randint(1, limits.turns - 1))
            item = self.turns(single.sample, [index, *more])
        else:
            item = self.dialogue(index, rng, limits)
        return item if item.positions <= limits.positions else single

    def sized(self, sample: ChatMLSample, utterances: Sequence[int]) -> Item:
        size = sum(self.lengths[i] + self.codes[i].shape[1] for i in utterances)
        return Item(sample, tuple(utterances), size + TEMPLATE_POSITIONS * len(utterances))

    def single(self, index: int, rng: random.Random) -> ChatMLSample:
        """An in-house voice by its description; the first is also the voice without one."""
        speaker = self.speakers[index]
        scene = QUIET_ROOM if rng.random() < 0.2 else None
        named = speaker != "ada" or rng.random() < 0.3
        return smart_voice(self.texts[index], scene, DESCRIBED[speaker] if named else None)

    def plain(self, index: int) -> Item:
        """An in-house voice by its description, for validation."""
        return self.sized(smart_voice(self.texts[index], None, DESCRIBED[self.speakers[index]]), (index,))

    def turns(self, first: ChatMLSample, utterances: list[int], tags: Sequence[str] = ()) -> Item:
        """Long form: earlier utterances are earlier turns."""
        messages = list(first.messages)
        for place, index in enumerate(utterances[1:], start=1):
            tag = tags[place] if tags else ""
            messages += [Message("assistant", AudioContent()), Message("user", tag + self.texts[index])]
        return self.sized(ChatMLSample(messages), utterances)

    def dialogue(self, index: int, rng: random.Random, limits: Limits) -> Item:
        """Two in-house voices: two lines in one segment of audio, or some lines as turns."""
        others = [name for name in DESCRIBED if name != self.speakers[index]]
        pair = [self.speakers[index], rng.choice(others)]
        by_turns = rng.random() < 0.5
        count = rng.randint(2, min(4, limits.turns)) if by_turns else 2
        speakers = [pair[place % 2] for place in range(count)]
        utterances = [index, *(rng.choice(self.by_speaker[name]) for name in speakers[1:])]
        rng.shuffle(pair)
        numbers = [pair.index(name) for name in speakers]
        described = {number: DESCRIBED[name] for number, name in enumerate(pair)}
        lines = [(n, self.texts[i]) for n, i in zip(numbers, utterances, strict=True)]
        if not by_turns:
            return self.sized(dialogue(lines, described), utterances)
        return self.turns(dialogue(lines[:1], described), utterances, [f"[SPEAKER{number}] " for number in numbers])

    def clone(self, index: int, rng: random.Random, limits: Limits) -> Item | None:
        """Another utterance of the speaker as the reference, one that is short enough."""
        others = self.by_speaker.get(self.speakers[index], [])
        scene = QUIET_ROOM if rng.random() < 0.3 else None
        for reference in rng.sample(others, k=min(8, len(others))):
            if reference != index and self.codes[reference].shape[1] <= MAX_REFERENCE_FRAMES:
                item = self.cloned(index, reference, scene)
                if item.positions <= limits.positions:
                    return item
        return None

    def cloned(self, index: int, reference: int, scene: str | None = None) -> Item:
        sample = voice_clone(self.texts[index], self.texts[reference], AudioContent(), scene)
        return self.sized(sample, (reference, index))

    def example(self, item: Item, config: ModelConfig) -> dict[str, Tensor]:
        """-> the conversation's tensors, with `alignment`: the position of the text token spoken there, or -1."""
        answer = Message("assistant", AudioContent())
        tokens = tokenize(ChatMLSample([*item.sample.messages, answer]), self.tokenizer)
        codes = [self.codes[i] for i in item.utterances]
        one_segment = len(item.sample.audios) + 1 < len(codes)  # a dialogue generated in a single pass
        example = expand_audio_placeholders(
            tokens, [torch.cat(codes, dim=1)] if one_segment else codes, self.ids, config, True
        )
        example["alignment"] = self.alignment(example["input_ids"], item, one_segment)
        return example

    def alignment(self, input_ids: Tensor, item: Item, one_segment: bool) -> Tensor:
        alignment, content = torch.full_like(input_ids, -1), input_ids.tolist()
        audio = (input_ids == self.ids.audio_out).nonzero()[:, 0]
        # Segments are runs of the placeholder; delayed frame j of a segment predicts frame j of codebook 0.
        breaks = (audio.diff() > 1).nonzero()[:, 0] + 1
        starts = [int(segment[0]) for segment in audio.tensor_split(breaks.tolist())]
        search, start = 0, starts[0]
        for number, index in enumerate(item.utterances):
            text = self.tokenizer.encode(self.texts[index])
            place = find(content, text, search)
            search = place + len(text)
            aligned = place + self.aligned[index].long()
            if not one_segment:
                start = starts[number]
            alignment[start : start + len(aligned)] = aligned
            start += len(aligned)
        return alignment


def find(content: list[int], wanted: list[int], start: int) -> int:
    for place in range(start, len(content) - len(wanted) + 1):
        if content[place : place + len(wanted)] == wanted:
            return place
    raise ValueError("the text of an utterance is not in its conversation")


def plan(corpus: Corpus, indices: Sequence[int], seed: int, positions: int, limits: Limits) -> list[list[Item]]:
    """One epoch: conversations of similar length together, at most `positions` in a batch, batches shuffled."""
    rng = random.Random(seed)
    items = [corpus.item(index, rng, limits) for index in indices]
    batches = batches_of(sorted(filter(None, items), key=lambda item: item.positions), positions)
    rng.shuffle(batches)
    return batches


def batches_of(items: Sequence[Item], positions: int) -> list[list[Item]]:
    """In the order given, at most `positions` in a batch by the longest so far."""
    batches: list[list[Item]] = [[]]
    for item in items:
        if (len(batches[-1]) + 1) * item.positions > positions and batches[-1]:
            batches.append([])
        batches[-1].append(item)
    return batches


def make_batch(corpus: Corpus, items: list[Item], config: ModelConfig) -> tuple[Batch, Tensor]:
    """-> the batch, and its alignment [B, S]."""
    examples = [corpus.example(item, config) for item in items]
    batch = collate(examples, corpus.ids, labels=True)
    alignments = [example["alignment"] for example in examples]
    return batch, torch.nn.utils.rnn.pad_sequence(alignments, batch_first=True, padding_value=-1)
