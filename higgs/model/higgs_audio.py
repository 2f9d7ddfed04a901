"""Higgs Audio V2's generation model: text tokens and delayed codes -> logits of both."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from higgs.batch import Batch
from higgs.checkpoint.config_json import model_from_json, model_to_json
from higgs.checkpoint.resolve import resolve
from higgs.checkpoint.tensors import config_errors, naming, read_config, write
from higgs.config import ModelConfig
from higgs.delay import IGNORE
from higgs.model.kv_cache import Device, KVCache
from higgs.model.llama import DualFFNLayer, ModalityMask, RMSNorm, rope_table
from higgs.model.matrices import MatrixLinear, Offloaded
from higgs.model.weights import TEXT_HEAD, load_weights, place, to_transformers


@dataclass
class ModelOutput:
    text_logits: Tensor  # [B, S, V]
    audio_logits: Tensor  # [B, S, K, N + 2] float32; zero where audio_out_mask is false
    loss: Tensor | None = None  # text_loss + the mean of codebook_losses
    text_loss: Tensor | None = None
    codebook_losses: Tensor | None = None  # [K]
    hidden_states: tuple[Tensor, ...] = ()  # embeddings, after each layer; the last one is normalised


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # random numbers on the meta device import torch._dynamo, which takes a second
            super().reset_parameters()


class NoTextHead(nn.Module):
    """In place of the text head, in a checkpoint that was stored without: forced audio needs none."""

    def forward(self, hidden: Tensor) -> Tensor:
        raise ValueError(
            "this checkpoint has no text head, so it cannot write text nor be trained on it: generate with "
            "force_audio=True, or save it with the head (transformers: use_text_head=True)"
        )


class HiggsAudio(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        num_codes = config.num_codebooks * config.code_vocab_size
        self.text_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.audio_embedding = Embedding(num_codes, config.hidden_size)
        self.layers = nn.ModuleList(DualFFNLayer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.text_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.audio_head = nn.Linear(config.hidden_size, num_codes, bias=False)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def embed_codes(self, codes: Tensor) -> Tensor:
        """[..., K] -> [..., D]: the sum of one embedding per codebook."""
        offsets = torch.arange(self.config.num_codebooks, device=codes.device)
        return self.audio_embedding(codes + offsets * self.config.code_vocab_size).sum(dim=-2)

    def embed(self, input_ids: Tensor, codes: Tensor, audio_mask: Tensor) -> Tensor:
        """[B, S], [B, S, K], [B, S] -> [B, S, D]"""
        text = self.text_embedding(torch.where(audio_mask, 0, input_ids))
        text[audio_mask] = self.embed_codes(codes[audio_mask]).to(text.dtype)
        return text

    def run_layers(
        self, x: Tensor, modality: ModalityMask, positions: Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """x [B, S, D], positions [B, S], mask [B, 1, S, S'] bool -> ([B, S, D] normalised, input of each layer)"""
        rope = rope_table(self.config.rope, self.config.head_dim, positions, x.dtype)
        states = []
        for layer in self.layers:
            states.append(x)
            x = layer(x, modality, rope, mask, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x), states

    def audio_logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., K, N + 2] float32"""
        return self.audio_head(hidden).float().unflatten(-1, (self.config.num_codebooks, -1))

    def hidden(self, batch: Batch, cache: KVCache | None = None) -> tuple[Tensor, list[Tensor]]:
        """-> (hidden states [B, S, D], input of each layer). Of a prefill in chunks only the last may be padded."""
        cached = 0 if cache is None else cache.length
        valid = batch.attention_mask
        positions = cached + (valid.long().cumsum(1) - 1).clamp(min=0)
        length = valid.shape[1]
        causal = torch.ones(length, cached + length, dtype=torch.bool, device=valid.device)
        # A padded query attends to itself, so that no row of the softmax is empty.
        diagonal = causal.tril(cached) & ~causal.tril(cached - 1)
        mask = causal.tril(cached) & F.pad(valid, (cached, 0), value=True)[:, None, None] | diagonal
        x = self.embed(batch.input_ids, batch.codes, batch.audio_mask)
        return self.run_layers(x, ModalityMask(batch.audio_mask), positions, mask, cache)

    def forward(self, batch: Batch) -> ModelOutput:
        """The losses only for batches with labels."""
        hidden, states = self.hidden(batch)
        logits = self.audio_logits(hidden[batch.audio_out_mask])
        audio_logits = logits.new_zeros(*hidden.shape[:2], *logits.shape[1:])
        audio_logits[batch.audio_out_mask] = logits
        output = ModelOutput(self.text_head(hidden), audio_logits, hidden_states=(*states, hidden))
        if batch.labels is not None:
            output.loss = output.text_loss = shifted_cross_entropy(output.text_logits, batch.labels)
        if batch.code_labels is not None:
            pairs = zip(audio_logits.unbind(2), batch.code_labels.unbind(2), strict=True)
            output.codebook_losses = torch.stack([shifted_cross_entropy(*pair) for pair in pairs])
            mean = output.codebook_losses.mean()
            output.loss = mean if output.loss is None else output.loss + mean
        return output

    def prefill(self, batch: Batch, cache: KVCache) -> Tensor:
        """A prompt of B = 1, or its next chunk, into a cache -> hidden state of its last position [B, D]."""
        return self.hidden(batch, cache)[0][:, -1]

    def decode_step(self, x: Tensor, audio: bool, cache: KVCache) -> Tensor:
        """One more position, embedded [B, 1, D] -> its hidden state [B, D]; it attends to the whole cache."""
        positions = torch.full((x.shape[0], 1), cache.length, device=x.device)
        return self.run_layers(x, ModalityMask(audio), positions, None, cache)[0][:, -1]

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        device: Device = "cpu",
        dtype: torch.dtype = torch.float32,
        bits: int | None = None,
        offload_text: bool = False,
    ) -> "HiggsAudio":
        """Folder, hub id (`revision` or `id@revision`) or s3:// prefix -> the model. ValueError names tensors amiss.

        Weights go one by one from the mapped file to the device. `bits` 8 or 4 round the linear layers and the text
        embedding, all but the codes' head. `offload_text` leaves the text half, which a decode step never reads, in
        the mapped file.
        """
        folder = resolve(source, revision)
        with config_errors(folder), torch.device("meta"):
            model = cls(model_from_json(read_config(folder)))
        with naming(folder):
            tensors = load_weights(folder, model.state_dict())
        if TEXT_HEAD not in tensors:
            model.text_head = NoTextHead()
        place(model, tensors, torch.device(device), dtype, bits, offload_text)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, token_ids: dict[str, int], half: bool = False) -> None:
        """Writes `config.json`, with `token_ids` (`audio_bos_token_id`, ...), and `model.safetensors`; `half`: fp16."""
        if any(isinstance(module, MatrixLinear | Offloaded) for module in self.modules()):
            form = "its matrices are quantised, packed for the CPU, or left in their file"
            raise ValueError(f"this model is for inference and cannot be saved: {form}. Load it anew to save it")
        tensors = to_transformers({k: v.detach().cpu() for k, v in self.state_dict().items()})
        if half:
            tensors = {k: v.half() for k, v in tensors.items()}
        write(folder, model_to_json(self.config) | token_ids, tensors)


def shifted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, S, N], [B, S] -> mean of -log p(label i + 1 | position i) over labels other than -100; 0 without any."""
    targets = labels[:, 1:].reshape(-1)
    flat = logits[:, :-1].float().reshape(-1, logits.shape[-1])
    summed = F.cross_entropy(flat, targets, ignore_index=IGNORE, reduction="sum")
    return summed / (targets != IGNORE).sum().clamp(min=1)
