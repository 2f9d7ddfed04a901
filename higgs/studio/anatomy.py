"""What the model does while it speaks: draws and ends, and the prompt as the model reads it."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from higgs.config import ModelConfig
from higgs.data.text.lexicon import WORD, Lexicon
from higgs.data.text.tokenizer import TextTokenizer
from higgs.serve.alignment import Anatomy
from higgs.workflow.tables import Row

SPECIAL = re.compile(r"<\|[^|]*\|>")
WRITTEN = re.compile(rf"{WORD.pattern}|[^\W_]+")


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
