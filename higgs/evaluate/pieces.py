"""Long recordings, cut where they are quiet."""

from torch import Tensor


def split_at_quiet(waveform: Tensor, sample_rate: int, max_seconds: float) -> list[Tensor]:
    """[L] -> pieces of at most `max_seconds` that concatenate to it.

    A cut falls in the middle of the quietest 0.1 s of the last third of what fits, so mostly
    between words.
    """
    limit, frame = round(max_seconds * sample_rate), max(1, round(0.1 * sample_rate))
    hop = max(1, frame // 2)
    if limit < 3 * frame:
        raise ValueError(f"split_at_quiet: max_seconds must be at least 0.3, got {max_seconds}")
    pieces = []
    while len(waveform) > limit:
        earliest = limit - limit // 3
        frames = waveform[earliest:limit].double().unfold(0, frame, hop)
        quietest = int(frames.square().mean(dim=1).argmin())
        cut = earliest + quietest * hop + frame // 2
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]
