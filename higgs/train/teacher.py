"""A throw-away teacher for the quantiser: log-mel in, codes, log-mel out, and phonemes from the first codebook.

Training a codec end to end makes the waveform stacks, the quantiser and the losses chase each other. Here the
quantiser learns first, between two small networks on mel spectrograms; decoder and encoder are then trained on codes
that no longer move. The reader (CTC on the first codebook alone) makes that codebook phonetic, as HuBERT's
features do in the original, and aligns text and frames for the training of the model.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.config import CodecConfig
from higgs.data.lexicon import Lexicon, Piece
from higgs.train.codebooks import QuantizerTrainer
from higgs.train.schedule import read_part

NUM_MELS = 80
MEL_PER_FRAME = 4
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"


def num_symbols(lexicon: Lexicon | None) -> int:
    """What the reader tells apart: the CTC blank (0), characters, phonemes."""
    return 1 + len(CHARACTERS) + (len(lexicon.phonemes) if lexicon else 0)


def symbols_of(text: str, lexicon: Lexicon | None) -> tuple[list[int], list[int]]:
    """-> the CTC symbols of a text (ASCII), and the place of the text token that each stands for.

    Words that the lexicon knows are phonemes even where they are spelled: that is how they sound. Their phonemes
    then stand for the letters at the same share of the word.
    """
    symbols, places, at = [], [], 0
    for piece in lexicon.split(text) if lexicon else [Piece(text)]:
        if piece.phonemes is None:
            found = [CHARACTERS.find(character) for character in piece.text.lower()]
            pairs = [(1 + max(0, index), at + n) for n, index in enumerate(found)]
        else:
            spread = len(piece.text) / len(piece.phonemes) if piece.spelled else 1
            first = 1 + len(CHARACTERS)
            pairs = [
                (first + lexicon.phonemes.index(p), at + int(n * spread))
                for n, p in enumerate(piece.phonemes)
            ]
        for symbol, place in pairs:
            if symbol != 1 or (
                symbols and symbols[-1] != 1
            ):  # one blank between words, none before
                symbols.append(symbol)
                places.append(place)
        short = piece.phonemes is not None and not piece.spelled
        at += len(piece.phonemes) if short else len(piece.text)
    while symbols and symbols[-1] == 1:
        symbols.pop()
        places.pop()
    return symbols, places


class Residual(nn.Module):
    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.wide = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.point = nn.Conv1d(channels, channels, 1)
        self.gain = nn.Parameter(torch.full((1, channels, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.point(nn.functional.gelu(self.wide(x)))


class MelTeacher(nn.Module):
    """Encoder, the quantiser that is kept, decoder and reader. Mels are [B, 80, 4 T], normalised."""

    def __init__(
        self, config: CodecConfig, lexicon: Lexicon | None, narrow: int = 160, wide: int = 320
    ):
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
            ResidualVectorQuantizer(
                config.num_codebooks, width, config.codebook_size, config.codebook_dim
            )
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(width, wide, 3, padding=1),
            *(Residual(wide, 5) for _ in range(4)),
            nn.ConvTranspose1d(wide, narrow, 8, 4, 2),
            *(Residual(narrow, 5) for _ in range(2)),
            nn.Conv1d(narrow, NUM_MELS, 5, padding=2),
        )
        self.reader = nn.Sequential(
            nn.Conv1d(width, wide, 5, padding=2),
            nn.GELU(),
            Residual(wide, 5),
            nn.Conv1d(wide, 2 * self.num_symbols, 1),
        )

    def normalise(self, log_mel: Tensor) -> Tensor:
        return (log_mel - self.mel_mean) / self.mel_std

    def encode(self, mel: Tensor) -> Tensor:
        """[B, 80, 4 T] -> z [B, T, D]"""
        return self.encoder(mel).transpose(1, 2)

    def decode(self, z_q: Tensor) -> Tensor:
        """z_q [B, T, D] -> [B, 80, 4 T]"""
        return self.decoder(z_q.transpose(1, 2))

    def read(self, first: Tensor) -> Tensor:
        """The first codebook's part [B, T, D] -> CTC logits [B, 2 T, symbols]: two slots for each frame."""
        logits = self.reader(first.transpose(1, 2))
        batch, _, frames = logits.shape
        return (
            logits.view(batch, 2, self.num_symbols, frames)
            .permute(0, 3, 1, 2)
            .reshape(batch, 2 * frames, self.num_symbols)
        )


def trained_teacher(folder: Path, config: CodecConfig) -> MelTeacher:
    """The teacher that the quantiser's job left in `folder`, frozen."""
    teacher = MelTeacher(config, Lexicon.read(folder))
    teacher.load_state_dict(read_part(folder, "teacher", "teacher"))
    return teacher.eval().requires_grad_(False)
