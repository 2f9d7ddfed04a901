"""A tiny Higgs Audio V2 with random weights, made again from names and a seed: for parity tests only.

The golden numbers in `tests/golden/` were computed with exactly these weights, by the reference implementation
(`original.*`) and by the port in transformers (`port.*`).
"""

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from higgs.batch import Batch
from higgs.checkpoint.config_json import model_from_json
from higgs.config import ModelConfig
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.weights import to_transformers


def noise(name: str, shape: torch.Size, seed: int = 0) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % (1 << 63))
    return torch.randn(shape, generator=generator)


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the generation model, under the names of transformers."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in to_transformers(HiggsAudio(config).state_dict()).items()}
    tensors = {}
    for name, shape in shapes.items():
        draw = noise(name, shape, seed)
        if len(shape) == 1:
            tensors[name] = 1 + 0.2 * draw
        elif "embed" in name:
            tensors[name] = 0.3 * draw
        else:
            tensors[name] = draw / shape[1] ** 0.5 * (2.0 if "lm_head" in name else 1.0)
    return tensors


def write_model(folder: Path, config: dict, seed: int = 0) -> Path:
    """The layout of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_weights(model_from_json(config), seed)
    save_file(tensors, folder / "model.safetensors")
    return folder


def original_model_name(name: str) -> str:
    name = name.removeprefix("model.")
    name = name.replace("embed_audio_tokens.embed_audio_tokens", "audio_codebook_embeddings")
    return f"audio_decoder_proj.{name}" if "lm_head" in name else name


def write_original_model(folder: Path, config: dict, tensors: dict[str, Tensor]) -> Path:
    """The layout of the reference: two shards and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    renamed = sorted((original_model_name(name), tensor) for name, tensor in tensors.items())
    index, half = {}, len(renamed) // 2
    for number, part in enumerate((renamed[:half], renamed[half:]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), folder / shard)
        index |= {name: shard for name, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def original_codec_names(tensors: dict[str, Tensor], strides: int = 5) -> dict[str, str]:
    """transformers' names -> the reference's, independent of the loader."""
    names = {"fc": "fc_prior", "fc1": "fc_post1", "fc2": "fc_post2"}
    parts = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    ends = {"conv1": 0, "snake1": strides + 1, "conv2": strides + 2}
    tops = {
        "acoustic_encoder": ("encoder.block", 0, {"snake1": 3, "conv1": 4}),
        "acoustic_decoder": ("decoder_2.model", 2, {"snake1": 0, "conv_t1": 1}),
    }

    def renamed(key: str) -> str:
        head, *rest = key.split(".")
        if head == "quantizer":
            return key.replace("quantizers", "vq.layers").replace(".codebook.", "._codebook.")
        if head == "encoder_semantic":
            return re.sub(r"\.(conv1|conv)\.(weight|bias)$", r".\1.conv.\2", key)
        if head not in tops:
            return ".".join([names.get(head, head), *rest])
        top, first, inner = tops[head]
        if rest[0] != "block":
            return f"{top}.{ends[rest[0]]}.{rest[1]}"
        block = f"{top}.{int(rest[1]) + 1}.block"
        if rest[2] in inner:
            return f"{block}.{inner[rest[2]]}.{rest[3]}"
        return f"{block}.{int(rest[2][-1]) - 1 + first}.block.{parts[rest[3]]}.{rest[4]}"

    return {key: renamed(key) for key in tensors}


def write_original_codec(folder: Path, config: dict, tensors: dict[str, Tensor]) -> Path:
    """The layout of the reference: `model.pth` with weight norm unfolded (|v| is not g) and nine config keys."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    unfolded = {}
    for key, name in original_codec_names(tensors).items():
        tensor = tensors[key]
        if name.startswith(("encoder.", "decoder_2.")) and name.endswith(".weight"):
            g = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))
            unfolded[f"{name}_g"] = g
            # |v| is twice or half of g: exact in floating point, and wrong by far if the norm is forgotten
            unfolded[f"{name}_v"] = tensor * torch.where(noise(name, g.shape) > 0, 2.0, 0.5)
        else:
            unfolded[name] = tensor
    torch.save(unfolded, folder / "model.pth")
    return folder


def equal_batches(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


AUDIO, DELAY = 272, 270  # the port writes a second placeholder for the last columns of a segment


def prompt_batch(prompts: dict[str, torch.Tensor], name: str, labels: bool = False) -> Batch:
    """A golden prompt, with expanded placeholders, as our batch."""
    ids = prompts[f"{name}.input_ids"]
    audio = (ids == AUDIO) | (ids == DELAY)
    codes = torch.zeros(*ids.shape, 8, dtype=torch.long)
    code_labels = torch.full_like(codes, -100)
    if f"{name}.audio_input_ids" in prompts:
        real = prompts[f"{name}.audio_input_ids_mask"]
        codes[audio] = prompts[f"{name}.audio_input_ids"][real]
        if labels:
            code_labels[audio] = prompts[f"{name}.audio_labels"][real]
    return Batch(
        torch.where(audio, AUDIO, ids),
        codes,
        audio,
        audio,
        prompts[f"{name}.attention_mask"].bool(),
        prompts[f"{name}.labels"] if labels else None,
        code_labels if labels else None,
    )
