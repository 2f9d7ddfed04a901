"""Second and third job of codec training: decoder and encoder on codes that no longer move.

`python -m higgs.train.codec decoder|encoder --help`. Neither changes the codes, so the model can be trained meanwhile.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from higgs.audio import log_mel, magnitude, mel_filterbank
from higgs.codec.tokenizer import AudioTokenizer
from higgs.train.nano import NANO_CODEC
from higgs.train.schedule import Averages, Clock, load_state, log, save_state, set_rate
from higgs.train.shards import Shards, balance, group_of, split
from higgs.train.snake import use_trainable_snake
from higgs.train.teacher import trained_teacher

HELD_OUT = 200
RESOLUTIONS = ((128, 16), (256, 32), (512, 64), (1024, 80), (2048, 120))  # n_fft, mel bands
EDGE = 3  # frames at each end of a crop that hear beyond it, left out of the loss


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
    """Variance-preserving starts; the last convolution of a residual unit starts small."""
    for name, conv in module.named_modules():
        if not isinstance(conv, nn.Conv1d | nn.ConvTranspose1d):
            continue
        stride = conv.stride[0] if isinstance(conv, nn.ConvTranspose1d) else 1
        fan = conv.in_channels * conv.kernel_size[0] / stride
        last_of_unit = ".units." in name and name.endswith("conv2")
        nn.init.normal_(conv.weight, 0, (0.3 if last_of_unit else gain) / math.sqrt(fan))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


class Crops:
    """Random crops of a corpus: waveforms, and the codes of whole frames where a crop starts on one."""

    def __init__(self, corpus: Path, codes: list[Tensor], frames: int):
        self.shards, self.codes, self.frames = Shards(corpus), codes, frames
        train_on, self.held_out = split(len(self.shards), HELD_OUT)
        self.usable = [i for i in train_on if codes[i].shape[1] >= frames + 1]
        groups = [group_of(self.shards.utterances[i].speaker) for i in self.usable]
        self.weights = torch.tensor(balance(groups, [codes[i].shape[1] for i in self.usable]))

    def draw(self, batch: int, aligned: bool) -> tuple[Tensor, Tensor]:
        """-> waveforms [B, frames * 960], codes [B, K, frames] (of no use unless `aligned`)."""
        waves, codes = [], []
        for pick in torch.multinomial(self.weights, batch, replacement=True).tolist():
            index = self.usable[pick]
            start = int(torch.randint(0, self.codes[index].shape[1] - self.frames, ()))
            phase = 0 if aligned else int(torch.randint(0, 960, ()))
            waves.append(self.shards.waveform(index, start * 960 + phase, self.frames * 960))
            codes.append(self.codes[index][:, start : start + self.frames].long())
        return torch.stack(waves), torch.stack(codes)


def run(
    name: str,
    folder: Path,
    module: nn.Module,
    minutes: float,
    rate: float,
    step: Callable[[], tuple[Tensor, dict[str, float]]],
) -> None:
    """The loop of both jobs: the module's running average is what counts, saved as `folder/NAME.pt`."""
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=rate, betas=(0.8, 0.99), weight_decay=0.01
    )
    clock, averages = Clock(minutes), Averages()
    smooth = {k: v.clone() for k, v in module.state_dict().items()}
    if state := load_state(folder / f"{name}.pt"):
        module.load_state_dict(state["module"])
        smooth = state["smooth"]
        optimizer.load_state_dict(state["optimizer"])
        clock.load_state_dict(state["clock"])
    saved = clock.spent
    while not clock.done:
        set_rate(optimizer, clock.rate())
        loss, shown = step()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 2.0)
        optimizer.step()
        clock.tick()
        averages.add(loss=loss.detach(), **shown)
        keep = 1 - min(0.995, clock.step / (clock.step + 50))
        with torch.no_grad():
            for key, value in module.state_dict().items():
                smooth[key].lerp_(value, keep)
        if clock.step % 50 == 0:
            log(
                folder / f"{name}.jsonl",
                step=clock.step,
                seconds=round(clock.spent),
                **averages.read(),
            )
        if clock.spent - saved > 180 or clock.done:
            saved = clock.spent
            save_state(
                folder / f"{name}.pt",
                module=module.state_dict(),
                smooth=smooth,
                optimizer=optimizer.state_dict(),
                clock=clock.state_dict(),
            )


def train_decoder(folder: Path, crops: Crops, minutes: float, batch: int) -> None:
    """Codes -> waveform: `to_acoustic` and `acoustic_decoder`."""
    quantizer = trained_teacher(folder, NANO_CODEC).quantizer.quantizer
    codec = AudioTokenizer(NANO_CODEC)
    module = nn.ModuleDict(
        {"to_acoustic": codec.to_acoustic, "acoustic_decoder": codec.acoustic_decoder}
    )
    initialise(codec.acoustic_decoder)
    codec.acoustic_decoder.conv_out.weight.data.mul_(0.2)
    edge = EDGE * 960

    def step() -> tuple[Tensor, dict[str, float]]:
        waveform, codes = crops.draw(batch, aligned=True)
        z_q = quantizer.decode(codes)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            estimate = codec.synthesize(z_q)
        return spectral_loss(estimate[:, 0, edge:-edge].float(), waveform[:, edge:-edge]), {}

    run("decoder", folder, module, minutes, 1e-3, step)


def in_float32(module: nn.Module) -> None:
    """Keeps a convolution of few channels out of autocast.

    In bfloat16 the first downsampling and HuBERT's grouped convolution are wrong on a CPU with AMX (torch 2.13): some
    taps are left out. An encoder that was trained on that is of no use in float32.
    """
    forward = module.forward

    def whole(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    module.forward = whole


def train_encoder(folder: Path, crops: Crops, minutes: float, batch: int) -> None:
    """Waveform -> the teacher's embedding: acoustic branch, semantic branch, `fuse`.

    Errors are weighed twice: against the embedding itself, and by what they change in the mel spectrogram that the
    teacher's decoder makes of the quantised embedding.
    """
    teacher = trained_teacher(folder, NANO_CODEC)
    codec = AudioTokenizer(NANO_CODEC)
    codec.quantizer = teacher.quantizer.quantizer
    module = nn.ModuleDict(
        {
            "acoustic_encoder": codec.acoustic_encoder,
            "semantic_encoder": codec.semantic_encoder,
            "fuse": codec.fuse,
        }
    )
    initialise(codec.acoustic_encoder)
    in_float32(codec.acoustic_encoder.blocks[0].down)
    in_float32(codec.semantic_encoder.teacher.encoder.pos_conv_embed.conv)
    module.train()

    def step() -> tuple[Tensor, dict[str, float]]:
        waveform, _ = crops.draw(batch, aligned=False)
        waveform = waveform * (0.3 + 1.0 * torch.rand(batch, 1))
        with torch.no_grad():
            mel = teacher.normalise(log_mel(waveform))
            target = teacher.encode(mel)[:, EDGE:-EDGE]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = codec.embed(waveform[:, None]).float()
        inner = z[..., EDGE:-EDGE].transpose(1, 2)
        error = (inner - target).square().mean() / target.var()
        codes = codec.quantizer.encode(z.detach())
        quantised = z + (codec.quantizer.decode(codes) - z).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rebuilt = teacher.decode(quantised.transpose(1, 2)).float()
        heard = (rebuilt - mel)[..., 4 * EDGE : -4 * EDGE].abs().mean()
        return error + heard, {"relative": error.detach(), "mel_l1": heard.detach()}

    run("encoder", folder, module, minutes, 1e-3, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=["decoder", "encoder"])
    parser.add_argument("--corpus", type=Path, default=Path("training/out/corpus"))
    parser.add_argument("--out", type=Path, default=Path("training/out"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--frames", type=int, default=36)
    parser.add_argument(
        "--eager", action="store_true", help="without compiling Snake (no C++ compiler)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    use_trainable_snake(compiled=not arguments.eager)
    codes = torch.load(arguments.out / "codes.pt", weights_only=True)["codes"]
    crops = Crops(arguments.corpus, codes, arguments.frames)
    job = {"decoder": train_decoder, "encoder": train_encoder}[arguments.job]
    job(arguments.out, crops, arguments.minutes, arguments.batch)


if __name__ == "__main__":
    main()
