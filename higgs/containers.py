"""Is an audio file whole? What its container says of it, where libsndfile reads a damaged file in part and is silent.

WAV, AIFF, W64 and AU have sizes in their headers, Ogg a checksum in each page, MP3 the length of each frame, FLAC a
hash of all samples. Sizes that a streaming writer could not know are no truth: such a file is read to its end.
"""

import hashlib
import io
import mmap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from higgs.files import absent

UNKNOWN_FRAMES = 1 << 62  # libsndfile's length of a FLAC file that went through a pipe: more than any file holds
SAMPLE_RATES, MAX_CHANNELS = (1_000, 768_000), 64
PLACEHOLDER = 0x3FFF_0000  # bytes: sizes from here on stand for "unknown", and are more than is ever loaded
MAX_SECONDS = 3600.0
WRITABLE = (".wav", ".flac", ".aiff")
MAX_CHUNKS, MAX_PAGES = 1000, 2_000_000
# WAV and its big form, AIFF: byte order of the sizes, and the chunk that holds the sound.
CHUNKED = {b"RIFF": ("little", b"data"), b"RF64": ("little", b"data"), b"FORM": ("big", b"SSND")}
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# Layer III: kbit/s by their index in a frame's header, MPEG 1 and 2; Hz by version: 2.5, (none), 2, 1.
KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip
RATES = ((11_025, 12_000, 8_000), (), (22_050, 24_000, 16_000), (44_100, 48_000, 32_000))
MONO, HEADER = 3, 4


Data = mmap.mmap | bytes
Source = str | Path | bytes  # the path of an audio file, or its content


def name_of(source: Source) -> str:
    """For messages."""
    return "the audio" if isinstance(source, bytes) else str(source)


@contextmanager
def opened(source: Source) -> Iterator[soundfile.SoundFile]:
    """An audio file to read. Raises FileNotFoundError, or ValueError for a file without usable audio."""
    name, path = name_of(source), None if isinstance(source, bytes) else Path(source)
    if path is not None and not path.is_file():
        raise absent("audio file", path)
    try:
        if path is not None and path.suffix.lower() == ".raw":
            raise ValueError(f"{name}: raw samples have no header; expected a file with one")
        with soundfile.SoundFile(mended(path or source, name)) as file:
            if file.frames > UNKNOWN_FRAMES:
                raise ValueError(f"{name}: its header does not say how long it is; convert it again")
            if not SAMPLE_RATES[0] <= file.samplerate <= SAMPLE_RATES[1] or file.channels > MAX_CHANNELS:
                limits = f"{SAMPLE_RATES[0]:,} to {SAMPLE_RATES[1]:,} Hz and at most {MAX_CHANNELS} channels are read"
                raise ValueError(f"{name}: {file.samplerate:,} Hz, {file.channels} channels; {limits}")
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} is not an audio file that libsndfile reads: {error.error_string}") from error


def probe(source: Source) -> tuple[int, int, float]:
    """Audio file -> (sample rate, channels, seconds) without decoding it; errors as those of `load_audio`."""
    with opened(source) as file:
        return file.samplerate, file.channels, file.frames / file.samplerate


def mended(source: Path | bytes, name: str) -> Path | io.BytesIO:
    """A file or its content, with the count in its header put right. ValueError by `name`: it is cut off or damaged."""
    if isinstance(source, bytes):
        content = _mended(source, name)
        return io.BytesIO(source if content is None else content)
    with source.open("rb") as file:
        if not file.seek(0, io.SEEK_END):
            return source
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            content = _mended(data, name)
            return source if content is None else io.BytesIO(content)


def _mended(data: Data, name: str) -> bytes | None:
    """-> the content, where it had to be changed."""
    magic = data[:4]
    if magic in CHUNKED:
        return _chunks(name, data, *CHUNKED[magic])
    if magic == b"riff":  # W64
        _check_size(name, data, int.from_bytes(data[16:24], "little"))
    elif magic == b".snd":
        _check_size(name, data, sum(int.from_bytes(data[at : at + 4], "big") for at in (4, 8)))
    elif magic == b"OggS":
        _check_pages(name, data)
    elif magic[:3] == b"ID3" and data[(at := _after_tags(data, 0)) : at + 4] == b"fLaC":
        return data[at:]
    elif magic[:3] == b"ID3" or _frame(data, 0):
        return _mpeg(name, data)
    return None


class FlacHash:
    """Of a FLAC file's samples, int32 [frames, channels] at full scale: to compare with that in the header."""

    def __init__(self, source: str | Path | bytes):
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            header, at = file.read(42), 0
            while header[:3] == b"ID3":
                file.seek(at := at + _after_tags(header, 0))
                header = file.read(42)
        self._bits = ((header[20] & 1) << 4 | header[21] >> 4) + 1 if len(header) == 42 else 0
        self._expected, self._hash = header[26:42], hashlib.md5(usedforsecurity=False)
        usual = self._bits in (8, 16, 24)
        self.known = header[:4] == b"fLaC" and header[4] & 0x7F == 0 and usual and any(self._expected)

    def update(self, samples: np.ndarray) -> None:
        size = -(-self._bits // 8)
        values = np.ascontiguousarray(samples >> (32 - self._bits), dtype="<i4")
        self._hash.update(values.view(np.uint8).reshape(-1, 4)[:, :size].tobytes())

    def check(self, name: str) -> None:
        if self._hash.digest() != self._expected:
            raise ValueError(f"{name} is damaged: its samples are not those whose hash is in its header")


def _check_size(name: str, data: Data, expected: int, limit: float = PLACEHOLDER) -> None:
    if len(data) < expected < limit:
        raise ValueError(f"{name} is cut off: {len(data)} of {expected} bytes are there")


def _chunks(name: str, data: Data, order: str, sound: bytes) -> bytes | None:
    """Holds the size of the chunk of samples against the file; -> the content, where that size is 0 and not true."""
    at, long, limit = 12, 0, PLACEHOLDER
    for _ in range(MAX_CHUNKS):
        chunk, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], order)
        if chunk == b"fmt ":  # a size of more than an hour is none: so long a file is not loaded anyway
            limit = min(limit, int(MAX_SECONDS) * int.from_bytes(data[at + 16 : at + 20], order) or limit)
        if chunk == b"ds64":
            long = int.from_bytes(data[at + 16 : at + 24], order)
        if chunk == sound or at >= len(data):
            break
        at += 8 + size + size % 2
    if chunk != sound:
        return None  # libsndfile says what is wrong
    begin, whole = at + 8, int.from_bytes(data[4:8], order) in (len(data) - 8, len(data) - 7)
    if size == 0 and not whole and begin < len(data) < PLACEHOLDER:
        return data[: at + 4] + (len(data) - begin).to_bytes(4, order) + data[begin:]
    _check_size(name, data, begin + (long if long and size == 0xFFFF_FFFF else size), begin + limit)
    return None


def _check_pages(name: str, data: Data) -> None:
    """Ogg: decoders skip a page whose checksum is wrong, and so lose its second of sound."""
    at, last, numbers = 0, False, {}
    for _ in range(MAX_PAGES):
        if at == len(data) or (last and data.find(b"OggS", at) < 0):  # what is behind the last page may be a tag
            return
        header = data[at : at + 27]
        if header[:4] != b"OggS"[: len(header)]:
            raise ValueError(f"{name} is damaged: no page at byte {at}, where one should begin")
        stop = at + 27 + header[26] + sum(data[at + 27 : at + 27 + header[26]]) if len(header) == 27 else len(data) + 1
        if stop > len(data):
            raise ValueError(f"{name} is cut off: the page at byte {at} goes beyond the end of the file")
        page, (serial, number) = data[at:stop], (header[14:18], int.from_bytes(header[18:22], "little"))
        if _checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
            raise ValueError(f"{name} is damaged: the checksum of the page at byte {at} is wrong")
        if number != numbers.get(serial, number):
            raise ValueError(f"{name} is damaged: pages are missing before byte {at}")
        # Recordings of a broadcast begin with the pages of headers, at position 0, and go on anywhere.
        numbers[serial] = number + 1
        if not any(header[6:14]):
            del numbers[serial]
        at, last = stop, bool(header[5] & 4)
    raise ValueError(f"{name} has more than {MAX_PAGES:,} pages; convert it again")


def _checksum(page: bytes) -> int:
    """CRC-32 as in Ogg: zlib's polynomial, but highest bit first and from 0."""
    crc = zlib.crc32(page.translate(REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{crc:032b}"[::-1], 2)


def _frame(data: Data, at: int) -> tuple[int, tuple[int, int, bool]] | None:
    """The frame of MPEG layer III at a place -> its length, and what is the same in all frames of a file."""
    if len(data) < at + HEADER or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version, kbits, rate = (data[at + 1] >> 3) & 3, data[at + 2] >> 4, (data[at + 2] >> 2) & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return None
    scale = 144_000 if version == 3 else 72_000
    length = scale * KBITS[version == 3][kbits] // RATES[version][rate] + ((data[at + 2] >> 1) & 1)
    return length, (version, rate, data[at + 3] >> 6 == MONO)


def _after_tags(data: Data, at: int) -> int:
    while data[at : at + 3] == b"ID3":
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size
    return at


def _frames(name: str, data: Data) -> Iterator[int]:
    """The places of the frames. Between them there may be tags only; behind the last anything but another frame."""
    at, kind = _after_tags(data, 0), None
    while frame := _frame(data, at):
        kind = kind or frame[1]
        if frame[1] != kind:
            break
        if at + frame[0] > len(data):
            raise ValueError(f"{name} is cut off: the frame at byte {at} goes beyond the end of the file")
        yield at
        at = _after_tags(data, at + frame[0])
    if kind is None:
        raise ValueError(f"{name} is damaged: no frame at byte {at}, where one should begin")
    behind = data.find(b"\xff", at)
    while behind >= 0:
        frame = _frame(data, behind)
        if frame and (after := _frame(data, behind + frame[0])) and frame[1] == after[1] == kind:
            raise ValueError(f"{name} is damaged: no frame at byte {at}, but others follow; convert it again")
        behind = data.find(b"\xff", behind + 1)


def _mpeg(name: str, data: Data) -> bytes | None:
    """Counts frames. A header that counts others is refused; -> the content with a count, where there is none.

    Without a count the length is guessed from the first frame's bit rate, and what is beyond it is not read.
    """
    places = list(_frames(name, data))
    first, (length, (version, _, mono)) = places[0], _frame(data, places[0])
    side = ((17 if mono else 32) if version == 3 else (9 if mono else 17)) + HEADER
    for begin, count in ((first + side, first + side + 8), (first + 36, first + 50)):
        tag = data[begin : begin + 4]
        if tag == b"VBRI" or (tag in (b"Xing", b"Info") and data[begin + 7] & 1):
            counted, there = int.from_bytes(data[count : count + 4], "big"), len(places) - 1
            end = places[-1] + _frame(data, places[-1])[0]
            clean = end == len(data) or data[end : end + 3] in (b"TAG", b"APE", b"LYR", b"ID3")
            # Some encoders count the frame of the header itself; before unknown bytes it is the last frame that lacks.
            if counted < there - 1 or counted > there + clean:
                what = "is cut off" if counted > there else "has a wrong header; convert it again"
                raise ValueError(f"{name} {what}: {there} of {counted} frames are there")
            return None
    header = bytearray(data[first : first + HEADER])
    header[1] |= 1  # no checksum
    for kbits in range(1, 15):
        header[2] = kbits << 4 | header[2] & 0x0C
        length, _ = _frame(header, 0)
        if length >= side + 12:
            break
    info = b"Info" + (1).to_bytes(4, "big") + len(places).to_bytes(4, "big")
    return (bytes(header) + bytes(side - HEADER) + info).ljust(length, b"\0") + data[first:]
