"""Tokens and codes of conversations -> one batch: placeholders spread out, codes delayed, rows padded on the right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import Tokens
from higgs.delay import IGNORE, delayed_labels, delayed_segment
from higgs.tokens import TokenIds

Row = dict[str, Tensor]


def count_positions(tokens: Tokens, frames: Sequence[int], num_codebooks: int) -> int:
    """How many positions `spread` makes of a conversation whose audios have so many frames."""
    return len(tokens.input_ids) + sum(count + num_codebooks for count in frames)


def spread(tokens: Tokens, codes: list[Tensor], ids: TokenIds, config: ModelConfig, code_labels: bool) -> Row:
    """One conversation and its codes [K, T] in order -> tensors over its positions, S of them.

    Each placeholder becomes T + K + 1 positions. Raises ValueError when placeholders and codes differ in number.
    """
    placeholders = [i for i, t in enumerate(tokens.input_ids) if t in (ids.audio_in, ids.audio_out)]
    if len(placeholders) != len(codes):
        raise ValueError(f"{len(placeholders)} audio placeholders, but {len(codes)} code tensors")
    bos, eos, num_codebooks = config.stream_bos, config.stream_eos, config.num_codebooks
    pieces: list[Row] = []
    start = 0

    def text(stop: int) -> None:
        length = stop - start
        pieces.append(
            {
                "input_ids": torch.tensor(tokens.input_ids[start:stop], dtype=torch.long),
                "labels": torch.tensor(tokens.labels[start:stop], dtype=torch.long),
                "codes": torch.zeros(length, num_codebooks, dtype=torch.long),
                "code_labels": torch.full((length, num_codebooks), IGNORE),
            }
        )

    for place, segment in zip(placeholders, codes, strict=True):
        if segment.shape[0] != num_codebooks:
            raise ValueError(f"codes [K, T] need K = {num_codebooks}, got {tuple(segment.shape)}")
        if segment.numel() and not 0 <= int(segment.min()) <= int(segment.max()) < bos:
            raise ValueError(f"codes must be in 0 ... {bos - 1}, got {int(segment.min())} ... {int(segment.max())}")
        text(place)
        delayed = delayed_segment(segment.long(), bos, eos).T
        trained = code_labels and tokens.labels[place] != IGNORE
        pieces.append(
            {
                "input_ids": torch.full((len(delayed),), tokens.input_ids[place]),
                "labels": torch.full((len(delayed),), IGNORE),
                "codes": delayed,
                "code_labels": delayed_labels(segment.long(), eos).T if trained else torch.full_like(delayed, IGNORE),
            }
        )
        start = place + 1
    text(len(tokens.input_ids))
    return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}


def collate(rows: list[Row], ids: TokenIds, labels: bool = False, round_to: int = 1) -> Batch:
    """What `spread` made of several conversations -> a batch, padded on the right.

    As long as the longest, rounded up to a multiple of `round_to`: fewer shapes to compile or to allocate for.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    longest += -longest % round_to

    def padded(key: str, value: int) -> Tensor:
        out = rows[0][key].new_full((len(rows), longest, *rows[0][key].shape[1:]), value)
        for index, row in enumerate(rows):
            out[index, : len(row[key])] = row[key]
        return out

    input_ids = padded("input_ids", ids.end_of_text)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    seen = torch.arange(longest) < lengths[:, None]
    spoken = (input_ids == ids.audio_out) & seen
    return Batch(
        input_ids=input_ids,
        codes=padded("codes", 0),
        audio_mask=spoken | ((input_ids == ids.audio_in) & seen),
        audio_out_mask=spoken,
        attention_mask=seen,
        labels=padded("labels", IGNORE) if labels else None,
        code_labels=padded("code_labels", IGNORE) if labels else None,
    )
