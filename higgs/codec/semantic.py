"""The semantic branch: what HuBERT hears at 16 kHz, averaged over its layers, at the codec's frame rate."""

import torch
from torch import Tensor, nn

from higgs.audio import resample
from higgs.config import CodecConfig, SemanticConfig

# After higgs.audio, which imports torchaudio in the one way that works everywhere.
from transformers import HubertConfig, HubertModel  # isort: skip

EDGE = 160  # zeros at each side of the 16 kHz signal, whatever the hop
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)


def hubert(config: SemanticConfig) -> HubertModel:
    """HuBERT-base's architecture at the given sizes, every dropout and mask off."""
    return HubertModel(
        HubertConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            conv_dim=(config.conv_dim,) * len(CONV_KERNELS),
            conv_kernel=CONV_KERNELS,
            conv_stride=CONV_STRIDES,
            num_conv_pos_embeddings=config.position_kernel,
            num_conv_pos_embedding_groups=config.position_groups,
            mask_time_prob=0.0,
            layerdrop=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
        )
    )


class SemanticUnit(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(nn.functional.elu(self.conv1(nn.functional.elu(x))))


class SemanticBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.units = nn.Sequential(SemanticUnit(width), SemanticUnit(width))
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.units(x))


class SemanticEncoder(nn.Module):
    """[B, 1, L] at `sample_rate` -> [B, D, T]"""

    def __init__(self, config: CodecConfig):
        super().__init__()
        width = config.semantic.hidden_size
        self.sample_rate = config.sample_rate
        self.semantic_rate = config.semantic_sample_rate
        # HuBERT gives one frame for 320 samples at 16 kHz; every `step`-th is kept.
        self.step = config.semantic_step
        self.teacher = hubert(config.semantic)
        self.conv = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(SemanticBlock(width), SemanticBlock(width))

    def features(self, waveform: Tensor) -> Tensor:
        """[B, 1, L] -> [B, T, D]: the mean of all hidden states of HuBERT, every `step`-th frame."""
        speech = resample(waveform[:, 0], self.sample_rate, self.semantic_rate)
        speech = nn.functional.pad(speech, (EDGE, EDGE))
        states = self.teacher(speech, output_hidden_states=True).hidden_states
        return torch.stack(states, dim=1).mean(dim=1)[:, :: self.step]

    def forward(self, waveform: Tensor) -> Tensor:
        return self.blocks(self.conv(self.features(waveform).transpose(1, 2)))
