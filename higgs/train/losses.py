"""What a model is trained on: text, and the codes of each codebook."""

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs.batch import Batch
from higgs.delay import IGNORE
from higgs.model.higgs_audio import HiggsAudio
from higgs.train.precision import autocast, best_dtype

WHOLE = 2  # codebooks that hold nearly all of the words, and are predicted at every position


def corrupt(batch: Batch, most: float, codebook_size: int) -> Batch:
    """Replaces 0 ... `most` of a sequence's delayed frames by random codes, so that history cannot replace text.

    Random numbers are the CPU's on every device.
    """
    device, shape = batch.codes.device, batch.input_ids.shape
    rate = most * torch.rand(len(batch.input_ids), 1)
    frames = (torch.rand(shape) < rate).to(device) & batch.audio_out_mask
    noise = torch.randint(0, codebook_size, batch.codes.shape).to(device)
    hit = frames[..., None] & (batch.codes < codebook_size)
    return Batch(**(vars(batch) | {"codes": torch.where(hit, noise, batch.codes)}))


def code_losses(model: HiggsAudio, hidden: Tensor, targets: Tensor, share: float) -> Tensor:
    """hidden [R, D], targets [R, K] -> nats [K]. The finer codebooks from a random `share` of the rows alone."""
    if share >= 1:  # by the head itself, which may have adapters
        return book_losses(model.audio_head(hidden), targets)
    size, some = model.config.code_vocab_size, torch.rand(len(hidden)) < share
    coarse, fine = model.audio_head.weight.split([WHOLE * size, (targets.shape[1] - WHOLE) * size])
    first = book_losses(F.linear(hidden, coarse), targets[:, :WHOLE])
    return torch.cat([first, book_losses(F.linear(hidden[some], fine), targets[some, WHOLE:])])


def book_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [R, k (N + 2)], targets [R, k] -> nats [k]; 0 where nothing is to be predicted."""
    # Flat: a strided softmax over the codebook axis is twice as slow on a CPU.
    each = F.cross_entropy(
        logits.float().view(-1, logits.shape[1] // targets.shape[1]),
        targets.reshape(-1),
        reduction="none",
        ignore_index=IGNORE,
    ).view(targets.shape)
    return each.sum(0) / (targets >= 0).sum(0).clamp(min=1)


def speech_losses(
    model: HiggsAudio,
    inputs: Batch,
    labels: Batch,
    share: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """-> `text` and `codebooks` [K], nats; and the input of each layer. Products in `dtype`, by default in the
    format that suits the device.

    The heads run only where something is predicted: over all positions they would cost more than the layers. `share`
    as in `code_losses`.
    """
    device = inputs.input_ids.device
    with autocast(device, dtype or best_dtype(device)):
        hidden, states = model.hidden(inputs)
        text_labels, code_labels = labels.labels[:, 1:], labels.code_labels[:, 1:]
        text_rows, code_rows = text_labels >= 0, (code_labels >= 0).any(-1)
        text_logits = model.text_head(hidden[:, :-1][text_rows])
        codebooks = code_losses(model, hidden[:, :-1][code_rows], code_labels[code_rows], share)
    text = F.cross_entropy(text_logits.float(), text_labels[text_rows])
    return {"codebooks": codebooks, "text": text}, states
