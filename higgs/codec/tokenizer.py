"""The audio tokenizer: waveform at 24 kHz <-> K codes per frame at 25 frames per second."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from higgs.audio import check_rate, check_waveform, resample
from higgs.checkpoint.config_json import codec_to_json
from higgs.checkpoint.resolve import resolve
from higgs.checkpoint.tensors import config_errors, naming, write
from higgs.codec.acoustic import AcousticDecoder, AcousticEncoder
from higgs.codec.padding import Lengths, bucket_length, mask_padding, run_in_batches, windows
from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.codec.semantic import SemanticEncoder
from higgs.codec.weights import load_config, load_weights, to_transformers
from higgs.config import CodecConfig

EDGE = 320  # zeros at each side where the branches differ in number of frames (boson-ai/higgs-audio's rule)
MIN_SAMPLES = 119  # shorter clips leave HuBERT without a frame
MAX_SECONDS = 300.0  # HuBERT's attention spans the whole clip: 36 MB a second at the release's size
MAX_PEAK = 100.0  # 8-bit and 16-bit integers converted to float exceed it, audio does not
WINDOW = 128  # frames that are decoded at a time
MAX_BATCH, MAX_SAMPLES = 16, 1 << 20  # clips and samples of a batch on an accelerator


class AudioTokenizer(nn.Module):
    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config, width = config, config.embedding_dim
        self.sample_rate, self.frame_rate, self.hop_length = config.sample_rate, config.frame_rate, config.hop_length
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.acoustic_encoder = AcousticEncoder(config.encoder_width, config.acoustic_dim, config.strides)
        self.semantic_encoder = SemanticEncoder(config)
        self.fuse = nn.Linear(width, width)
        self.quantizer = ResidualVectorQuantizer(config.num_codebooks, width, config.codebook_size, config.codebook_dim)
        self.to_acoustic = nn.Linear(width, config.acoustic_dim)
        self.acoustic_decoder = AcousticDecoder(config.acoustic_dim, config.decoder_width, config.strides)

    @property
    def device(self) -> torch.device:
        return self.to_acoustic.weight.device

    def drop_encoders(self) -> None:
        """Gives their memory back: from then on it decodes only."""
        self.acoustic_encoder.to("meta")
        self.semantic_encoder.to("meta")

    def num_frames(self, samples: Lengths) -> Lengths:
        """T of a clip of `samples`: floor((samples + 841) / 960); below 1 for clips that are too short."""
        return self.semantic_encoder.frames(samples)

    def embed(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, 1, L] -> z [B, D, T]: both branches, concatenated and fused.

        Where they differ in number of frames (a clip's length mod 960 in 119 ... 631) the acoustic one gets 320 zeros
        at each side, as in the reference; then the longer is cut. With `lengths` [B], each clip is followed by at least
        640 zeros, and results beyond its own frames are undefined.
        """
        semantic = self.semantic_encoder(waveform, lengths)
        if lengths is None:
            if self._branches_differ(waveform.shape[-1]):
                waveform = nn.functional.pad(waveform, (EDGE, EDGE))
        else:
            differ = self._branches_differ(lengths)
            shifted = nn.functional.pad(waveform, (EDGE, -EDGE))
            waveform = torch.where(differ[:, None, None], shifted, waveform)
            lengths = torch.where(differ, lengths + 2 * EDGE, lengths)
        acoustic = self.acoustic_encoder(waveform, lengths)
        frames = min(acoustic.shape[-1], semantic.shape[-1])
        z = torch.cat([acoustic[..., :frames], semantic[..., :frames]], dim=1)
        return self.fuse(z.transpose(1, 2)).transpose(1, 2)

    def _branches_differ(self, samples: Lengths) -> Lengths:
        return self.acoustic_encoder.frames(samples) != self.semantic_encoder.frames(samples)

    def synthesize(self, z_q: Tensor, lengths: Tensor | None = None) -> Tensor:
        """z_q [B, D, T] -> [B, 1, T * hop_length]; `lengths` [B] in frames is for clips of different lengths."""
        z = self.to_acoustic(z_q.transpose(1, 2)).transpose(1, 2)
        return self.acoustic_decoder(mask_padding(z, lengths), lengths)

    @torch.inference_mode()
    def encode(
        self, waveform: Tensor | Sequence[Tensor], sample_rate: int | None = None, pad_to_hop: bool = False
    ) -> Tensor | list[Tensor]:
        """[L] -> [K, T]; [B, 1, L] -> [B, K, T]; a list of [L] -> a list of [K, T].

        Samples are in about [-1, 1], and resampled from `sample_rate` (None: the codec's own). A clip's codes do not
        depend on the other clips.
        T = floor((L + 841) / 960); `pad_to_hop` appends zeros up to a whole number of frames: T = ceil(L / 960).

        Raises ValueError for audio that is empty, not finite, not mono, too loud to be audio, too short (under 119
        samples without `pad_to_hop`) or longer than five minutes; TypeError for integers.
        """
        sample_rate = self.sample_rate if sample_rate is None else sample_rate
        if isinstance(waveform, Tensor) and waveform.dim() == 3 and waveform.shape[:2].numel():
            clips = [clip[0] if len(clip) == 1 else clip for clip in waveform]
            return torch.stack(self.encode(clips, sample_rate, pad_to_hop))
        single, hop = isinstance(waveform, Tensor), self.hop_length
        named = {"waveform": waveform} if single else {f"clip {i}": c for i, c in enumerate(waveform)}
        clips = [self._prepare(c, sample_rate, pad_to_hop, name) for name, c in named.items()]
        sizes = [bucket_length(-(-(clip.shape[1] + 2 * EDGE) // hop)) * hop for clip in clips]
        with exact_convolutions(self.device):
            outputs = run_in_batches(lambda *x: self.quantizer.encode(self.embed(*x)), clips, sizes, self._batch_size)
        pairs = zip(outputs, clips, strict=True)
        codes = [output[:, : self.num_frames(clip.shape[1])].clone() for output, clip in pairs]
        return codes[0] if single else codes

    def _prepare(self, clip: Tensor, sample_rate: int, pad_to_hop: bool, what: str) -> Tensor:
        clip = check_clip(clip, sample_rate, what).to(self.device)
        clip = resample(clip, sample_rate, self.sample_rate)
        if pad_to_hop:
            clip = nn.functional.pad(clip, (0, -len(clip) % self.hop_length))
        if self.num_frames(len(clip)) < 1:
            length = f"{len(clip)} samples at {self.sample_rate} Hz"
            raise ValueError(f"{what}: {length} are too short: {MIN_SAMPLES} or pad_to_hop=True are needed")
        return clip[None]

    @torch.inference_mode()
    def decode(self, codes: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """[K, T] -> [L]; [B, K, T] -> [B, 1, L]; list -> list; L = T * hop_length, not clamped.

        The first k < K codebooks suffice. A clip's waveform does not depend on the other clips. Raises ValueError for
        T = 0 and for ids beyond the codebook (stream ids are not codes), TypeError for other types.
        """
        if isinstance(codes, Tensor) and codes.dim() == 3 and len(codes):
            return torch.stack(self.decode(list(codes)))[:, None]
        single = isinstance(codes, Tensor)
        named = {"codes": codes} if single else {f"codes {i}": c for i, c in enumerate(codes)}
        for name, clip in named.items():
            check_codes(clip, self.config, name)
        waveforms = self._decode([clip.to(self.device, torch.int64) for clip in named.values()])
        return waveforms[0] if single else waveforms

    def _decode(self, clips: list[Tensor]) -> list[Tensor]:
        """[K, T] -> [L] for each, in windows of at most 128 frames that overlap by the receptive field."""
        hop, context = self.hop_length, self.acoustic_decoder.context_frames
        frames = WINDOW - 2 * context
        parts = [(i, *window) for i, clip in enumerate(clips) for window in windows(clip.shape[1], frames, context)]
        z_q = [self.quantizer.decode(clips[index][None, :, window])[0] for index, window, _, _ in parts]
        sizes = [bucket_length(z.shape[1]) for z in z_q]
        with exact_convolutions(self.device):
            outputs = run_in_batches(self.synthesize, z_q, sizes, lambda frames: self._batch_size(frames * hop))
        segments: list[list[Tensor]] = [[] for _ in clips]
        for (index, _, skip, length), output in zip(parts, outputs, strict=True):
            segments[index].append(output[0, skip * hop : (skip + length) * hop])
        return [torch.cat(waveforms) for waveforms in segments]

    def _batch_size(self, samples: int) -> int:
        """Clips, padded to `samples`, of a batch. On a CPU larger ones are no faster (`benchmarks/codec.py`)."""
        return 1 if self.device.type == "cpu" else max(1, min(MAX_BATCH, MAX_SAMPLES // samples))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> "AudioTokenizer":
        """Folder, hub id (`revision` or `id@revision`) or s3:// prefix -> float32. ValueError names tensors amiss."""
        folder = resolve(source, revision)
        with config_errors(folder), torch.device("meta"):
            tokenizer = cls(load_config(folder))
        with naming(folder):
            tensors = load_weights(folder, tokenizer.state_dict())
        tokenizer.load_state_dict(tensors, assign=True)
        return tokenizer.to(device).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Writes `config.json` and `model.safetensors` in transformers' layout; `half`: float16 but for codebooks."""
        tensors = to_transformers({k: v.detach().cpu() for k, v in self.state_dict().items()})
        if half:
            tensors = {k: v if ".codebook." in k else v.half() for k, v in tensors.items()}
        write(folder, codec_to_json(self.config), tensors)


def check_clip(clip: Tensor, sample_rate: int, what: str) -> Tensor:
    """[L] -> the same in float32. Raises TypeError or ValueError for anything that cannot be encoded."""
    if isinstance(clip, Tensor) and clip.dim() != 1:
        shape = tuple(clip.shape)
        raise ValueError(f"{what}: expected mono audio [L] or [B, 1, L], got shape {shape}: average the channels first")
    # Checked before the samples are read: there may be very many.
    if isinstance(clip, Tensor) and len(clip) > MAX_SECONDS * check_rate(sample_rate):
        seconds = f"{len(clip) / sample_rate:.0f} s of audio"
        raise ValueError(f"{what}: {seconds}; at most {MAX_SECONDS:.0f} s are encoded at once: split it at a pause")
    clip = check_waveform(clip, what)
    if (peak := clip.abs().max().item()) > MAX_PEAK:
        raise ValueError(f"{what}: samples reach {peak:.0f}, not about 1; divide 16-bit integers by 32768")
    return clip


def check_codes(codes: Tensor, config: CodecConfig, what: str) -> None:
    """Raises TypeError or ValueError unless `codes` are integers [k, T] below the codebook size, k <= K, T >= 1."""
    if not isinstance(codes, Tensor):
        raise TypeError(f"{what}: expected a torch.Tensor, got {type(codes).__name__}")
    if codes.dim() != 2 or not 1 <= codes.shape[0] <= config.num_codebooks:
        wanted = f"[K, T] or [B, K, T] with K <= {config.num_codebooks}"
        raise ValueError(f"{what}: expected {wanted}, got shape {tuple(codes.shape)}")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{what}: codes are integers, got {codes.dtype}")
    if codes.shape[1] == 0:
        raise ValueError(f"{what}: no frame (T = 0) to decode")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= config.codebook_size:
        raise ValueError(f"{what}: must be in 0 ... {config.codebook_size - 1}, got {low} ... {high}")


class ExactConvolutions:
    """Full float32: cuDNN may round inputs to ten bits (TF32), which changes codes.

    The setting is the process's: of several threads the first makes it, and the last restores what was before.
    """

    def __init__(self) -> None:
        self._lock, self._threads, self._flags = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
                self._flags.enter_context(flags)
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._flags.close()


EXACT = ExactConvolutions()


def exact_convolutions(device: torch.device) -> AbstractContextManager:
    return EXACT if device.type == "cuda" else nullcontext()
