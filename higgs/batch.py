"""What the collator makes and the model reads."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """Sequences with every audio segment spread out: one position for each delayed column. Padded on the right.

    At audio positions `input_ids` holds the placeholder's id; at text positions `codes` is 0: neither is read there.
    Labels are not shifted: the loss compares position i with label i + 1; -100 is ignored.
    """

    input_ids: Tensor  # [B, S] int64
    codes: Tensor  # [B, S, K] int64, delayed, with stream ids
    audio_mask: Tensor  # [B, S] bool: audio, heard or spoken
    audio_out_mask: Tensor  # [B, S] bool: spoken (in assistant turns)
    attention_mask: Tensor  # [B, S] bool: not padding
    labels: Tensor | None = None  # [B, S] int64
    code_labels: Tensor | None = None  # [B, S, K] int64

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(**{k: v if v is None else v.to(device) for k, v in vars(self).items()})
