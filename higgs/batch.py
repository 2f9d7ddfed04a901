"""The model's input: written by the collator, read by the model."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """Sequences with audio placeholders expanded to one position for each delayed frame. Padded on the right.

    At audio positions `input_ids` is the placeholder's id; at text positions `codes` is 0: neither is read there.
    Labels are not shifted: the loss compares position i with label i + 1; -100 is ignored.
    """

    input_ids: Tensor  # [B, S] int64
    codes: Tensor  # [B, S, K] int64, delayed, with stream ids
    audio_mask: Tensor  # [B, S] bool: audio of any turn
    audio_out_mask: Tensor  # [B, S] bool: audio of assistant turns
    attention_mask: Tensor  # [B, S] bool: not padding
    labels: Tensor | None = None  # [B, S] int64
    code_labels: Tensor | None = None  # [B, S, K] int64

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(**{k: v if v is None else v.to(device) for k, v in vars(self).items()})
