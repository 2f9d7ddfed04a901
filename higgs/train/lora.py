"""Low-rank adapters (peft) on the model's matrices, and layers that are computed again instead of remembered."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# peft imports transformers: after higgs.audio, which imports torchaudio in the one way that works everywhere.
from higgs.audio import torchaudio  # noqa: F401
from higgs.model.higgs_audio import HiggsAudio

# How frames sound is in the audio FFN and the head. Attention is where text is read: adapted on a few minutes of
# speech it forgets words. The text FFN only prepares the prompt.
TARGETS = r"layers\.\d+\.audio_ffn\.1\.(gate|up|down)_proj|audio_head"
ATTENTION = r"layers\.\d+\.attention\.(q|k|v|o)_proj"


def add_lora(model: HiggsAudio, rank: int, attention: bool = False) -> nn.Module:
    """Freezes the model and adds adapters of `rank` to it, in place -> peft's handle, for `merge_lora`.

    B starts at 0, so that nothing has changed yet. Updates are scaled by 2. `attention`: adapters there, too.
    """
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, got {rank}")
    targets = f"{TARGETS}|{ATTENTION}" if attention else TARGETS
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    return get_peft_model(model, config)


def merge_lora(handle: nn.Module) -> HiggsAudio:
    """-> the model with the adapters added into its matrices, and nothing left of peft."""
    return handle.merge_and_unload()


def recompute_layers(model: HiggsAudio) -> None:
    """Each layer keeps only its input, and is computed again on the way back: less memory, a third more work."""
    for layer in model.layers:
        layer.forward = _Recomputed(layer.forward)


class _Recomputed:
    def __init__(self, forward):
        self.forward = forward

    def __call__(self, x: Tensor, *rest) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(x, *rest)
        return checkpoint(self.forward, x, *rest, use_reentrant=False)
