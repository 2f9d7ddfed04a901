"""Cached keys and values: preallocated tensors, written in place at fixed addresses."""

import math

import numpy as np
import torch
from torch import Tensor

from higgs.config import ModelConfig


class KVCache:
    """Keys and values, `layers` with [2, B, kv heads, capacity, head dim] each, and how much of them is filled.

    `update` writes a layer's new rows behind the filled part; `advance` moves the mark once all layers have written.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (2, batch, config.num_kv_heads, capacity, config.head_dim)
        device = torch.device(device)
        self.layers = [zeros(shape, device, dtype) for _ in range(config.num_layers)]
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.layers[0].shape[-2]

    def row(self, index: int) -> "KVCache":
        """One row as an empty cache of B = 1 over the same memory."""
        view = object.__new__(KVCache)
        view.layers, view.length = [kept[:, index : index + 1] for kept in self.layers], 0
        return view

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, kv heads, S, d] twice -> everything cached for this layer, the new rows included."""
        stop = self.length + keys.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {stop} are needed")
        k, v = self.layers[layer]
        k[:, :, self.length : stop] = keys
        v[:, :, self.length : stop] = values
        return k[:, :, :stop], v[:, :, :stop]

    def advance(self, count: int) -> None:
        self.length += count

    def reset(self) -> None:
        self.length = 0


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """As `torch.zeros`; but on the CPU, pages that are never written take no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    blank = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(blank).view(dtype).view(shape)
