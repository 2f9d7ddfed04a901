"""Estimate of the GPU memory of fine-tuning: `python -m higgs.train.memory --help`."""

import argparse
import re

import torch

from higgs.checkpoint.config_json import model_from_json
from higgs.checkpoint.resolve import read_config, resolve
from higgs.checkpoint.tensors import config_errors
from higgs.config import ModelConfig
from higgs.model.higgs_audio import HiggsAudio
from higgs.train.lora import TARGETS
from higgs.workflow.outputs import say


def layer_activations(config: ModelConfig) -> int:
    """Values that autograd saves per layer and position.

    Two norms: float32 input (of twice the size), its scaled form, output. Attention: q, k and v before and after
    rotation, output. FFN: gate, up, SiLU(gate), their product.
    """
    attention, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return 10 * config.hidden_size + 2 * (attention + 2 * keys) + attention + 4 * config.intermediate_size


def memory_plan(config: ModelConfig, positions: int, rank: int | None, checkpointing: bool) -> tuple[int, list[int]]:
    """-> trained parameters; bytes of weights, gradients, optimizer, a batch's activations, and their sum.

    As `higgs finetune` trains, with Adam and products in bfloat16. `rank` of LoRA, on weights in bfloat16; None trains
    every weight, in float32. Their copies in bfloat16, of half the size, make room for gradients in the backward pass.
    """
    with torch.device("meta"):
        model = HiggsAudio(config)
    parameters = sum(p.numel() for p in model.parameters())
    layer = layer_activations(config)
    # With gradient checkpointing: the input of each layer, and the activations of one layer at a time.
    saved = layer + config.num_layers * config.hidden_size if checkpointing else config.num_layers * layer
    heads = config.num_codebooks * config.code_vocab_size * 3 * 2  # bfloat16 logits, float32 logits and softmax
    activations = positions * 2 * (saved + heads)
    # What is trained is in float32, and so are its gradients and Adam's two moments.
    if rank is None:
        trained, sizes = parameters, [4 * parameters, 4 * parameters, 8 * parameters, activations]
    else:
        adapted = (m for n, m in model.named_modules() if re.fullmatch(TARGETS, n))
        trained = sum(rank * (m.in_features + m.out_features) for m in adapted)
        sizes = [2 * parameters + 4 * trained, 4 * trained, 8 * trained, activations]
    return trained, [*sizes, sum(sizes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or hub id of the model; its config is enough")
    parser.add_argument("--positions", type=int, default=4096, help="of a batch (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA (default: %(default)s)")
    arguments = parser.parse_args()
    folder = resolve(arguments.checkpoint, weights=False)
    with config_errors(folder):
        config = model_from_json(read_config(folder))
    say(f"{'':40}{'trained':>14}{'weights':>9}{'grad.':>9}{'Adam':>9}{'activ.':>9}{'total':>9}  GB")
    for name, rank in (("all weights", None), (f"LoRA of rank {arguments.rank}", arguments.rank)):
        for checkpointing in (False, True):
            trained, sizes = memory_plan(config, arguments.positions, rank, checkpointing)
            label = name + (", gradient checkpointing" if checkpointing else "")
            say(f"{label:40}{trained:>14,}" + "".join(f"{size / 1e9:>9.1f}" for size in sizes))


if __name__ == "__main__":
    main()
