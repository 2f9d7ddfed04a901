"""The decoder goes on, against discriminators and on more voices: `python -m training.nano.finishing --help`.

By spectral losses alone a decoder averages what the codes do not tell, which sounds like a buzz; discriminators tell
such an average from speech. Half of the crops get another long-term spectrum (training.nano.augmented), since a decoder
that has heard a few speakers makes one of them out of any other. Half have the codes of the encoder, which are not
those of the autoencoder (of the first codebook fewer than half are equal): a decoder that knows them keeps voices
better.
"""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs.audio import log_mel, magnitude, mel_filterbank
from higgs.config import CodecConfig
from training.corpus.shards import Shards
from training.nano.augmented import Change
from training.nano.codec import EDGE, Crops, DecoderJob, spectral_loss, trained_codec
from training.nano.discriminators import Discriminators
from training.nano.job import job_arguments, read_part
from training.nano.mel_autoencoder import trained_autoencoder
from training.nano.quantizer import read_codes
from training.nano.sizes import NANO_CODEC
from training.nano.snake import use_trainable_snake

CHANGED = 0.5  # share of the crops that are equalised
HEARD = 0.5  # share of the crops whose codes are the encoder's
LEARNING_RATE = 3e-4
SPECTRAL, MATCHING = 15.0, 2.0  # weights of the losses beside the adversarial one
ENERGY = 0.5  # weight of the energies within the spectral loss
WARM_STEPS = 200  # in which the discriminators learn, and the decoder has its spectral loss alone


class ChangedCrops(Crops):
    """Crops of which some are equalised, at their old peak; their codes are those of what they became.

    Codes are the autoencoder's, as the model learns them, or those of the encoder, as a recording has them.
    """

    def __init__(self, shards: Shards, codes: list[Tensor], frames: int, folder: Path, config: CodecConfig):
        super().__init__(shards, codes, frames)
        self.autoencoder = trained_autoencoder(folder, config)
        self.codec = trained_codec(self.autoencoder, folder, config)

    @torch.no_grad()
    def draw(self, batch: int, aligned: bool) -> tuple[Tensor, Tensor]:
        waveforms, _ = super().draw(batch, aligned)
        rng = random.Random(int(torch.randint(2**31, ())))
        for row in waveforms:
            if rng.random() < CHANGED:
                changed = torch.from_numpy(Change.draw(rng, "").shaped(row))
                row.copy_(changed * (row.abs().max() / changed.abs().max().clamp(min=1e-6)))
        quantizer, heard = self.codec.quantizer, round(HEARD * batch)
        z = self.autoencoder.encode(self.autoencoder.normalise(log_mel(waveforms)))
        codes = quantizer.encode(z.transpose(1, 2))
        if heard:
            codes[:heard] = quantizer.encode(self.codec.embed(waveforms[:heard, None]))
        return waveforms, codes


def energy_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """[B, L] twice: distance of the logarithms of the energies of 40 mel bands within 64 ms.

    By the other losses, which compare cell by cell, what the codes leave open comes out some 4 dB too soft above 1 kHz.
    """
    filters = mel_filterbank(1024, 40, 24_000).T

    def energies(waveform: Tensor) -> Tensor:
        power = filters @ magnitude(waveform, 1024, 256).square() / 1024
        return (torch.nn.functional.avg_pool1d(power, 6, 3) + 1e-7).log()

    return (energies(estimate) - energies(target)).abs().mean()


class FinishedDecoder(DecoderJob):
    """Begins with the decoder's job, at a lower rate."""

    name = "finished_decoder"
    sources = ("quantizer.pt", "decoder.pt", "encoder.pt")

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        if self.saved is None:
            for half in (self.module, self.ema):
                half.load_state_dict(read_part(self.folder, "decoder", "ema"))
        for group in self.optimizers["optimizer"].param_groups:
            group["lr"] = LEARNING_RATE
        self.discriminators = self.parts["discriminators"] = Discriminators()
        weights = self.discriminators.parameters()
        self.optimizers["discriminators_optimizer"] = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.8, 0.99))

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        waveform, codes = self.crops.draw(self.batch, aligned=True)
        edge = EDGE * 960
        with self.autocast():
            estimate = self.codec.synthesize(self.codec.quantizer.decode(codes))[:, 0, edge:-edge]
            losses = self.discriminators.losses(estimate.float(), waveform[:, edge:-edge])
        pair = estimate.float(), waveform[:, edge:-edge]
        losses |= {"loss": spectral_loss(*pair), "energy": energy_loss(*pair)}
        total = SPECTRAL * (losses["loss"] + ENERGY * losses["energy"]) + losses["discriminators"]
        if self.step >= WARM_STEPS:
            total = total + losses["adversarial"] + MATCHING * losses["matching"]
        return total, losses


def main() -> None:
    arguments = job_arguments(__doc__, 6000, batch=6, frames=24)
    use_trainable_snake(compiled=not arguments.eager)
    shards = Shards(arguments.corpus)
    codes = read_codes(arguments.out, shards)[0]
    crops = ChangedCrops(shards, codes, arguments.frames, arguments.out, NANO_CODEC)
    FinishedDecoder(arguments.out, crops, arguments.steps, arguments.seed, arguments.batch).run()


if __name__ == "__main__":
    main()
