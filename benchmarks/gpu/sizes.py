"""What is measured, at three sizes: the release's, and two for rehearsals."""

from dataclasses import dataclass, replace

import torch

from benchmarks.decode import SMALL, TINY
from higgs import AudioTokenizer
from higgs.config import CodecConfig, ModelConfig, SemanticConfig

TINY_CODEC = CodecConfig(
    encoder_width=4, decoder_width=96, acoustic_dim=24,
    semantic=SemanticConfig(hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, conv_dim=24),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """`prompt` positions before the steps of one request; `latency` before the first packet; `few` and `many` steps.

    `rows` is the largest batch, with `contexts` from the shortest to the longest in `room` positions. `clips` of
    `seconds` each for the codec; `gigabytes` are read for the bandwidth.
    """

    model: ModelConfig
    codec: CodecConfig
    prompt: int
    latency: int
    few: int
    many: int
    rows: int
    contexts: tuple[int, int]
    room: int
    clips: int
    seconds: tuple[float, float]
    gigabytes: float
    repeats: int


REHEARSAL = (32, 48, 4, 12, 4, (25, 150), 256, 4, (0.5, 1.0), 0.02, 1)
SIZES = {
    "released": Size(
        ModelConfig(), CodecConfig(), 300, 512, 20, 120, 64, (200, 1200), 1536, 64, (1.0, 10.0), 6.0, repeats=3
    ),
    "small": Size(SMALL, TINY_CODEC, *REHEARSAL),
    "tiny": Size(replace(TINY, hidden_size=128, num_heads=8), TINY_CODEC, *REHEARSAL),  # int4 goes by 64
}


def random_codec(config: CodecConfig, device: str) -> AudioTokenizer:
    """Random weights; codebooks are spread, so that codes differ."""
    torch.manual_seed(0)
    codec = AudioTokenizer(config).eval().requires_grad_(False).to(device)
    for name, buffer in codec.named_buffers():
        if name.endswith("embed"):
            buffer.normal_()
    return codec
