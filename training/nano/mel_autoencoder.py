"""The mel autoencoder in which the quantiser is trained: log-mel, codes, log-mel, and phonemes from the first codebook.

In end-to-end training of a codec, waveform networks, quantiser and losses all move at once. Here the quantiser is
trained first, between two small networks on mel spectrograms, then decoder and encoder on frozen codes. The CTC head
(on the first codebook alone) makes that codebook phonetic, as HuBERT's features do in the reference, and aligns text
and frames for the training of the model.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.config import CodecConfig
from higgs.data.text.lexicon import Lexicon
from training.nano.alignment import num_symbols
from training.nano.job import read_part
from training.nano.vq_ema import QuantizerTrainer

NUM_MELS = 80
MEL_PER_FRAME = 4


class Residual(nn.Module):
    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.wide = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.point = nn.Conv1d(channels, channels, 1)
        self.gain = nn.Parameter(torch.full((1, channels, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.point(nn.functional.gelu(self.wide(x)))


class MelAutoencoder(nn.Module):
    """Encoder, the quantiser (which is shipped), decoder and CTC head. Mels are [B, 80, 4 T], normalised."""

    def __init__(self, config: CodecConfig, lexicon: Lexicon | None, narrow: int = 160, wide: int = 320):
        super().__init__()
        self.lexicon, self.num_symbols = lexicon, num_symbols(lexicon)
        width = config.embedding_dim
        self.register_buffer("mel_mean", torch.zeros(()))
        self.register_buffer("mel_std", torch.ones(()))
        self.encoder = nn.Sequential(
            nn.Conv1d(NUM_MELS, narrow, 5, padding=2),
            *(Residual(narrow, 5) for _ in range(2)),
            nn.Conv1d(narrow, wide, 8, 4, 2),
            *(Residual(wide, 3) for _ in range(4)),
            nn.Conv1d(wide, width, 1),
        )
        self.quantizer = QuantizerTrainer(
            ResidualVectorQuantizer(config.num_codebooks, width, config.codebook_size, config.codebook_dim)
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(width, wide, 3, padding=1),
            *(Residual(wide, 5) for _ in range(4)),
            nn.ConvTranspose1d(wide, narrow, 8, 4, 2),
            *(Residual(narrow, 5) for _ in range(2)),
            nn.Conv1d(narrow, NUM_MELS, 5, padding=2),
        )
        self.ctc_head = nn.Sequential(
            nn.Conv1d(width, wide, 5, padding=2), nn.GELU(), Residual(wide, 5), nn.Conv1d(wide, 2 * self.num_symbols, 1)
        )

    def normalise(self, log_mel: Tensor) -> Tensor:
        return (log_mel - self.mel_mean) / self.mel_std

    def encode(self, mel: Tensor) -> Tensor:
        """[B, 80, 4 T] -> z [B, T, D]"""
        return self.encoder(mel).transpose(1, 2)

    def decode(self, z_q: Tensor) -> Tensor:
        """z_q [B, T, D] -> [B, 80, 4 T]"""
        return self.decoder(z_q.transpose(1, 2))

    def ctc_logits(self, first: Tensor) -> Tensor:
        """The first codebook's part [B, T, D] -> [B, 2 T, classes]: two CTC frames for each frame."""
        logits = self.ctc_head(first.transpose(1, 2)).unflatten(1, (2, self.num_symbols))
        return logits.permute(0, 3, 1, 2).flatten(1, 2)


def trained_autoencoder(folder: Path, config: CodecConfig) -> MelAutoencoder:
    """The result of the quantiser's job in `folder`, frozen."""
    autoencoder = MelAutoencoder(config, Lexicon.read(folder))
    autoencoder.load_state_dict(read_part(folder, "quantizer", "autoencoder"))
    return autoencoder.eval().requires_grad_(False)
