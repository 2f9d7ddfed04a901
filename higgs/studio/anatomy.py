"""What the model does while it speaks: attention, draws and ends, computed again on the finished sequence.

One pass of the plain model over the prompt and the delayed frames that were generated gives, for every step, what the
loop saw when it drew that step. Step s is read at position `prompt + s`, and drawn from the logits of the position
before it; step 0 is stream bos, which is not drawn.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import ChatMLSample, TextContent
from higgs.data.text.lexicon import WORD, Lexicon
from higgs.data.text.tokenizer import TextTokenizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.serve.engine import Engine
from higgs.tokens import TokenIds
from higgs.workflow.tables import Row

ALIGNED_HEADS, SAME_PLACE = 4, 1.0  # heads, tokens
SPECIAL = re.compile(r"<\|[^|]*\|>")
WRITTEN = re.compile(rf"{WORD.pattern}|[^\W_]+")
LEAST_WEIGHT = 1e-6
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


def examine(engine: Engine, sample: ChatMLSample, delayed: Tensor) -> Anatomy:
    """A prompt in a single pass and its generated segment [K, C]. ValueError where it does not end in a text."""
    text = sample.messages[-1].parts[-1]
    if sample.messages[-1].role != "user" or not isinstance(text, TextContent):
        raise ValueError("expected a prompt whose last message is a text to speak")
    prompt = engine.sequence(sample).prompt
    ids = engine.text_tokenizer.encode(text.text, text.allow_special)
    first = last_place(prompt.input_ids[0].tolist(), ids)
    attention, logits = replay(engine.model, engine.ids, prompt, delayed, slice(first, first + len(ids)))
    tokens = [engine.text_tokenizer.decode([token]) for token in ids]
    return Anatomy(attention, logits, delayed.cpu(), tokens, words_of(tokens), text.text.split())


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
    """While it lasts, each attention of the plain model shows its queries and keys; the results stay the same."""
    modules = [layer.attention for layer in model.layers]
    attends = [module.attend for module in modules]

    def shown(layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        record(layer, q, k, mask)
        return attends[layer](q, k, v, mask)

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


def read_words(lexicon: Lexicon | None, text: str) -> list[Row]:
    """Each word and number of a text as the model reads it: by its lexicon, or as written where that lacks it."""
    rows: list[Row] = []
    for match in WRITTEN.finditer(text):
        word = match[0]
        read = word if lexicon is None else lexicon.readable(lexicon.pronounce(word))
        listed = lexicon is not None and lexicon.pronounce(word) != word
        rows.append({"word": word, "read as": read, "in the lexicon": "yes" if listed else "no"})
    return rows


def prompt_parts(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[Row]:
    """The tokens of a prompt in order, `|` between them; a line for each text, special token and run of frames."""
    rows: list[Row] = []
    for place, token in enumerate(ids):
        text = repr(tokenizer.decode([token]))[1:-1]
        special = bool(SPECIAL.fullmatch(text))
        if rows and special and rows[-1]["tokens"] == text:
            rows[-1]["positions"] += 1
        elif rows and not special and not SPECIAL.fullmatch(rows[-1]["tokens"]):
            rows[-1]["positions"] += 1
            rows[-1]["tokens"] += f" | {text}"
        else:
            rows.append({"from": place, "positions": 1, "tokens": text})
    return rows


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
    for row in logs[1:]:
        highest = np.maximum.accumulate(best)
        # The place of the running maximum: where the value reached it.
        places = np.maximum.accumulate(np.where(best == highest, np.arange(len(best)), 0))
        origin.append(places)
        best = highest + row
    path = [int(best.argmax())]
    for places in reversed(origin):
        path.append(int(places[path[-1]]))
    return path[::-1]


def word_times(anatomy: Anatomy, frames: int, frame_rate: float) -> list[Row]:
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
    rows = zip(anatomy.words, starts, ends, strict=True)
    return [{"word": w, "start": a / frame_rate, "end": b / frame_rate} for w, a, b in rows]


def entropy(logits: Tensor) -> Tensor:
    """[..., N] -> [...] bits."""
    chances = logits.float().softmax(-1)
    return -(chances * chances.clamp(min=1e-30).log2()).sum(-1)


def rank(logits: Tensor, drawn: Tensor) -> Tensor:
    """[..., N], [...] -> [...]: how many were more probable than the one that was drawn; 0 for the most probable."""
    chosen = logits.gather(-1, drawn[..., None])
    return (logits > chosen).sum(-1)


def draws(anatomy: Anatomy, config: ModelConfig) -> dict[str, Tensor]:
    """-> `entropy` in bits and `rank` [K, C - 1] of each draw, NaN where the delay pattern wrote a stream id; and
    `end` [K, C - 1], the probability of stream eos. By the model alone, before temperature, top-k and top-p.
    """
    drawn = anatomy.delayed[:, 1:].T
    is_code = drawn < config.codebook_size
    measured = {"entropy": entropy(anatomy.logits), "rank": rank(anatomy.logits, drawn).float()}
    result = {name: value.where(is_code, torch.nan).T for name, value in measured.items()}
    return result | {"end": anatomy.logits.softmax(-1)[..., config.stream_eos].T}


def hesitations(bits: Tensor, times: Sequence[Row], frame_rate: float, count: int = 5) -> list[Row]:
    """Entropy [K, C - 1] of draws -> when the first codebook was least sure, and the word that was spoken then."""
    first = bits[0].nan_to_num(-1.0)
    drawn = int((first >= 0).sum())
    steps = first.topk(min(count, drawn)).indices.sort().values.tolist()
    rows: list[Row] = []
    for step in steps:  # the draw of column c is codebook 0 of frame c
        seconds = step / frame_rate
        word = next((row["word"] for row in times if row["start"] <= seconds < row["end"]), "")
        rows.append({"seconds": seconds, "entropy, bits": first[step].item(), "word": word})
    return rows
