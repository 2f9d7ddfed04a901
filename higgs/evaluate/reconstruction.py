"""How far a codec's output is from its input, as rows of a table."""

from collections.abc import Callable, Sequence

from torch import Tensor

from higgs.evaluate.metrics import log_mel_distance, si_sdr, stft_distance
from higgs.evaluate.stoi import stoi

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


def by_codebooks(
    decode: Callable[[Tensor], Tensor],
    codes: Tensor,
    reference: Tensor,
    sample_rate: int,
    counts: Sequence[int],
) -> list[dict[str, float | None]]:
    """Codes [K, T] of a clip, the clip [L] -> what its first 1, 2, ... codebooks give back, a row for each count.

    `decode` makes [k, T] a waveform. Both are cut to the shorter of the two.
    """
    rows = []
    for count in counts:
        rebuilt = decode(codes[:count])
        length = min(len(rebuilt), len(reference))
        rows.append(
            {"codebooks": count} | compare(reference[:length], rebuilt[:length], sample_rate)
        )
    return rows


def counts_to_decode(wanted: Sequence[int], num_codebooks: int) -> list[int]:
    """How many codebooks to decode, in turn: those wanted, and all. Raises ValueError for more than there are."""
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
