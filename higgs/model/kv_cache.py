"""Cached keys and values: one preallocated tensor each, written in place at fixed addresses."""

import torch
from torch import Tensor

from higgs.config import ModelConfig


class KVCache:
    """Keys and values of all layers, [layers, B, kv heads, capacity, head dim], and how much of them is filled.

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
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, kv heads, S, d] twice -> everything cached for this layer, the new rows included."""
        stop = self.length + keys.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {stop} are needed")
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, count: int) -> None:
        self.length += count

    def reset(self) -> None:
        self.length = 0
