"""Distances between a codec's input and output."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from higgs.audio import load_audio
from higgs.evaluate.metrics.signal import MEL_WINDOWS, log_mel_distance, pair, si_sdr, stft_distance, stoi
from higgs.workflow.tables import mean_known

SDR_RANGE = 60.0  # dB: SI-SDR is clamped to it, because silence has minus infinity


def compare(reference: Tensor, estimate: Tensor, sample_rate: int) -> dict[str, float | None]:
    """[L], [L] -> mel distance in dB, STFT distance, SI-SDR in dB, STOI; None for what is not defined.

    Spectra of less than a window (2048 samples), SI-SDR and STOI of a constant, as digital silence, STOI of less than
    0.4 s of speech. ValueError: unequal lengths, NaN.
    """
    pair(reference, estimate)
    distances: dict[str, float | None] = dict.fromkeys(("mel_db", "stft", "si_sdr_db", "stoi"))
    if len(reference) >= max(MEL_WINDOWS):
        distances["mel_db"] = log_mel_distance(reference, estimate, sample_rate)
        distances["stft"] = stft_distance(reference, estimate)
    with suppress(ValueError):  # a constant
        distances["si_sdr_db"] = min(SDR_RANGE, max(-SDR_RANGE, si_sdr(reference, estimate)))
        distances["stoi"] = stoi(reference, estimate, sample_rate)
    return distances


class RoundTrip(NamedTuple):
    """A recording [L], its codes [K, T], the output of all codebooks [L], distances for each number of codebooks."""

    recorded: Tensor
    codes: Tensor
    decoded: Tensor
    distances: list[dict[str, float | None]]


def round_trips(
    load_codec: Callable[[], Any], counts: Sequence[int], pad_to_hop: bool
) -> Callable[[tuple[Path, Tensor | None]], RoundTrip]:
    """Loads the codec -> a function of an audio file and its codes, None to encode it, for `higgs.workers.in_order`;
    `counts` end with all codebooks.
    """
    codec = load_codec()

    def round_trip(clip: tuple[Path, Tensor | None]) -> RoundTrip:
        path, codes = clip
        recorded, rate = load_audio(path, codec.sample_rate)
        codes = codec.encode(recorded, pad_to_hop=pad_to_hop) if codes is None else codes
        distances = []
        for count in counts:
            decoded = codec.decode(codes[:count])[: len(recorded)]
            distances.append({"codebooks": count} | compare(recorded[: len(decoded)], decoded, rate))
        return RoundTrip(recorded, codes, decoded, distances)

    return round_trip


def counts_to_decode(counts: Sequence[int], num_codebooks: int) -> list[int]:
    """Numbers of codebooks to decode, ascending, with `num_codebooks` added; ValueError for more than there are."""
    if max(counts) > num_codebooks:
        raise ValueError(f"codebook_counts: {max(counts)} is more than the codec's {num_codebooks}")
    return sorted({*counts, num_codebooks})


def mean_of(rows: Sequence[dict], column: str, **where: object) -> float | None:
    """The mean of a column over the rows that have these values, without None; None if no clip has one.

    ValueError where there is no such row.
    """
    if not (chosen := [row for row in rows if all(row[k] == v for k, v in where.items())]):
        raise ValueError(f"no row has {where}")
    return mean_known(chosen, column)
