"""Second and third job of codec training: decoder and encoder on frozen codes.

`python -m training.nano.codec decoder|encoder --help`. Neither changes codes: the model can be trained meanwhile.
"""

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from higgs.audio import log_mel, magnitude, mel_filterbank
from higgs.codec.tokenizer import AudioTokenizer
from higgs.config import CodecConfig
from training.corpus.shards import KOKORO, RANDOM, Shards, group_of, sampling_weights
from training.nano.job import Job, job_arguments, read_part
from training.nano.mel_autoencoder import MelAutoencoder, trained_autoencoder
from training.nano.quantizer import read_codes
from training.nano.sizes import NANO_CODEC
from training.nano.snake import use_trainable_snake

RESOLUTIONS = ((128, 16), (256, 32), (512, 64), (1024, 80), (2048, 120))  # n_fft, mel bands
EDGE = 3  # frames at each end of a crop whose receptive field is cut, left out of the loss
DECODER, ENCODER = ("to_acoustic", "acoustic_decoder"), ("acoustic_encoder", "semantic_encoder", "fuse")
SHARES = {KOKORO: 6.0, RANDOM: 3.0}  # of crops; each in-house voice 1


def spectral_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """[B, L] twice: mel, relative and log magnitude distances, averaged over five resolutions."""
    losses = []
    for n_fft, bands in RESOLUTIONS:
        filters = mel_filterbank(n_fft, bands, 24_000).T
        filters = filters / filters.sum(1, keepdim=True).clamp(min=1e-3)
        a = (magnitude(estimate, n_fft, n_fft // 4).square() + 1e-9).sqrt()
        b = (magnitude(target, n_fft, n_fft // 4).square() + 1e-9).sqrt()
        scale = math.sqrt(n_fft * 0.375)
        mel = ((filters @ a / scale + 1e-4).log() - (filters @ b / scale + 1e-4).log()).abs().mean()
        relative = (a - b).abs().mean() / b.mean()
        logarithm = ((a + 1e-2).log() - (b + 1e-2).log()).abs().mean()
        losses.append(mel + 0.5 * (relative + 0.5 * logarithm))
    return torch.stack(losses).mean()


def initialise(module: nn.Module, gain: float = 0.8) -> None:
    """Variance-preserving initialisation; the last convolution of a residual unit starts small."""
    for name, conv in module.named_modules():
        if not isinstance(conv, nn.Conv1d | nn.ConvTranspose1d):
            continue
        stride = conv.stride[0] if isinstance(conv, nn.ConvTranspose1d) else 1
        fan = conv.in_channels * conv.kernel_size[0] / stride
        last_of_unit = ".units." in name and name.endswith("conv2")
        nn.init.normal_(conv.weight, 0, (0.3 if last_of_unit else gain) / math.sqrt(fan))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def in_float32(module: nn.Module) -> None:
    """Excludes a convolution of few channels from autocast.

    In bfloat16 the first downsampling and HuBERT's grouped convolution are wrong on a CPU with AMX (torch 2.13): some
    taps are left out. An encoder that was trained on that is of no use in float32.
    """
    forward = module.forward

    def forward_in_float32(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    module.forward = forward_in_float32


class Crops:
    """Random crops of a corpus: waveforms, and the codes of whole frames where a crop starts on one."""

    def __init__(self, shards: Shards, codes: list[Tensor], frames: int):
        self.shards, self.codes, self.frames = shards, codes, frames
        self.usable = [i for i in self.shards.training if codes[i].shape[1] >= frames + 1]
        groups = [group_of(self.shards.utterances[i].speaker) for i in self.usable]
        sizes = [codes[i].shape[1] for i in self.usable]
        self.weights = torch.tensor(sampling_weights(groups, sizes, SHARES))

    def draw(self, batch: int, aligned: bool) -> tuple[Tensor, Tensor]:
        """-> waveforms [B, frames * 960], and their codes [B, K, frames], which match only with `aligned`."""
        waves, codes = [], []
        for pick in torch.multinomial(self.weights, batch, replacement=True).tolist():
            index = self.usable[pick]
            start = int(torch.randint(0, self.codes[index].shape[1] - self.frames, ()))
            phase = 0 if aligned else int(torch.randint(0, 960, ()))
            waves.append(self.shards.waveform(index, start * 960 + phase, self.frames * 960))
            codes.append(self.codes[index][:, start : start + self.frames].long())
        return torch.stack(waves), torch.stack(codes)


class CodecJob(Job):
    """Half of a codec, `module`. Its EMA weights (`ema`) are shipped."""

    sources: tuple[str, ...] = ("quantizer.pt",)
    log_every = 50
    max_norm = 2.0
    config: CodecConfig = NANO_CODEC

    def __init__(self, folder: Path, crops: Crops, steps: int, seed: int = 0, batch: int = 6):
        super().__init__(folder, steps, seed)
        self.crops, self.batch = crops, batch
        self.key |= {"batch": batch, "frames": crops.frames}
        self.autoencoder = trained_autoencoder(folder, self.config)
        self.codec = AudioTokenizer(self.config)
        self.codec.quantizer = self.autoencoder.quantizer.quantizer
        self.module = self.half_of(self.codec)
        self.ema = copy.deepcopy(self.module)
        self.parts = {"module": self.module, "ema": self.ema}
        self.optimizers = {
            "optimizer": torch.optim.AdamW(self.module.parameters(), lr=1e-3, betas=(0.8, 0.99), weight_decay=0.01)
        }

    def half_of(self, codec: AudioTokenizer) -> nn.ModuleDict:
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self) -> None:
        decay = min(0.995, self.step / (self.step + 50))
        averages = self.ema.state_dict()
        for key, value in self.module.state_dict().items():
            averages[key].lerp_(value, 1 - decay)


class DecoderJob(CodecJob):
    """Codes -> waveform: `to_acoustic` and `acoustic_decoder`."""

    name = "decoder"

    def half_of(self, codec: AudioTokenizer) -> nn.ModuleDict:
        initialise(codec.acoustic_decoder)
        codec.acoustic_decoder.conv_out.weight.data.mul_(0.2)
        return nn.ModuleDict({name: getattr(codec, name) for name in DECODER})

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        waveform, codes = self.crops.draw(self.batch, aligned=True)
        z_q = self.codec.quantizer.decode(codes)
        with self.autocast():
            estimate = self.codec.synthesize(z_q)
        edge = EDGE * 960
        loss = spectral_loss(estimate[:, 0, edge:-edge].float(), waveform[:, edge:-edge])
        return loss, {"loss": loss}


class EncoderJob(CodecJob):
    """Waveform -> the autoencoder's embedding: acoustic branch, semantic branch, `fuse`.

    Two losses: the error of the embedding, and the error of the mel spectrogram that the autoencoder's decoder makes of
    the quantised embedding.
    """

    name = "encoder"

    def half_of(self, codec: AudioTokenizer) -> nn.ModuleDict:
        initialise(codec.acoustic_encoder)
        in_float32(codec.acoustic_encoder.blocks[0].down)
        in_float32(codec.semantic_encoder.teacher.encoder.pos_conv_embed.conv)
        return nn.ModuleDict({name: getattr(codec, name) for name in ENCODER}).train()

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        autoencoder, codec = self.autoencoder, self.codec
        waveform, _ = self.crops.draw(self.batch, aligned=False)
        waveform = waveform * (0.3 + 1.0 * torch.rand(self.batch, 1))
        with torch.no_grad():
            mel = autoencoder.normalise(log_mel(waveform))
            target = autoencoder.encode(mel)[:, EDGE:-EDGE]
        with self.autocast():
            z = codec.embed(waveform[:, None]).float()
        inner = z[..., EDGE:-EDGE].transpose(1, 2)
        relative = (inner - target).square().mean() / target.var()
        codes = codec.quantizer.encode(z.detach())
        quantised = z + (codec.quantizer.decode(codes) - z).detach()
        with self.autocast():
            rebuilt = autoencoder.decode(quantised.transpose(1, 2)).float()
        mel_l1 = (rebuilt - mel)[..., 4 * EDGE : -4 * EDGE].abs().mean()
        loss = relative + mel_l1
        return loss, {"loss": loss, "relative": relative, "mel_l1": mel_l1}


JOBS = {"decoder": DecoderJob, "encoder": EncoderJob}


def trained_codec(
    autoencoder: MelAutoencoder, folder: Path, config: CodecConfig, decoder: str | None = None
) -> AudioTokenizer:
    """The codec with the quantiser of `autoencoder` and the encoder of `folder`, frozen.

    Its decoder is that of the job of this name, or untrained.
    """
    tensors, halves = read_part(folder, "encoder", "ema"), ENCODER
    if decoder:
        tensors, halves = tensors | read_part(folder, decoder, "ema"), ENCODER + DECODER
    codec = AudioTokenizer(config)
    expected = {key for key in codec.state_dict() if key.split(".")[0] in halves}
    if expected != set(tensors):
        raise ValueError(f"the parts in {folder} do not make a codec: {sorted(expected ^ set(tensors))[:5]}")
    codec.load_state_dict(tensors, strict=False)
    codec.quantizer = autoencoder.quantizer.quantizer
    return codec.eval().requires_grad_(False)


def main() -> None:
    arguments = job_arguments(__doc__, 6000, list(JOBS), batch=6, frames=36)
    use_trainable_snake(compiled=not arguments.eager)
    shards = Shards(arguments.corpus)
    crops = Crops(shards, read_codes(arguments.out, shards)[0], arguments.frames)
    JOBS[arguments.job](arguments.out, crops, arguments.steps, arguments.seed, arguments.batch).run()


if __name__ == "__main__":
    main()
