"""Audio while it is made: columns in, exact pieces of the waveform out.

The codec's decoder sees some frames to each side, its reach. A piece decoded with that many neighbours, which are cut
away again, is what decoding everything at once would give there. So a piece waits for them, and no more is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs.codec.tokenizer import AudioTokenizer
from higgs.delay import segment_frames

CHUNK_FRAMES = (4, 8, 16, 32)  # the first piece comes soon, the later ones cost less


@dataclass
class Chunk:
    """A piece of one request's audio; put together, all of them are `generate`'s.

    `start` counts frames. `stop_reason` stands in the last piece, which may be empty, and nowhere else.
    """

    waveform: Tensor  # [L] float32
    codes: Tensor  # [K, T]
    start: int
    sample_rate: int
    stop_reason: str | None = None


class AudioStream:
    """One segment's columns -> pieces of its waveform, `chunk_frames` long in turn; the last length goes on."""

    def __init__(self, tokenizer: AudioTokenizer, chunk_frames: Sequence[int] = CHUNK_FRAMES):
        if not chunk_frames or min(chunk_frames) < 1:
            raise ValueError(f"chunk_frames must be positive, got {list(chunk_frames)}")
        self.tokenizer, self.lengths = tokenizer, tuple(chunk_frames)
        self.reach = tokenizer.acoustic_decoder.context_frames
        self.columns = torch.zeros(tokenizer.num_codebooks, 0, dtype=torch.long)
        self.start = 0  # the next frame to be heard
        self.before = 0  # how many frames before it are still held, within reach
        self.pieces = 0

    def push(self, columns: Tensor) -> Iterator[Chunk]:
        """The segment's next columns [K, C], the very first being stream bos -> the pieces that are complete.

        The newest frame waits one column more: should the segment end with it, it is no audio.
        """
        self.columns = torch.cat([self.columns, columns], dim=1)
        while True:
            length = self.lengths[min(self.pieces, len(self.lengths) - 1)]
            frames = self._frames(finished=True)
            if frames.shape[1] < self.before + length + self.reach:
                return
            yield self._piece(frames, length)

    def finish(self, finished: bool, stop_reason: str) -> Chunk:
        """The rest, which is empty where there was no frame at all. `finished`: the segment ended by itself."""
        frames = self._frames(finished)
        chunk = self._piece(frames, frames.shape[1] - self.before)
        chunk.stop_reason = stop_reason
        return chunk

    def _frames(self, finished: bool) -> Tensor:
        """-> [K, T], from `before` frames before `start`."""
        return segment_frames(self.columns, self.tokenizer.codebook_size, finished)

    def _piece(self, frames: Tensor, length: int) -> Chunk:
        window = frames[:, : self.before + length + self.reach]
        inside = slice(self.before, self.before + length)
        hop = self.tokenizer.hop_length
        waveform = torch.zeros(0)
        if length:
            decoded = self.tokenizer.decode(window).cpu()
            waveform = decoded[inside.start * hop : inside.stop * hop].clone()
        chunk = Chunk(waveform, window[:, inside], self.start, self.tokenizer.sample_rate)
        kept = min(self.reach, self.before + length)
        self.columns = self.columns[:, self.before + length - kept :].clone()
        self.start, self.before, self.pieces = self.start + length, kept, self.pieces + 1
        return chunk
