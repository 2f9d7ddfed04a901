"""Training the quantiser: VQ with exponential moving averages (EMA), as in EnCodec and SoundStream."""

import torch
from torch import Tensor, nn

from higgs.codec.quantizer import ResidualVectorQuantizer, nearest

DECAY = 0.99
DEAD_BELOW = 0.15  # average count per batch under which a code is given a new vector


class CodebookEMA(nn.Module):
    """The moving averages of counts and sums that one codebook's vectors are made of."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.register_buffer("count", torch.ones(codebook_size))
        self.register_buffer("total", torch.zeros(codebook_size, codebook_dim))
        self.register_buffer("ready", torch.zeros(1))

    @torch.no_grad()
    def start(self, x: Tensor, embed: Tensor, iterations: int = 12) -> None:
        """[n, d]: k-means from random vectors of the first batch."""
        centres = x[torch.randint(0, len(x), (len(embed),))].clone()
        for _ in range(iterations):
            counts, totals = self.assign(x, centres)
            centres = torch.where(counts[:, None] > 0, totals / counts[:, None].clamp(min=1), centres)
        counts, _ = self.assign(x, centres)
        embed.copy_(centres)
        self.count.copy_(counts.clamp(min=1))
        self.total.copy_(centres * self.count[:, None])
        self.ready.fill_(1)

    @staticmethod
    def assign(x: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
        """-> counts [N] and sums [N, d] of the vectors nearest to each code."""
        codes = nearest(x, embed)
        counts = torch.bincount(codes, minlength=len(embed)).float()
        return counts, torch.zeros_like(embed).index_add_(0, codes, x)

    @torch.no_grad()
    def update(self, x: Tensor, embed: Tensor) -> None:
        """[n, d]: one step of the averages; unused codes restart at a random vector of the batch.

        The averages of a restarted code restart too, or the next step would pull it back.
        """
        counts, totals = self.assign(x, embed)
        self.count.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.total.mul_(DECAY).add_(totals, alpha=1 - DECAY)
        mass = self.count.sum()
        smoothed = (self.count + 1e-5) / (mass + len(embed) * 1e-5) * mass
        embed.copy_(self.total / smoothed[:, None])
        dead = self.count < DEAD_BELOW
        if dead.any():
            fresh = x[torch.randint(0, len(x), (int(dead.sum()),))]
            embed[dead] = fresh
            self.total[dead] = 0.5 * fresh
            self.count[dead] = 0.5


class QuantizerTrainer(nn.Module):
    """The shipped quantiser in training: straight-through codes, commitment loss, quantiser dropout."""

    def __init__(self, quantizer: ResidualVectorQuantizer):
        super().__init__()
        self.quantizer = quantizer
        self.averages = nn.ModuleList(CodebookEMA(*layer.embed.shape) for layer in quantizer.layers)
        for layer in quantizer.layers:
            nn.init.orthogonal_(layer.project_in.weight)
            nn.init.zeros_(layer.project_in.bias)
            nn.init.zeros_(layer.project_out.bias)
            with torch.no_grad():
                layer.project_out.weight.copy_(layer.project_in.weight.T)

    def forward(self, z: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [B, T, D], used [B, T, K] bool -> z_q [B, T, D], the first codebook's part [B, T, D], commitment loss.

        `used` is false at padding and, for a whole utterance, at the codebooks left out of it.
        """
        residual, parts, commitment = z, [], z.new_zeros(())
        for k, (layer, averages) in enumerate(zip(self.quantizer.layers, self.averages, strict=True)):
            on = used[..., k]
            x = layer.project_in(residual)
            flat = x.detach()[on]
            if self.training and not averages.ready and len(flat):
                averages.start(flat, layer.embed)
            codes = nearest(x.detach().reshape(-1, x.shape[-1]), layer.embed).view(x.shape[:-1])
            vectors = nn.functional.embedding(codes, layer.embed)
            if self.training and len(flat):
                averages.update(flat, layer.embed)
            commitment = commitment + ((x - vectors).square().sum(-1) * on).sum() / on.sum().clamp(min=1)
            part = layer.project_out(x + (vectors - x).detach()) * on[..., None]
            parts.append(part)
            residual = residual - part
        return torch.stack(parts).sum(0), parts[0], commitment / len(parts)
