"""Cached keys and values: preallocated tensors, written in place at fixed addresses."""

import math

import numpy as np
import torch
from torch import Tensor

from higgs.config import ModelConfig

Device = str | torch.device


class KVCache:
    """`layers` of keys and values [2, B, kv heads, capacity, head dim], valid up to `length`."""

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, device: Device = "cpu", dtype: torch.dtype = torch.float32
    ):
        shape = (2, batch, config.num_kv_heads, capacity, config.head_dim)
        self.layers = [zeros(shape, torch.device(device), dtype) for _ in range(config.num_layers)]
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.layers[0].shape[-2]

    def slot(self, index: int) -> "KVCache":
        """One batch slot as an empty cache of B = 1 over the same memory."""
        view = object.__new__(KVCache)
        view.layers, view.length = [kv[:, index : index + 1] for kv in self.layers], 0
        return view

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, kv heads, S, d] twice, written at `length` -> all keys and values of this layer."""
        stop = self.length + keys.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {stop} are needed")
        k, v = self.layers[layer]
        k[:, :, self.length : stop] = keys
        v[:, :, self.length : stop] = values
        return k[:, :, :stop], v[:, :, :stop]

    def advance(self, count: int) -> None:
        """Once all layers have written."""
        self.length += count


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """As `torch.zeros`; on the CPU, pages that are never written take no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    buffer = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(buffer).view(dtype).view(shape)
