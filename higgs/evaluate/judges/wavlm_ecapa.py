"""The speaker encoder of SeedTTS-Eval: WavLM-large, every layer weighed, under an ECAPA-TDNN head.

The weights are `wavlm_large_finetune.pth` of Microsoft's UniSpeech (downstreams/speaker_verification),
which come from a shared drive and not from a hub; copies of the file are on the hub. The network is
theirs, in the names of this project; WavLM itself is that of transformers. Nobody has run it with the
real weights on this code yet; tests compare it with the authors' code on small random weights.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from higgs.evaluate.judges.hub import choose_device, voiced
from higgs.evaluate.judges.wheels import JudgeUnavailable

# WavLM-large, as its config on the hub has it.
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
# Keys of the file -> names here, in turn.
RENAMED = (
    (r"^feature_extract\.model\.", "wavlm."),
    (r"^feature_weight$", "layer_weights"),
    (r"^layer1\.", "enter."),
    (r"^layer([234])\.", r"blocks.\1."),
    (r"^conv\.", "join."),
    (r"^pooling\.linear1\.", "pool.attend."),
    (r"^pooling\.linear2\.", "pool.weigh."),
    (r"^bn\.", "norm."),
    (r"^linear\.", "project."),
    (r"\.Conv1dReluBn1\.", ".enter."),
    (r"\.Conv1dReluBn2\.", ".leave."),
    (r"\.Res2Conv1dReluBn\.", ".scales."),
    (r"\.SE_Connect\.linear1\.", ".squeeze."),
    (r"\.SE_Connect\.linear2\.", ".excite."),
    (r"\.bns\.", ".norms."),
    (r"\.bn\.", ".norm."),
    (r"^wavlm\.mask_emb$", "wavlm.masked_spec_embed"),
    (r"^wavlm\.layer_norm\.", "wavlm.feature_projection.layer_norm."),
    (r"^wavlm\.post_extract_proj\.", "wavlm.feature_projection.projection."),
    (r"\.conv_layers\.(\d+)\.0\.", r".conv_layers.\1.conv."),
    (r"\.conv_layers\.(\d+)\.2\.1\.", r".conv_layers.\1.layer_norm."),
    (r"\.pos_conv\.0\.weight_g$", ".pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"\.pos_conv\.0\.weight_v$", ".pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"\.pos_conv\.0\.", ".pos_conv_embed.conv."),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
LOSS_KEY = "loss_calculator."  # of training, not of the encoder


class ConvReluNorm(nn.Module):
    """[B, in, T] -> [B, out, T]."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu())


class Scales(nn.Module):
    """[B, D, T] -> [B, D, T]: eight slices; each but the last is convolved after adding the one before."""

    SLICES = 8

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // self.SLICES
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(self.SLICES - 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(self.SLICES - 1))

    def forward(self, x: Tensor) -> Tensor:
        *slices, last = x.chunk(self.SLICES, dim=1)
        done: list[Tensor] = []
        for part, conv, norm in zip(slices, self.convs, self.norms, strict=True):
            done.append(norm(conv(part + done[-1] if done else part).relu()))
        return torch.cat([*done, last], dim=1)


class Block(nn.Module):
    """[B, D, T] -> [B, D, T]: scales between two convolutions, channels gated by their means, a residual."""

    def __init__(self, channels: int, dilation: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.enter, self.leave = ConvReluNorm(channels, channels), ConvReluNorm(channels, channels)
        self.scales = Scales(channels, dilation)
        self.squeeze = nn.Linear(channels, bottleneck)
        self.excite = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(self.scales(self.enter(x)))
        gates = self.excite(self.squeeze(y.mean(dim=2)).relu()).sigmoid()
        return x + y * gates[:, :, None]


class AttentivePool(nn.Module):
    """[B, D, T] -> [B, 2 D]: mean and standard deviation over time, frames weighed for each channel."""

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.attend = nn.Conv1d(channels, bottleneck, 1)
        self.weigh = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weigh(self.attend(x).tanh()).softmax(dim=2)
        mean = (weights * x).sum(dim=2)
        variance = (weights * x.square()).sum(dim=2) - mean.square()
        return torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)


class SpeakerNetwork(nn.Module):
    """[B, L] at 16 kHz, each of mean 0 and variance 1 -> [B, 256]."""

    def __init__(self, wavlm: nn.Module, channels: int = 512, joined: int = 1536) -> None:
        super().__init__()
        config = wavlm.config
        self.wavlm = wavlm
        self.layer_weights = nn.Parameter(torch.zeros(config.num_hidden_layers + 1))
        self.enter = ConvReluNorm(config.hidden_size, channels, kernel=5)
        self.blocks = nn.ModuleDict({str(d): Block(channels, dilation=d) for d in (2, 3, 4)})
        self.join = nn.Conv1d(3 * channels, joined, 1)
        self.pool = AttentivePool(joined)
        self.norm = nn.BatchNorm1d(2 * joined)
        self.project = nn.Linear(2 * joined, 256)

    def forward(self, waveform: Tensor) -> Tensor:
        outputs = self.wavlm(waveform, output_hidden_states=True)
        # transformers 5 hands out the last layer before its normalisation, the authors use it after.
        states = torch.stack([*outputs.hidden_states[:-1], outputs.last_hidden_state])
        x = torch.einsum("n,nbtd->bdt", self.layer_weights.softmax(dim=0), states) + 1e-6
        x = self.enter(functional.instance_norm(x))
        depths = []
        for block in self.blocks.values():
            x = block(x)
            depths.append(x)
        x = self.join(torch.cat(depths, dim=1)).relu()
        return self.project(self.norm(self.pool(x)))


class WavLMECAPA:
    """WavLM-large speaker verification, the similarity of SeedTTS-Eval's tables."""

    short = "WavLM-large SV"
    ADVICE = (
        "get wavlm_large_finetune.pth from github.com/microsoft/UniSpeech/tree/main/downstreams/speaker_verification "
        "and name it behind a colon: wavlm-large-sv:/path/to/wavlm_large_finetune.pth"
    )

    def __init__(self, source: str | None = None, **sizes: int) -> None:
        """`sizes` are changes to WavLM-large's. Raises JudgeUnavailable without the file, or for another one."""
        if source is None or not Path(source).is_file():
            raise JudgeUnavailable(f"no weights at {source}: {self.ADVICE}")
        self.name = f"WavLM-large SV, ECAPA-TDNN head ({Path(source).name})"
        self._network = load_network(source, **sizes).to(choose_device())

    @torch.inference_mode()
    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """float [L] in [-1, 1] -> [256] of length 1; raises ValueError as `voiced` does."""
        samples = voiced(waveform, sample_rate)
        samples = functional.layer_norm(samples, samples.shape)
        embedding = self._network(samples[None].to(self._network.project.weight.device))[0].cpu()
        return embedding / embedding.norm()


def load_network(source: str | Path, **sizes: int) -> SpeakerNetwork:
    """The file of the authors -> the network, every tensor used and every parameter filled.

    Raises JudgeUnavailable for a file that holds something else.
    """
    from transformers import WavLMConfig, WavLMModel

    file = torch.load(source, map_location="cpu", weights_only=True)
    weights = {rename(key): value for key, value in file["model"].items() if not key.startswith(LOSS_KEY)}
    network = SpeakerNetwork(WavLMModel(WavLMConfig(**LARGE | sizes))).eval()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if wrong := sorted(name for name in shapes | found if shapes.get(name) != found.get(name)):
        raise JudgeUnavailable(
            f"{source} is not the expected checkpoint: {len(wrong)} tensors are missing, unknown or of another shape, "
            f"{wrong[0]} for one"
        )
    network.load_state_dict(weights)
    return network


def rename(key: str) -> str:
    """A key of the authors' file -> the parameter's name here."""
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return key
