"""How far a codec's output is from its input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs.audio import load_audio
from higgs.evaluate.metrics.signal import log_mel_distance, si_sdr, stft_distance, stoi

SDR_RANGE = 60.0  # dB: beyond it nothing can be told apart, and silence would be minus infinity


def compare(reference: Tensor, estimate: Tensor, sample_rate: int) -> dict[str, float | None]:
    """[L], [L] -> mel distance in dB, STFT distance, SI-SDR in dB (limited to +-60), STOI.

    STOI is None for less than 0.4 s of speech.
    """
    return {
        "mel_db": log_mel_distance(reference, estimate, sample_rate),
        "stft": stft_distance(reference, estimate),
        "si_sdr_db": min(SDR_RANGE, max(-SDR_RANGE, si_sdr(reference, estimate))),
        "stoi": stoi(reference, estimate, sample_rate),
    }


@dataclass(frozen=True)
class RoundTrip:
    """A recording, its codes [K, T], and what comes back from all codebooks [L]; distances for each number of them."""

    recorded: Tensor
    codes: Tensor
    decoded: Tensor
    distances: list[dict[str, float | None]]


def round_trips(load_codec: Callable[[], Any], counts: Sequence[int], pad_to_hop: bool) -> Callable[[Path], RoundTrip]:
    """Loads the codec -> a function of an audio file. For `higgs.workers.in_order`."""
    codec = load_codec()
    rate = codec.sample_rate

    def there_and_back(path: Path) -> RoundTrip:
        recorded, _ = load_audio(path, rate)
        codes, distances = codec.encode(recorded, pad_to_hop=pad_to_hop), []
        for count in counts:
            decoded = codec.decode(codes[:count])[: len(recorded)]
            found = compare(recorded[: len(decoded)], decoded, rate)
            distances.append({"codebooks": count} | found)
        return RoundTrip(recorded, codes, decoded, distances)

    return there_and_back


def counts_to_decode(wanted: Sequence[int], num_codebooks: int) -> list[int]:
    """How many codebooks to decode, in turn: those wanted, and last all. Raises ValueError for more than there are."""
    if max(wanted) > num_codebooks:
        raise ValueError(f"codebook_counts: {max(wanted)} is more than the codec's {num_codebooks}")
    return sorted({*wanted, num_codebooks})


def mean_of(rows: Sequence[dict], column: str, **where: object) -> float:
    """The mean of a column over the rows that have these values, None left out. Raises ValueError if there is none."""
    chosen = [row[column] for row in rows if all(row[k] == v for k, v in where.items())]
    values = [value for value in chosen if value is not None]
    if not values:
        raise ValueError(f"no row has {column} and {where}")
    return sum(values) / len(values)
