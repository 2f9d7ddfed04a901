"""Chunks of a waveform -> the bytes of an audio file, as they become final."""

import io
import struct

import soundfile
import torch
from torch import Tensor

from higgs.audio import check_rate

MEDIA_TYPES = {"mp3": "audio/mpeg", "opus": "audio/ogg", "wav": "audio/wav", "flac": "audio/flac", "pcm": "audio/pcm"}
# libsndfile's settings; None is written here. MP3 at a constant bit rate: the header of a variable one is written last.
STREAMED = {
    "pcm": None,
    "wav": None,
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.5},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


class _Buffer(io.RawIOBase):
    """A file that libsndfile writes and `read_new` empties; writes to bytes read before (a header) are dropped."""

    def __init__(self) -> None:
        self.content, self.num_read, self.position = bytearray(), 0, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = (0, self.position, self.num_read + len(self.content))[whence] + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def write(self, data: bytes) -> int:
        start, size = self.position - self.num_read, len(data)
        self.position += size
        new = bytes(data)[max(0, -start) :]
        start = max(0, start)
        self.content[start : start + len(new)] = new
        return size

    def read_new(self) -> bytes:
        new, self.content = bytes(self.content), bytearray()
        self.num_read += len(new)
        return new


class AudioEncoder:
    """`write` float [L] in [-1, 1], chunk after chunk, then `finish`: the returned bytes are one file.

    `kind` is a key of STREAMED, else ValueError. "pcm" is 16-bit little-endian without a header; the header of "wav"
    gives no length. The header of "flac" is written last, so all of its bytes come from `finish`.
    """

    def __init__(self, kind: str, sample_rate: int):
        if kind not in STREAMED:
            raise ValueError(f"audio is streamed as {', '.join(STREAMED)}, not as {kind!r}")
        self.kind, self.sample_rate = kind, check_rate(sample_rate)
        self._buffer, self._file, self._started = _Buffer(), None, False
        if settings := STREAMED[kind]:
            self._file = soundfile.SoundFile(self._buffer, "w", samplerate=sample_rate, channels=1, **settings)

    def write(self, waveform: Tensor) -> bytes:
        """[L] float, clipped to [-1, 1] -> the next bytes, perhaps none."""
        samples = (32767 * waveform.clamp(-1, 1)).round().to(torch.int16).cpu().numpy()
        if self._file is not None:
            self._file.write(samples)
            return b"" if self.kind == "flac" else self._buffer.read_new()
        data = samples.astype("<i2").tobytes()
        header = b"" if self.kind == "pcm" or self._started else self._header()
        self._started = True
        return header + data

    def _header(self) -> bytes:
        """Of a WAV file of unknown length."""
        form = struct.pack("<HHIIHH", 1, 1, self.sample_rate, 2 * self.sample_rate, 2, 16)
        unknown = struct.pack("<I", 0xFFFF_FFFF)
        return b"RIFF" + unknown + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + unknown

    def finish(self) -> bytes:
        """The last bytes."""
        if self._file is None:
            return b""
        self._file.close()
        return self._buffer.read_new()
