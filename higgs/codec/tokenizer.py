"""The audio tokenizer: waveform at 24 kHz <-> K codes per frame at 25 frames per second."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from higgs.audio import check_waveform, resample
from higgs.codec.acoustic import AcousticDecoder, AcousticEncoder
from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.codec.semantic import SemanticEncoder
from higgs.codec.weights import convert, to_transformers
from higgs.config import CodecConfig
from higgs.hub import check_loaded, read_config, read_tensors, resolve

EDGE = 320  # zeros at each side where the branches disagree about the number of frames (the original's rule)
MIN_SAMPLES = 632  # shorter clips leave a convolution without input


class AudioTokenizer(nn.Module):
    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        width = config.embedding_dim
        self.acoustic_encoder = AcousticEncoder(
            config.encoder_width, config.acoustic_dim, config.strides
        )
        self.semantic_encoder = SemanticEncoder(config)
        self.fuse = nn.Linear(width, width)
        self.quantizer = ResidualVectorQuantizer(
            config.num_codebooks, width, config.codebook_size, config.codebook_dim
        )
        self.to_acoustic = nn.Linear(width, config.acoustic_dim)
        self.acoustic_decoder = AcousticDecoder(
            config.acoustic_dim, config.decoder_width, config.strides
        )

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def frame_rate(self) -> int:
        return self.config.frame_rate

    @property
    def hop_length(self) -> int:
        return self.config.hop_length

    @property
    def num_codebooks(self) -> int:
        return self.config.num_codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    def embed(self, waveform: Tensor) -> Tensor:
        """[B, 1, L] -> z [B, D, T]: both branches, side by side.

        T = floor((L + 841) / 960). Where the branches count differently (L mod 960 in 119 ... 631) the acoustic one
        hears the waveform with 320 zeros at each side, as in the original; then the longer is cut.
        """
        semantic = self.semantic_encoder(waveform)
        acoustic = self.acoustic_encoder(waveform)
        if acoustic.shape[-1] != semantic.shape[-1]:
            acoustic = self.acoustic_encoder(nn.functional.pad(waveform, (EDGE, EDGE)))
        frames = min(acoustic.shape[-1], semantic.shape[-1])
        z = torch.cat([acoustic[..., :frames], semantic[..., :frames]], dim=1)
        return self.fuse(z.transpose(1, 2)).transpose(1, 2)

    def synthesize(self, z_q: Tensor) -> Tensor:
        """z_q [B, D, T] -> [B, 1, T * hop_length]"""
        return self.acoustic_decoder(self.to_acoustic(z_q.transpose(1, 2)).transpose(1, 2))

    @torch.inference_mode()
    def encode(
        self,
        waveform: Tensor | Sequence[Tensor],
        sample_rate: int = 24_000,
        pad_to_hop: bool = False,
    ) -> Tensor | list[Tensor]:
        """[L] -> [K, T]; [B, 1, L] -> [B, K, T]; a list of [L] -> a list of [K, T].

        Floating point samples in about [-1, 1]; other sample rates are resampled. `pad_to_hop` appends zeros up to a
        whole number of frames, so that every clip takes the same path (T = ceil(L / 960)); without it, clips whose
        length mod 960 is in 119 ... 631 follow the original's rule (see `embed`).

        Raises ValueError for empty, non-finite, stereo or too short audio (under 632 samples without padding).
        """
        if not isinstance(waveform, Tensor):
            return [self.encode(clip, sample_rate, pad_to_hop) for clip in waveform]
        batch = self._as_batch(check_waveform(waveform))
        device = next(self.parameters()).device
        batch = resample(batch.to(device), sample_rate, self.sample_rate)
        if pad_to_hop:
            batch = nn.functional.pad(batch, (0, -batch.shape[-1] % self.hop_length))
        if batch.shape[-1] < MIN_SAMPLES:
            raise ValueError(
                f"audio of {batch.shape[-1]} samples at {self.sample_rate} Hz is too short: at least "
                f"{MIN_SAMPLES} are needed, or pad_to_hop=True"
            )
        codes = self.quantizer.encode(self.embed(batch))
        return codes[0] if waveform.dim() == 1 else codes

    @torch.inference_mode()
    def decode(self, codes: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """[K, T] -> [L]; [B, K, T] -> [B, 1, L]; list -> list; L = T * hop_length, not clamped.

        The first k < K codebooks alone are accepted. Raises ValueError for T = 0 and for ids beyond the codebook
        (stream ids are not codes).
        """
        if not isinstance(codes, Tensor):
            return [self.decode(clip) for clip in codes]
        if codes.dim() not in (2, 3) or not 1 <= codes.shape[-2] <= self.num_codebooks:
            raise ValueError(
                f"codes must be [K, T] or [B, K, T] with K <= {self.num_codebooks}, "
                f"got shape {tuple(codes.shape)}"
            )
        if codes.shape[-1] == 0:
            raise ValueError("codes hold no frame (T = 0): there is nothing to decode")
        if codes.is_floating_point():
            raise TypeError(f"codes are integers, got {codes.dtype}")
        codes = codes.long()
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"codes must be in 0 ... {self.codebook_size - 1}, got {low} ... {high}"
            )
        device = next(self.parameters()).device
        batch = codes.to(device) if codes.dim() == 3 else codes.to(device)[None]
        waveform = self.synthesize(self.quantizer.decode(batch))
        return waveform[0, 0] if codes.dim() == 2 else waveform

    def _as_batch(self, waveform: Tensor) -> Tensor:
        """[L] or [B, 1, L] -> [B, 1, L]"""
        if waveform.dim() == 1:
            return waveform[None, None]
        if waveform.dim() == 3 and waveform.shape[1] == 1:
            return waveform
        raise ValueError(
            f"expected mono audio [L] or [B, 1, L], got shape {tuple(waveform.shape)}; "
            "average the channels of stereo audio first"
        )

    @classmethod
    def from_pretrained(
        cls, source: str | Path, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> "AudioTokenizer":
        """Folder, hub id (with `revision` or as `id@revision`) or s3:// prefix -> the tokenizer, in float32.

        The layout (original `model.pth`, or transformers' safetensors) is found out by content. Raises ValueError
        naming the tensors when any is missing or unexpected.
        """
        folder = resolve(source, revision)
        tensors = read_tensors(folder)
        config = CodecConfig.from_json(
            read_config(folder), {key: tuple(t.shape) for key, t in tensors.items()}
        )
        ours, _ = convert(tensors, len(config.strides))
        with torch.device("meta"):
            tokenizer = cls(config)
        check_loaded(tokenizer.load_state_dict(ours, strict=False, assign=True), folder)
        return tokenizer.to(device).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Writes `config.json` and `model.safetensors` in transformers' layout; `half` stores float16.

        Codebooks stay float32, so that the nearest vector is the same on every machine.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = to_transformers({k: v.detach().cpu() for k, v in self.state_dict().items()})
        if half:
            tensors = {k: v if ".codebook." in k else v.half() for k, v in tensors.items()}
        (folder / "config.json").write_text(json.dumps(self.config.to_json(), indent=2) + "\n")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
