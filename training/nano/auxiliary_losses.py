"""Auxiliary losses of training. Each can be switched off; none changes the architecture that is shipped.

They teach the alignment of audio and text, which a model of this size learns late from next-code prediction alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from higgs.batch import Batch
from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.train.losses import CodeLosses, code_losses, codebook_losses

NUM_COARSE = 2  # codebooks with nearly all of the linguistic content, always predicted at every position
AHEAD = 3  # tokens: text is encoded causally, so a second head attends a little ahead
OFFSETS = (-1, 0, 1, 2)  # tokens around the aligned one that the character head predicts


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


def sampled_losses(share: float) -> CodeLosses:
    """Losses whose fine codebooks use a random `share` of the positions."""

    def losses(model: HiggsAudio, hidden: Tensor, targets: Tensor) -> Tensor:
        size, sampled = model.config.code_vocab_size, (torch.rand(len(hidden)) < share).to(hidden.device)
        coarse, fine = model.audio_head.weight.split([NUM_COARSE * size, (targets.shape[1] - NUM_COARSE) * size])
        first = codebook_losses(F.linear(hidden, coarse), targets[:, :NUM_COARSE])
        return torch.cat([first, codebook_losses(F.linear(hidden[sampled], fine), targets[sampled, NUM_COARSE:])])

    return code_losses if share >= 1 else losses


@torch.no_grad()
def initialise_from_codebooks(model: HiggsAudio, quantizer: ResidualVectorQuantizer) -> None:
    """Audio embeddings and heads start as the codec's codebook vectors, through a random rotation for each codebook.

    Codes that sound alike then start alike; 8 x 1026 unrelated ones would each need hundreds of examples.
    """
    width, vocabulary = model.config.hidden_size, model.config.code_vocab_size
    generator = torch.Generator().manual_seed(5)

    def rotated(vectors: Tensor) -> Tensor:
        dim = vectors.shape[1]
        basis = torch.linalg.qr(torch.randn(width, dim, generator=generator))[0]
        return vectors @ basis.T * math.sqrt(width / dim)

    for k, layer in enumerate(quantizer.layers):
        if not layer.embed.std() > 0:
            raise ValueError(f"codebook {k} holds one vector only: train the quantiser first")
        vectors = (layer.embed - layer.embed.mean(0)) / layer.embed.std()
        rows = slice(k * vocabulary, k * vocabulary + len(vectors))
        scale = (0.08, 0.05)[k] if k < 2 else 0.03
        noise = torch.randn(len(vectors), width, generator=generator)
        model.audio_embedding.weight[rows] = rotated(vectors) * scale + 0.006 * noise
        noise = torch.randn(len(vectors), width, generator=generator)
        model.audio_head.weight[rows] = rotated(vectors) * 0.03 + 0.003 * noise


class Attend:
    """Attention by explicit products (faster than the fused kernel at these lengths on a CPU).

    With `store`, the weights of the first two heads stay in `weights` [B, 2, S, S] for the loss.
    """

    def __init__(self, store: bool):
        self.store, self.weights = store, None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -1e9).float().softmax(-1)
        if self.store:
            self.weights = weights[:, :2]
        return weights.to(v.dtype) @ v


class AuxiliaryLosses(nn.Module):
    """Two losses on a model's layers: attention on the aligned text token, and prediction of the tokens around it."""

    def __init__(self, model: HiggsAudio, config: AuxiliaryConfig):
        super().__init__()
        self.config = config
        self.attends = []
        for index, layer in enumerate(model.layers):
            layer.attention.attend = Attend(index in config.attention_layers)
            self.attends.append(layer.attention.attend)
        self.character_head = nn.Linear(model.config.hidden_size, len(OFFSETS) * model.config.vocab_size)

    def attention_loss(self, alignment: Tensor) -> Tensor:
        """alignment [B, S]: position of the text token spoken at each position, -1 where none is."""
        aligned = alignment >= 0
        losses = []
        for attend in self.attends:
            if not attend.store:
                continue
            for head, ahead in ((0, 0), (1, AHEAD)):
                target = (alignment + ahead).clamp(min=0, max=alignment.shape[1] - 1)
                mass = attend.weights[:, head].gather(2, target[..., None])[..., 0][aligned]
                losses.append(-(mass + 1e-6).log().mean())
        return torch.stack(losses).mean() * 2

    def character_loss(self, state: Tensor, batch: Batch, alignment: Tensor) -> Tensor:
        """state [B, S, D]: hidden states of the chosen layer."""
        aligned = alignment >= 0
        logits = self.character_head(state[aligned]).float().unflatten(-1, (len(OFFSETS), -1))
        around = alignment[..., None] + torch.tensor(OFFSETS, device=alignment.device)
        targets = batch.input_ids.gather(1, around.clamp(min=0).flatten(1)).view(around.shape)[aligned]
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
