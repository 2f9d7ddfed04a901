"""The speaker encoder of SeedTTS-Eval: WavLM-large, a weighted sum of its layers, and an ECAPA-TDNN head.

The weights are `wavlm_large_finetune.pth` of Microsoft's UniSpeech (downstreams/speaker_verification). WavLM is that
of transformers; modules of the head have the names of the checkpoint. Not run with the real weights on this code yet;
tests compare it with the authors' code on small random weights.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from higgs.evaluate.judges.base import SpeakerEncoder, accelerator
from higgs.evaluate.judges.wheels import JudgeUnavailable

# WavLM-large, as in its config on the hub.
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
# Parts of the checkpoint's keys -> of those of transformers, applied in this order.
RENAMED = {
    r"^feature_extract\.model\.mask_emb$": "wavlm.masked_spec_embed",
    r"^feature_extract\.model\.layer_norm\.": "wavlm.feature_projection.layer_norm.",
    r"^feature_extract\.model\.post_extract_proj\.": "wavlm.feature_projection.projection.",
    r"^feature_extract\.model\.": "wavlm.",
    r"\.conv_layers\.(\d+)\.0\.": r".conv_layers.\1.conv.",
    r"\.conv_layers\.(\d+)\.2\.1\.": r".conv_layers.\1.layer_norm.",
    r"\.pos_conv\.0\.weight_g$": ".pos_conv_embed.conv.parametrizations.weight.original0",
    r"\.pos_conv\.0\.weight_v$": ".pos_conv_embed.conv.parametrizations.weight.original1",
    r"\.pos_conv\.0\.": ".pos_conv_embed.conv.",
    r"\.self_attn\.relative_attention_bias\.": ".attention.rel_attn_embed.",
    r"\.self_attn\.grep_linear\.": ".attention.gru_rel_pos_linear.",
    r"\.self_attn\.grep_a$": ".attention.gru_rel_pos_const",
    r"\.self_attn\.": ".attention.",
    r"\.self_attn_layer_norm\.": ".layer_norm.",
    r"\.fc1\.": ".feed_forward.intermediate_dense.",
    r"\.fc2\.": ".feed_forward.output_dense.",
}


class ConvReluBN(nn.Module):
    """[B, in, T] -> [B, out, T]."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x).relu())


class Res2Conv(nn.Module):
    """[B, D, T] -> [B, D, T]: eight slices; each but the last is convolved after adding the previous output."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // 8
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(7))
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        *slices, last = x.chunk(8, dim=1)
        outputs: list[Tensor] = []
        for part, conv, bn in zip(slices, self.convs, self.bns, strict=True):
            outputs.append(bn(conv(part + outputs[-1] if outputs else part).relu()))
        return torch.cat([*outputs, last], dim=1)


class SERes2Block(nn.Module):
    """[B, D, T] -> [B, D, T]: Res2Conv between two convolutions, squeeze and excitation, a residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.Conv1dReluBn1, self.Conv1dReluBn2 = ConvReluBN(channels, channels), ConvReluBN(channels, channels)
        self.Res2Conv1dReluBn = Res2Conv(channels, dilation)
        self.SE_Connect = nn.ModuleDict({"linear1": nn.Linear(channels, 128), "linear2": nn.Linear(128, channels)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x)))
        gates = self.SE_Connect["linear2"](self.SE_Connect["linear1"](y.mean(dim=2)).relu()).sigmoid()
        return x + y * gates[:, :, None]


class ECAPA(nn.Module):
    """[B, L] at 16 kHz, each of mean 0 and variance 1 -> [B, 256]."""

    def __init__(self, wavlm: nn.Module, channels: int = 512, joined: int = 1536) -> None:
        super().__init__()
        self.wavlm = wavlm
        self.feature_weight = nn.Parameter(torch.zeros(wavlm.config.num_hidden_layers + 1))
        self.layer1 = ConvReluBN(wavlm.config.hidden_size, channels, kernel=5)
        self.layer2, self.layer3, self.layer4 = (SERes2Block(channels, dilation) for dilation in (2, 3, 4))
        self.conv = nn.Conv1d(3 * channels, joined, 1)
        self.pooling = nn.ModuleDict({"linear1": nn.Conv1d(joined, 128, 1), "linear2": nn.Conv1d(128, joined, 1)})
        self.bn = nn.BatchNorm1d(2 * joined)
        self.linear = nn.Linear(2 * joined, 256)

    def forward(self, waveform: Tensor) -> Tensor:
        outputs = self.wavlm(waveform, output_hidden_states=True)
        # transformers 5 returns the last layer before its normalisation, the authors use it after.
        states = torch.stack([*outputs.hidden_states[:-1], outputs.last_hidden_state])
        x = torch.einsum("n,nbtd->bdt", self.feature_weight.softmax(dim=0), states) + 1e-6
        x = self.layer1(functional.instance_norm(x))
        depths = []
        for block in (self.layer2, self.layer3, self.layer4):
            x = block(x)
            depths.append(x)
        x = self.conv(torch.cat(depths, dim=1)).relu()
        # attentive statistics pooling: mean and standard deviation over time, weighted for each channel
        weights = self.pooling["linear2"](self.pooling["linear1"](x).tanh()).softmax(dim=2)
        mean = (weights * x).sum(dim=2)
        variance = (weights * x.square()).sum(dim=2) - mean.square()
        return self.linear(self.bn(torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)))


class WavLMECAPA(SpeakerEncoder):
    """WavLM-large speaker verification, the similarity of SeedTTS-Eval's tables."""

    short = "WavLM-large SV"
    MIN_SECONDS = 0.5
    ADVICE = (
        "get wavlm_large_finetune.pth from github.com/microsoft/UniSpeech/tree/main/downstreams/speaker_verification "
        "and name it after a colon: wavlm-large-sv:/path/to/wavlm_large_finetune.pth"
    )

    def __init__(self, source: str | None = None, **sizes: int) -> None:
        """`sizes` are changes to WavLM-large's. Raises JudgeUnavailable without the file, or for another one."""
        if source is None or not Path(source).is_file():
            raise JudgeUnavailable(f"no weights at {source}: {self.ADVICE}")
        self.name = f"WavLM-large SV, ECAPA-TDNN head ({Path(source).name})"
        self._network = load_network(source, **sizes).to(accelerator())

    def _embed(self, samples: Tensor) -> Tensor:
        samples = functional.layer_norm(samples, samples.shape)
        return self._network(samples[None].to(self._network.feature_weight.device))[0]


def load_network(source: str | Path, **sizes: int) -> ECAPA:
    """UniSpeech's checkpoint -> the network, every tensor used; JudgeUnavailable for another file."""
    from transformers import WavLMConfig, WavLMModel

    weights = torch.load(source, map_location="cpu", weights_only=True)["model"]
    weights = {rename(key): value for key, value in weights.items() if not key.startswith("loss_calculator.")}
    network = ECAPA(WavLMModel(WavLMConfig(**LARGE | sizes))).eval()
    expected, found = ({k: v.shape for k, v in tensors.items()} for tensors in (network.state_dict(), weights))
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise JudgeUnavailable(
            f"{source} is not the expected checkpoint: {len(wrong)} tensors are missing, unknown or of another shape, "
            f"{wrong[0]} for one"
        )
    network.load_state_dict(weights)
    return network


def rename(key: str) -> str:
    """A key of the checkpoint -> the parameter's name in `ECAPA`."""
    for pattern, replacement in RENAMED.items():
        key = re.sub(pattern, replacement, key)
    return key
