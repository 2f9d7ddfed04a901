"""Which word is spoken when: the attention from finished steps to the text, in one pass of the plain model.

A pass over the prompt and the delayed frames that were generated gives, for every step, what the loop saw when it drew
that step. Step s is read at position `prompt + s`, and drawn from the logits of the position before it; step 0 is
stream bos, which is not drawn. Nothing is generated, so codes stay as they are.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.data.chatml import AudioContent, ChatMLSample, TextContent
from higgs.data.text.normalize import EVENT_OF
from higgs.delay import delayed_segment
from higgs.model.higgs_audio import HiggsAudio
from higgs.serve.captions import Record
from higgs.serve.engine import Engine
from higgs.tokens import TokenIds

ALIGNED_HEADS, SAME_PLACE = 4, 1.0  # heads, tokens
LEAST_WEIGHT = 1e-6
RECORDING = threading.Lock()  # a pass changes the modules of a model that other threads may use
SPEAKER = re.compile(r"\[SPEAKER\d+\]")
# Gets the layer, queries [B, H, S, d], keys [B, kv heads, S, d] and mask of each attention of a pass.
Recorder = Callable[[int, Tensor, Tensor, Tensor | None], None]


@dataclass
class Anatomy:
    """Of one utterance of C steps: `attention` [L, H, C, N] of each step to the N tokens of the text, a share of what
    the step attends to; `logits` [C - 1, K, N' + 2] of steps 1 ... C - 1; `delayed` [K, C] the steps themselves.

    `tokens` are the N tokens as text, `word_of` [N] the word of each (-1: white space), `words` the words as written.
    """

    attention: Tensor
    logits: Tensor
    delayed: Tensor
    tokens: list[str]
    word_of: list[int]
    words: list[str]


def examine(
    engine: Engine,
    sample: ChatMLSample,
    delayed: Tensor,
    most_weights: int | None = None,
    reference_codes: Iterable[Tensor] | None = None,
) -> Anatomy:
    """A prompt in a single pass and its generated segment [K, C]. ValueError where it does not end in a text.

    So it is where more than `most_weights` numbers would be held: the attention, and the scores of one layer.
    `reference_codes` as in `Engine.sequence`. A sound event has tokens, and is no word.
    """
    texts = [part for part in sample.messages[-1].parts if isinstance(part, TextContent)]
    if sample.messages[-1].role != "user" or len(texts) < len(sample.messages[-1].parts):
        raise ValueError("expected a prompt whose last message is a text to speak")
    prompt = engine.sequence(sample, reference_codes=reference_codes).prompt
    encoded = [engine.text_tokenizer.encode(text.text, text.allow_special) for text in texts]
    ids = sum(encoded, [])
    first = last_place(prompt.input_ids[0].tolist(), ids)
    config, (length, steps) = engine.model.config, (prompt.input_ids.shape[1], delayed.shape[1])
    weights = config.num_heads * steps * (config.num_layers * len(ids) + length + steps)
    if most_weights is not None and weights > most_weights:
        raise ValueError(f"{weights} weights of attention; at most {most_weights} are held")
    attention, logits = replay(engine.model, engine.ids, prompt, delayed, slice(first, first + len(ids)))
    tokens = [engine.text_tokenizer.decode([token]) for token in ids]
    events = [text.text in EVENT_OF.values() for text in texts]
    in_event = [event for event, part in zip(events, encoded, strict=True) for _ in part]
    # An event stands between words, as a blank does.
    word_of = words_of([" " if event else token for event, token in zip(in_event, tokens, strict=True)])
    words = "".join(" " if event else text.text for event, text in zip(events, texts, strict=True)).split()
    return Anatomy(attention, logits, delayed.cpu(), tokens, word_of, words)


@torch.inference_mode()
def replay(model: HiggsAudio, ids: TokenIds, prompt: Batch, delayed: Tensor, text: slice) -> tuple[Tensor, Tensor]:
    """A prompt of B = 1 with S positions, generated steps [K, C], N positions of the prompt -> attention [L, H, C, N],
    and the logits [C - 1, K, N' + 2] that steps 1 ... C - 1 were drawn from; on the CPU, in float32.
    """
    length, steps = prompt.input_ids.shape[1], delayed.shape[1]
    weights: list[Tensor] = []

    def record(layer: int, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
        # One layer at a time, and of it the rows of the steps alone: the whole does not fit where S is large.
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q[0, :, length:].float() @ k[0].float().transpose(1, 2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[0, :, length:], -torch.inf)
        weights.append(scores.softmax(-1)[..., text].cpu())

    with recorded_attention(model, record):
        hidden, _ = model.hidden(appended(prompt, delayed, ids).to(model.device))
    return torch.stack(weights), model.audio_logits(hidden[0, length:-1]).cpu()[: steps - 1]


def appended(prompt: Batch, delayed: Tensor, ids: TokenIds) -> Batch:
    """A prompt of B = 1 and steps [K, C] of the assistant's audio -> the whole sequence."""
    steps = delayed.shape[1]

    def longer(tensor: Tensor, more: Tensor) -> Tensor:
        return torch.cat([tensor, more.to(tensor)[None]], dim=1)

    yes = torch.ones(steps, dtype=torch.bool)
    return Batch(
        longer(prompt.input_ids, torch.full((steps,), ids.audio_out)),
        longer(prompt.codes, delayed.T),
        longer(prompt.audio_mask, yes),
        longer(prompt.audio_out_mask, yes),
        longer(prompt.attention_mask, yes),
    )


@contextmanager
def recorded_attention(model: HiggsAudio, record: Recorder) -> Iterator[None]:
    """While it lasts, each attention of the plain model shows its queries and keys; the results stay the same.

    Those of passes in other threads, such as the prompts that a scheduler reads, are not shown.
    """
    modules, thread = [layer.attention for layer in model.layers], threading.get_ident()

    def shown(layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if threading.get_ident() == thread:
            record(layer, q, k, mask)
        return attends[layer](q, k, v, mask)

    with RECORDING:
        attends = [module.attend for module in modules]
        try:
            for index, module in enumerate(modules):
                module.attend = lambda *inputs, index=index: shown(index, *inputs)
            yield
        finally:
            for module, attend in zip(modules, attends, strict=True):
                module.attend = attend


def last_place(ids: Sequence[int], part: Sequence[int]) -> int:
    """Where `part` begins in `ids`, the last time. ValueError where it does not occur."""
    for first in range(len(ids) - len(part), -1, -1):
        if list(ids[first : first + len(part)]) == list(part):
            return first
    raise ValueError("the prompt does not hold the tokens of its text")


def words_of(tokens: Sequence[str]) -> list[int]:
    """Tokens as text -> the number of the word that each ends in; -1 for white space."""
    result, word, blank = [], -1, True
    for token in tokens:
        for symbol in token:
            word += blank and not symbol.isspace()
            blank = symbol.isspace()
        result.append(-1 if not token.strip() else word)
    return result


def centres(attention: Tensor) -> Tensor:
    """[..., C, N] -> [..., C]: the place in the text that a step looks at, on average."""
    places = torch.arange(attention.shape[-1], dtype=attention.dtype)
    return (attention * places).sum(-1) / attention.sum(-1).clamp(min=LEAST_WEIGHT)


def head_scores(attention: Tensor) -> Tensor:
    """[L, H, C, N] -> [L, H], how well each head aligns: its mean share on the text, times how far the centre of that
    moves along with the steps (Pearson's correlation; 0 where it moves back).
    """
    places, steps = centres(attention), torch.arange(attention.shape[2], dtype=attention.dtype)
    a, b = places - places.mean(-1, keepdim=True), steps - steps.mean()
    correlation = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm()).clamp(min=LEAST_WEIGHT)
    return attention.sum(-1).mean(-1) * correlation.clamp(min=0)


def alignment(attention: Tensor, heads: int = ALIGNED_HEADS) -> Tensor:
    """[L, H, C, N] -> [C, N], rows that sum to 1: the mean of the heads that align best.

    Of these some look ahead, by the same number of tokens all the time; only those that come last are taken.
    """
    flat = attention.flatten(0, 1)
    best = flat[head_scores(attention).flatten().topk(min(heads, len(flat))).indices]
    places = centres(best).mean(-1)
    mean = best[places <= places.min() + SAME_PLACE].mean(0)
    return mean / mean.sum(-1, keepdim=True).clamp(min=LEAST_WEIGHT)


def monotone_path(weights: Tensor) -> list[int]:
    """[T, N] -> the token of each frame, of all paths that never go back that with the largest product of weights."""
    logs = np.log(weights.double().numpy() + LEAST_WEIGHT)
    best, origin = logs[0], []
    for step in logs[1:]:
        highest = np.maximum.accumulate(best)
        # The place of the running maximum: where the value reached it.
        places = np.maximum.accumulate(np.where(best == highest, np.arange(len(best)), 0))
        origin.append(places)
        best = highest + step
    path = [int(best.argmax())]
    for places in reversed(origin):
        path.append(int(places[path[-1]]))
    return path[::-1]


def word_times(anatomy: Anatomy, frames: int, frame_rate: float) -> list[Record]:
    """-> start and end in seconds of each word of a segment of T frames, in order, without gaps.

    Step s reads what is known when the first code of frame s is drawn, so row s of the attention is frame s.
    """
    path = monotone_path(alignment(anatomy.attention)[:frames])
    words = [anatomy.word_of[token] for token in path]
    starts: list[int] = []
    for number in range(len(anatomy.words)):
        later = (frame for frame, word in enumerate(words) if word >= number)
        starts.append(next(later, frames))
    ends = [*starts[1:], frames]
    spans = zip(anatomy.words, starts, ends, strict=True)
    return [{"word": w, "start": a / frame_rate, "end": b / frame_rate} for w, a, b in spans]


def times_of(
    engine: Engine,
    samples: Sequence[ChatMLSample],
    codes: Tensor,
    parts: Sequence[tuple[int, float]] = (),
    most_weights: int | None = None,
    reference_codes: Callable[[AudioContent], Tensor] | None = None,
) -> list[Record]:
    """Prompts and the codes [K, T] of what they said; of each its frames, and when it begins, in seconds -> its words.

    Without `parts` there is one prompt. Records as those of `word_times`, without tags of speakers. A prompt that ends
    in no text has no words, and neither has one that needs more than `most_weights`, as in `examine`. `reference_codes`
    gives those that are known of the prompts' recordings.
    """
    config, rate = engine.model.config, engine.tokenizer.frame_rate
    records, parts = [], parts or [(codes.shape[1], 0.0)]
    for sample, segment, (frames, begin) in zip(samples, codes.split([n for n, _ in parts], dim=1), parts, strict=True):
        if not frames:
            continue
        known = reference_codes and map(reference_codes, sample.audios)
        delayed = delayed_segment(segment.cpu(), config.stream_bos, config.stream_eos)
        try:
            seen = examine(engine, sample, delayed, most_weights, known)
        except ValueError:
            continue
        records += [
            {"word": text, "start": round(begin + word["start"], 3), "end": round(begin + word["end"], 3)}
            for word in word_times(seen, frames, rate)
            if (text := SPEAKER.sub("", word["word"]))
        ]
    return records


def times_of_all(engine: Engine, pairs: Sequence[tuple[Sequence[ChatMLSample], Any]]) -> list[Record]:
    """Prompts and the `many_scripts.Utterance` that they became -> the records of `times_of`, each with its `name`."""
    rate, records = engine.tokenizer.sample_rate, []
    for samples, one in pairs:
        spans = [(chunk["audio_frames"], chunk["start"] / rate) for chunk in one.chunks]
        found = times_of(engine, samples, one.codes, spans)
        records += [{"name": one.name} | word for word in found]
    return records
