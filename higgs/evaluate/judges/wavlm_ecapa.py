"""The speaker encoder of SeedTTS-Eval: WavLM-large, a weighted sum of its layers, and an ECAPA-TDNN head.

The weights are `wavlm_large_finetune.pth` of Microsoft's UniSpeech (downstreams/speaker_verification). WavLM is that of
transformers. Not run with the real weights yet; tests compare with the authors' code on small random weights.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor
from torch.nn import functional

from higgs.evaluate.judges.base import SAMPLE_RATE, SpeakerEncoder, version_of
from higgs.evaluate.judges.wheels import MetricModelUnavailable
from higgs.workers import choose_device

# WavLM-large, as in its config on the hub.
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LARGE |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
# WavLM's keys in the checkpoint -> in transformers, applied in this order.
RENAMED = {
    r"^mask_emb$": "masked_spec_embed",
    r"^layer_norm\.": "feature_projection.layer_norm.",
    r"^post_extract_proj\.": "feature_projection.projection.",
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
UPSTREAM = "feature_extract.model."


class WavLMECAPA(SpeakerEncoder):
    """WavLM-large speaker verification, the similarity of SeedTTS-Eval's tables: 256 numbers."""

    short, on_accelerator = "WavLM-large SV", True
    MIN_SECONDS = 0.5
    ADVICE = (
        "get wavlm_large_finetune.pth from github.com/microsoft/UniSpeech/tree/main/downstreams/speaker_verification "
        "and name it after a colon: wavlm-large-sv:/path/to/wavlm_large_finetune.pth"
    )

    def __init__(self, source: str | Path | None = None, **sizes: int) -> None:
        """`sizes` are changes to WavLM-large's. Raises MetricModelUnavailable without the file, or for another one."""
        from transformers import WavLMConfig, WavLMModel

        if source is None or not Path(source).is_file():
            raise MetricModelUnavailable(f"no weights at {source}: {self.ADVICE}")
        self.name = f"WavLM-large SV, ECAPA-TDNN head ({version_of(source)})"
        wavlm, device = WavLMModel(WavLMConfig(**LARGE | sizes)), choose_device()
        try:
            weights = torch.load(source, map_location=device, weights_only=True)["model"]
            upstream = {key: w for key, w in weights.items() if key.startswith(UPSTREAM)}
            wavlm.load_state_dict({rename(key): w for key, w in upstream.items()})
            self._wavlm, self._head = wavlm.to(device).eval(), weights
            self.embed(torch.sin(torch.arange(SAMPLE_RATE) / 10), SAMPLE_RATE)  # the head's tensors fit
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError, EOFError, UnpicklingError) as error:
            raise MetricModelUnavailable(f"{source} is not the expected checkpoint: {error}") from error

    def _embed(self, samples: Tensor) -> Tensor:
        samples = functional.layer_norm(samples, samples.shape)
        outputs = self._wavlm(samples[None].to(self._wavlm.device), output_hidden_states=True)
        # transformers 5 returns the last layer before its normalisation, the authors use it after.
        return ecapa(self._head, torch.stack([*outputs.hidden_states[:-1], outputs.last_hidden_state]))[0]


def rename(key: str) -> str:
    """A key of the checkpoint's WavLM -> the parameter's name in transformers."""
    key = key.removeprefix(UPSTREAM)
    for pattern, replacement in RENAMED.items():
        key = re.sub(pattern, replacement, key)
    return key


def ecapa(weights: Mapping[str, Tensor], states: Tensor) -> Tensor:
    """The head's tensors, WavLM's hidden states [layers, B, T, D] -> [B, 256]."""

    def affine(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.batch_norm(x, weights[f"{name}.running_mean"], weights[f"{name}.running_var"], *affine(name))

    def conv_relu_norm(conv: str, bn: str, x: Tensor, dilation: int = 1) -> Tensor:
        return norm(bn, functional.conv1d(x, *affine(conv), padding="same", dilation=dilation).relu())

    def block(name: str, x: Tensor, dilation: int) -> Tensor:
        """Res2Net between two convolutions, squeeze and excitation, a residual; [B, C, T] -> [B, C, T]."""
        y = conv_relu_norm(f"{name}.Conv1dReluBn1.conv", f"{name}.Conv1dReluBn1.bn", x)
        *slices, last = y.chunk(8, dim=1)
        outputs: list[Tensor] = []
        for i, part in enumerate(slices):
            part = part + outputs[-1] if outputs else part
            res2 = f"{name}.Res2Conv1dReluBn"
            outputs.append(conv_relu_norm(f"{res2}.convs.{i}", f"{res2}.bns.{i}", part, dilation))
        y = conv_relu_norm(f"{name}.Conv1dReluBn2.conv", f"{name}.Conv1dReluBn2.bn", torch.cat([*outputs, last], dim=1))
        squeezed = functional.linear(y.mean(dim=2), *affine(f"{name}.SE_Connect.linear1")).relu()
        gates = functional.linear(squeezed, *affine(f"{name}.SE_Connect.linear2")).sigmoid()
        return x + y * gates[:, :, None]

    x = torch.einsum("n,nbtd->bdt", weights["feature_weight"].softmax(dim=0), states) + 1e-6
    x = conv_relu_norm("layer1.conv", "layer1.bn", functional.instance_norm(x))
    depths = []
    for dilation in (2, 3, 4):
        x = block(f"layer{dilation}", x, dilation)
        depths.append(x)
    x = functional.conv1d(torch.cat(depths, dim=1), *affine("conv")).relu()
    # attentive statistics pooling: mean and standard deviation over time, weighted for each channel
    hidden = functional.conv1d(x, *affine("pooling.linear1")).tanh()
    attention = functional.conv1d(hidden, *affine("pooling.linear2")).softmax(dim=2)
    mean = (attention * x).sum(dim=2)
    variance = (attention * x.square()).sum(dim=2) - mean.square()
    pooled = torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)
    return functional.linear(norm("bn", pooled), *affine("linear"))
