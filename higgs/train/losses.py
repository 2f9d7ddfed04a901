"""Training losses: text, and the codes of each codebook."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs.batch import Batch
from higgs.delay import IGNORE
from higgs.model.higgs_audio import HiggsAudio

CodeLosses = Callable[[HiggsAudio, Tensor, Tensor], Tensor]


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 on accelerators and on CPUs that multiply it (AVX512-BF16, AMX), else float32."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; disabled for float32."""
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)


def corrupt(batch: Batch, max_rate: float, codebook_size: int) -> Batch:
    """Replaces 0 ... `max_rate` of a sequence's delayed frames by random codes: the model then relies on the text."""
    device, shape = batch.codes.device, batch.input_ids.shape
    rate = max_rate * torch.rand(len(batch.input_ids), 1)
    frames = (torch.rand(shape) < rate).to(device) & batch.audio_out_mask
    noise = torch.randint(0, codebook_size, batch.codes.shape).to(device)
    replaced = frames[..., None] & (batch.codes < codebook_size)
    return Batch(**(vars(batch) | {"codes": torch.where(replaced, noise, batch.codes)}))


def code_losses(model: HiggsAudio, hidden: Tensor, targets: Tensor) -> Tensor:
    """hidden [R, D], targets [R, K] -> nats [K], through the head itself, which may have adapters."""
    return codebook_losses(model.audio_head(hidden), targets)


def codebook_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [R, k (N + 2)], targets [R, k] -> nats [k]; 0 without any target."""
    # Flat: a strided softmax over the codebook axis is twice as slow on a CPU.
    flat = logits.float().view(-1, logits.shape[1] // targets.shape[1])
    each = F.cross_entropy(flat, targets.reshape(-1), reduction="none", ignore_index=IGNORE)
    return each.view(targets.shape).sum(0) / (targets >= 0).sum(0).clamp(min=1)


def speech_losses(
    model: HiggsAudio, inputs: Batch, labels: Batch, dtype: torch.dtype | None = None, codes: CodeLosses = code_losses
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """-> `text` and `codebooks` [K], nats, the latter by the function `codes`; and the input of each layer."""
    device = inputs.input_ids.device
    with autocast(device, dtype or best_dtype(device)):
        hidden, states = model.hidden(inputs)
        text_labels, code_labels = labels.labels[:, 1:], labels.code_labels[:, 1:]
        has_text, has_code = text_labels >= 0, (code_labels >= 0).any(-1)
        # Only at positions with labels: over all positions the heads would cost more than the layers.
        text_logits = model.text_head(hidden[:, :-1][has_text])
        codebooks = codes(model, hidden[:, :-1][has_code], code_labels[has_code])
    text = F.cross_entropy(text_logits.float(), text_labels[has_text])
    return {"codebooks": codebooks, "text": text}, states
