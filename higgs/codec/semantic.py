"""The semantic branch: HuBERT's hidden states at 16 kHz, averaged over its layers, at the codec's frame rate."""

import torch
from torch import Tensor, nn

from higgs.audio import resample, torchaudio
from higgs.codec.padding import Lengths, conv_lengths, group_norm, length_mask, mask_padding
from higgs.config import CodecConfig, SemanticConfig

hubert = torchaudio.models.wav2vec2.components
EDGE = 160  # zeros at each side of the 16 kHz signal, whatever the hop
CONV_LAYERS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))  # kernel and stride


class Hubert(nn.Module):
    """HuBERT-base's layers (Hsu et al. 2021) at the given sizes, without dropout, named as in transformers.

    They are torchaudio's: importing those of transformers takes as long as speaking a sentence.
    """

    def __init__(self, config: SemanticConfig):
        super().__init__()
        width, channels = config.hidden_size, [1, *(config.conv_dim for _ in CONV_LAYERS)]
        norms = [nn.GroupNorm(config.conv_dim, config.conv_dim), *(None for _ in CONV_LAYERS[1:])]
        sizes = zip(channels, channels[1:], CONV_LAYERS, norms, strict=False)
        convs = [hubert.ConvLayerBlock(i, o, *layer, bias=False, layer_norm=norm) for i, o, layer, norm in sizes]
        layers = [
            hubert.EncoderLayer(
                hubert.SelfAttention(width, config.num_heads),
                dropout=0.0,
                layer_norm_first=False,
                feed_forward=hubert.FeedForward(width, config.intermediate_size, 0.0, 0.0),
            )
            for _ in range(config.num_layers)
        ]
        with torch.device("cpu"):  # on the meta device, weight normalisation imports torch._dynamo: a second
            position = hubert.ConvolutionalPositionalEmbedding(width, config.position_kernel, config.position_groups)
        self.feature_extractor = hubert.FeatureExtractor(nn.ModuleList(convs))
        self.feature_projection = hubert.FeatureProjection(config.conv_dim, width, dropout=0.0)
        self.encoder = hubert.Transformer(position, 0.0, nn.ModuleList(layers), layer_norm_first=False, layer_drop=0.0)


class SemanticUnit(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x_in = mask_padding(nn.functional.elu(x), lengths)
        return x + self.conv2(nn.functional.elu(self.conv1(x_in)))


class SemanticBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.units = nn.Sequential(SemanticUnit(width), SemanticUnit(width))
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        for unit in self.units:
            x = unit(x, lengths)
        return self.conv(mask_padding(x, lengths))


class SemanticEncoder(nn.Module):
    """[B, 1, L] at `sample_rate` -> [B, D, T]"""

    def __init__(self, config: CodecConfig):
        super().__init__()
        width = config.semantic.hidden_size
        self.sample_rate, self.semantic_rate = config.sample_rate, config.semantic_sample_rate
        # HuBERT has one frame for 320 samples at 16 kHz; every `step`-th is used.
        self.step = int(config.hop_length / (config.sample_rate / config.semantic_sample_rate) / 320)
        self.teacher = Hubert(config.semantic)
        self.conv = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(SemanticBlock(width), SemanticBlock(width))

    def frames(self, samples: Lengths) -> Lengths:
        """Number of output frames; below 1 where HuBERT, with 50 a second, has no input for one."""
        samples = -(-samples * self.semantic_rate // self.sample_rate) + 2 * EDGE
        for layer in self.teacher.feature_extractor.conv_layers:
            samples = conv_lengths(samples, layer.conv)
        return -(-samples // self.step)

    def features(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, 1, L] -> [B, T, D]: the mean of all hidden states of HuBERT, every `step`-th frame."""
        x = resample(waveform, self.sample_rate, self.semantic_rate)
        steps = None
        if lengths is not None:
            steps = -(-lengths * self.semantic_rate // self.sample_rate)
            x, steps = mask_padding(x, steps), steps + 2 * EDGE
        x = nn.functional.pad(x, (EDGE, EDGE))
        for layer in self.teacher.feature_extractor.conv_layers:
            # These convolutions have no padding: what lies beyond the end reaches no valid step.
            x, steps = layer.conv(x), None if steps is None else conv_lengths(steps, layer.conv)
            if layer.layer_norm is not None:
                x = group_norm(x, layer.layer_norm, steps)
            x = nn.functional.gelu(x)
        x = self.teacher.feature_projection(x.transpose(1, 2))
        return torch.stack(self._hidden_states(x, steps)).mean(dim=0)[:, :: self.step]

    def _hidden_states(self, x: Tensor, steps: Tensor | None) -> list[Tensor]:
        """[B, S, D] -> the input of the first layer and the output of each, all [B, S, D]."""
        encoder, mask = self.teacher.encoder, None
        if steps is not None:
            x = mask_padding(x.transpose(1, 2), steps).transpose(1, 2)
            mask = length_mask(x.transpose(1, 2), steps)[:, None].expand(-1, -1, x.shape[1], -1)
        states = [encoder.layer_norm(x + encoder.pos_conv_embed(x))]
        for layer in encoder.layers:
            states.append(layer(states[-1], attention_mask=mask)[0])
        return states

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.features(waveform, lengths).transpose(1, 2)
        frames = None if lengths is None else self.frames(lengths)
        x = self.conv(mask_padding(x, frames))
        for block in self.blocks:
            x = block(x, frames)
        return x
