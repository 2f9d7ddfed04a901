"""What a model is trained on: text, and the codes of each codebook."""

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.delay import IGNORE
from higgs.model.higgs_audio import HiggsAudio


def speech_losses(
    model: HiggsAudio, inputs: Batch, labels: Batch
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """-> `text` and `codebooks` [K], nats; and the input of each layer. In bfloat16 by autocast.

    The heads run only where something is predicted: over all positions they would cost more than the layers.
    """
    with torch.autocast(inputs.input_ids.device.type, dtype=torch.bfloat16):
        hidden, states = model.hidden(inputs)
        text_labels, code_labels = labels.labels[:, 1:], labels.code_labels[:, 1:]
        text_rows, code_rows = text_labels >= 0, (code_labels >= 0).any(-1)
        text_logits = model.text_head(hidden[:, :-1][text_rows])
        code_logits = model.audio_head(hidden[:, :-1][code_rows])
    targets = code_labels[code_rows]
    # Flat: a strided softmax over the codebook axis is twice as slow on a CPU.
    each = torch.nn.functional.cross_entropy(
        code_logits.float().view(-1, model.config.code_vocab_size),
        targets.reshape(-1),
        reduction="none",
        ignore_index=IGNORE,
    ).view(targets.shape)
    parts = {
        "codebooks": each.sum(0) / (targets >= 0).sum(0),
        "text": torch.nn.functional.cross_entropy(text_logits.float(), text_labels[text_rows]),
    }
    return parts, states
