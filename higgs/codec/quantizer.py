"""Residual vector quantisation: each codebook quantises the residual of the ones before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def nearest(x: Tensor, embed: Tensor) -> Tensor:
    """[n, d], [N, d] -> [n] int64: the vector of smallest squared distance, the first of a tie."""
    squared = x.square().sum(1, keepdim=True) - 2 * x @ embed.T + embed.square().sum(1)
    return (-squared).argmax(dim=1)


class Codebook(nn.Module):
    """N vectors of `codebook_dim`, with projections from the embedding's width and back."""

    def __init__(self, width: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.project_in = nn.Linear(width, codebook_dim)
        self.project_out = nn.Linear(codebook_dim, width)
        self.register_buffer("embed", torch.zeros(codebook_size, codebook_dim))

    def encode(self, residual: Tensor) -> Tensor:
        """[B, T, D] -> [B, T]"""
        x = self.project_in(residual)
        return nearest(x.reshape(-1, x.shape[-1]), self.embed).view(x.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]"""
        return self.project_out(F.embedding(codes, self.embed))


class ResidualVectorQuantizer(nn.Module):
    def __init__(self, num_codebooks: int, width: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.codebook_size = codebook_size
        self.layers = nn.ModuleList(Codebook(width, codebook_size, codebook_dim) for _ in range(num_codebooks))

    def encode(self, z: Tensor) -> Tensor:
        """[B, D, T] -> [B, K, T]"""
        residual, codes = z.transpose(1, 2), []
        for layer in self.layers:
            codes.append(layer.encode(residual))
            residual = residual - layer.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """[B, k, T] -> z_q [B, D, T]; the first k <= K codebooks."""
        z_q = torch.zeros((), device=codes.device)
        for layer, ids in zip(self.layers, codes.unbind(1), strict=False):
            z_q = z_q + layer.decode(ids)
        return z_q.transpose(1, 2)
