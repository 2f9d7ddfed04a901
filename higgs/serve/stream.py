"""Audio while it is generated: delayed frames in, exact chunks of the waveform out.

A chunk decoded with the receptive field of the codec's decoder as context, which is cut away again, equals the same
part of the whole decoded at once. So a chunk waits for its context.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs.codec.tokenizer import AudioTokenizer
from higgs.delay import segment_frames

CHUNK_FRAMES = (4, 8, 16, 32)  # the first chunk comes soon, the later ones cost less


@dataclass
class AudioChunk:
    """A part of one request's waveform; concatenated, they equal `generate`'s.

    `start` counts frames, `part` the chunks of a long text. Only the last `AudioChunk`, which may be empty, has a
    `stop_reason`.
    """

    waveform: Tensor  # [L] float32
    codes: Tensor  # [K, T]
    start: int
    sample_rate: int
    stop_reason: str | None = None
    part: int = 0


class AudioStream:
    """One segment's delayed frames -> chunks of its waveform of `chunk_frames` in turn; the last length is repeated."""

    def __init__(self, tokenizer: AudioTokenizer, chunk_frames: Sequence[int] = CHUNK_FRAMES):
        if not chunk_frames or min(chunk_frames) < 1:
            raise ValueError(f"chunk_frames must be positive, got {list(chunk_frames)}")
        self.tokenizer, self.lengths = tokenizer, list(chunk_frames)
        self.context = tokenizer.acoustic_decoder.context_frames
        self.delayed = torch.zeros(tokenizer.num_codebooks, 0, dtype=torch.long)
        self.start = 0  # the first frame of the next chunk
        self.context_before = 0  # frames before it that `delayed` still holds

    def push(self, delayed: Tensor) -> Iterator[AudioChunk]:
        """The segment's next delayed frames [K, C], the very first being stream bos -> the chunks that are complete.

        The newest frame waits for one more step: if the segment ends with it, it is no audio.
        """
        self.delayed = torch.cat([self.delayed, delayed], dim=1)
        while True:
            frames = self._frames(finished=True)
            if frames.shape[1] < self.context_before + self.lengths[0] + self.context:
                return
            length = self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]
            yield self._chunk(frames, length)

    def finish(self, finished: bool, stop_reason: str) -> AudioChunk:
        """The rest, which is empty where there was no frame at all. `finished`: the segment ended by itself."""
        frames = self._frames(finished)
        chunk = self._chunk(frames, frames.shape[1] - self.context_before)
        chunk.stop_reason = stop_reason
        return chunk

    def _frames(self, finished: bool) -> Tensor:
        """-> [K, T], from `context_before` frames before `start`."""
        return segment_frames(self.delayed, self.tokenizer.codebook_size, finished)

    def _chunk(self, frames: Tensor, length: int) -> AudioChunk:
        stop = self.context_before + length
        window, hop = frames[:, : stop + self.context], self.tokenizer.hop_length
        waveform = torch.zeros(0)
        if length:
            waveform = self.tokenizer.decode(window).cpu()[self.context_before * hop : stop * hop].clone()
        codes = window[:, self.context_before : stop]
        chunk = AudioChunk(waveform, codes, self.start, self.tokenizer.sample_rate)
        self.start += length
        self.context_before = min(self.context, stop)
        self.delayed = self.delayed[:, stop - self.context_before :].clone()
        return chunk
