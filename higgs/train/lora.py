"""Low-rank adapters (peft) on the model's matrices, and gradient checkpointing of its layers."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# peft imports transformers: after higgs.audio, which imports torchaudio in the one way that works everywhere.
from higgs.audio import torchaudio  # noqa: F401
from higgs.model.higgs_audio import HiggsAudio

# The audio FFN and head determine the acoustics. Attention adapted on a few minutes of speech loses words; the text FFN
# only processes the prompt.
TARGETS = r"layers\.\d+\.audio_ffn\.1\.(gate|up|down)_proj|audio_head"
ATTENTION = r"layers\.\d+\.attention\.(q|k|v|o)_proj"


def add_lora(model: HiggsAudio, rank: int, attention: bool = False) -> nn.Module:
    """Freezes the model and adds adapters of `rank` in place, with updates scaled by 2 -> peft's model."""
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, got {rank}")
    targets = f"{TARGETS}|{ATTENTION}" if attention else TARGETS
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    return get_peft_model(model, config)


def enable_gradient_checkpointing(model: HiggsAudio) -> None:
    """Each layer stores only its input and runs again in the backward pass: less memory, a third more compute."""
    for layer in model.layers:
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable[..., Tensor], *inputs) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
