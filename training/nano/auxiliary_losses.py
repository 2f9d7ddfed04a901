"""Auxiliary losses that only training knows. Each can be switched off; none changes the model that is shipped.

What they teach is reading: an audio frame must find its place in the text long before the loss alone would show it how.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from higgs.batch import Batch
from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.model.higgs_audio import HiggsAudio

AHEAD = 3  # tokens: text is read causally, so a second head looks a little ahead
OFFSETS = (-1, 0, 1, 2)  # tokens around the spoken one that the character head names


@dataclass(frozen=True)
class AuxiliaryConfig:
    codebook_init: bool = True
    attention_layers: tuple[int, ...] = (2, 4)
    attention_weight: float = 0.2
    character_layer: int | None = 4
    character_weight: float = 0.3
    input_noise: float = 0.5
    codebook_weights: tuple[float, ...] = (4, 2, 1, 0.6, 0.5, 0.4, 0.3, 0.3)
    fine_share: float = 0.25  # of the positions, at which codebooks beyond the second are predicted


@torch.no_grad()
def initialise_from_codebooks(model: HiggsAudio, quantizer: ResidualVectorQuantizer) -> None:
    """Rows of the audio embedding and head start as the codec's own vectors, through a random rotation each.

    Codes that sound alike then start alike; 8 x 1026 unrelated symbols would each have to be met hundreds of times.
    """
    width, rows = model.config.hidden_size, model.config.code_vocab_size
    generator = torch.Generator().manual_seed(5)

    def rotated(vectors: Tensor) -> Tensor:
        dim = vectors.shape[1]
        basis = torch.linalg.qr(torch.randn(width, dim, generator=generator))[0]
        return vectors @ basis.T * math.sqrt(width / dim)

    for k, layer in enumerate(quantizer.layers):
        if not layer.embed.std() > 0:
            raise ValueError(f"codebook {k} holds one vector only: train the quantiser first")
        vectors = (layer.embed - layer.embed.mean(0)) / layer.embed.std()
        place = slice(k * rows, k * rows + len(vectors))
        scale = (0.08, 0.05)[k] if k < 2 else 0.03
        noise = torch.randn(len(vectors), width, generator=generator)
        model.audio_embedding.weight[place] = rotated(vectors) * scale + 0.006 * noise
        noise = torch.randn(len(vectors), width, generator=generator)
        model.audio_head.weight[place] = rotated(vectors) * 0.03 + 0.003 * noise


class Attend:
    """Attention by explicit products (quicker than the fused kernel at these lengths on a CPU), kept for the loss."""

    def __init__(self, keep: bool):
        self.keep, self.kept = keep, None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -1e9).float().softmax(-1)
        if self.keep:
            self.kept = weights[:, :2]
        return weights.to(v.dtype) @ v


class AuxiliaryLosses(nn.Module):
    """Watches a model's layers and turns what it sees into losses: attention on the spoken byte, and its name."""

    def __init__(self, model: HiggsAudio, config: AuxiliaryConfig):
        super().__init__()
        self.config = config
        self.attends = []
        for index, layer in enumerate(model.layers):
            layer.attention.attend = Attend(index in config.attention_layers)
            self.attends.append(layer.attention.attend)
        self.character_head = nn.Linear(model.config.hidden_size, len(OFFSETS) * model.config.vocab_size)

    def attention_loss(self, spoken: Tensor) -> Tensor:
        """spoken [B, S]: position of the byte spoken at each position, -1 where none is."""
        rows = spoken >= 0
        losses = []
        for attend in self.attends:
            if not attend.keep:
                continue
            for head, ahead in ((0, 0), (1, AHEAD)):
                target = (spoken + ahead).clamp(min=0, max=spoken.shape[1] - 1)
                mass = attend.kept[:, head].gather(2, target[..., None])[..., 0][rows]
                losses.append(-(mass + 1e-6).log().mean())
        return torch.stack(losses).mean() * 2

    def character_loss(self, state: Tensor, batch: Batch, spoken: Tensor) -> Tensor:
        """state [B, S, D]: what the model knows at the chosen layer."""
        rows = spoken >= 0
        logits = self.character_head(state[rows]).float().unflatten(-1, (len(OFFSETS), -1))
        around = spoken[..., None] + torch.tensor(OFFSETS)
        names = batch.input_ids.gather(1, around.clamp(min=0).flatten(1)).view(around.shape)[rows]
        return nn.functional.cross_entropy(logits.flatten(0, 1), names.flatten())
