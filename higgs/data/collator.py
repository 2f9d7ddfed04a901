"""Tokens and codes of conversations -> one batch: placeholders expanded, codes delayed, padded on the right."""

from collections.abc import Sequence

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import ModelConfig
from higgs.data.chatml import Tokens
from higgs.delay import IGNORE, delayed_labels, delayed_segment
from higgs.tokens import TokenIds

Features = dict[str, Tensor]  # of one conversation, by the names of `Batch`


def count_positions(tokens: Tokens, frames: Sequence[int], num_codebooks: int) -> int:
    """Positions of a conversation once placeholders are expanded; `frames` of each audio."""
    return len(tokens.input_ids) + sum(count + num_codebooks for count in frames)


def expand_audio_placeholders(
    tokens: Tokens, codes: list[Tensor], ids: TokenIds, config: ModelConfig, code_labels: bool
) -> Features:
    """One conversation and its codes [K, T] in order -> tensors over its positions, T + K + 1 for each placeholder."""
    placeholders = [i for i, t in enumerate(tokens.input_ids) if t in (ids.audio_in, ids.audio_out)]
    if len(placeholders) != len(codes):
        raise ValueError(f"{len(placeholders)} audio placeholders, but {len(codes)} code tensors")
    bos, eos, num_codebooks = config.stream_bos, config.stream_eos, config.num_codebooks
    repeats, values, labels = torch.ones(len(tokens.input_ids), dtype=torch.long), [], []
    for position, segment in zip(placeholders, codes, strict=True):
        if segment.shape[0] != num_codebooks:
            raise ValueError(f"codes [K, T] need K = {num_codebooks}, got {tuple(segment.shape)}")
        if segment.numel() and not 0 <= int(segment.min()) <= int(segment.max()) < bos:
            raise ValueError(f"codes must be in 0 ... {bos - 1}, got {int(segment.min())} ... {int(segment.max())}")
        delayed = delayed_segment(segment.long(), bos, eos).T
        repeats[position] = len(delayed)
        values.append(delayed)
        trained = code_labels and tokens.labels[position] != IGNORE
        labels.append(delayed_labels(segment.long(), eos).T if trained else torch.full_like(delayed, IGNORE))
    input_ids, text_labels = torch.tensor([tokens.input_ids, tokens.labels]).repeat_interleave(repeats, dim=1)
    is_audio = torch.zeros(len(repeats), dtype=torch.bool)
    is_audio[placeholders] = True
    is_audio = is_audio.repeat_interleave(repeats)
    all_codes = torch.zeros(len(input_ids), num_codebooks, dtype=torch.long)
    all_labels = torch.full_like(all_codes, IGNORE)
    if codes:
        all_codes[is_audio], all_labels[is_audio] = torch.cat(values), torch.cat(labels)
    text_labels = text_labels.where(~is_audio, IGNORE)
    return {"input_ids": input_ids, "labels": text_labels, "codes": all_codes, "code_labels": all_labels}


def collate(examples: list[Features], ids: TokenIds, labels: bool = False, round_to: int = 1) -> Batch:
    """-> a batch, padded on the right to a multiple of `round_to`: fewer shapes to compile or to allocate for."""
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    longest = int(lengths.max())
    longest += -longest % round_to

    def padded(key: str, value: int) -> Tensor:
        first = examples[0][key]
        out = first.new_full((len(examples), longest, *first.shape[1:]), value)
        for index, example in enumerate(examples):
            out[index, : len(example[key])] = example[key]
        return out

    input_ids = padded("input_ids", ids.end_of_text)
    attention_mask = torch.arange(longest) < lengths[:, None]
    audio_out_mask = (input_ids == ids.audio_out) & attention_mask
    audio_mask = audio_out_mask | ((input_ids == ids.audio_in) & attention_mask)
    targets = [padded(key, IGNORE) for key in ("labels", "code_labels")] if labels else []
    return Batch(input_ids, padded("codes", 0), audio_mask, audio_out_mask, attention_mask, *targets)
