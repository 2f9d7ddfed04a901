"""How far a codec's output is from its input, as rows of a table."""

from collections.abc import Sequence

from torch import Tensor

from higgs.evaluate.metrics import log_mel_distance, si_sdr, stft_distance

SDR_RANGE = 60.0  # dB: beyond it nothing can be told apart, and silence would be minus infinity


def compare(reference: Tensor, estimate: Tensor, sample_rate: int) -> dict[str, float]:
    """[L], [L] -> mel distance in dB, STFT distance, SI-SDR in dB (limited to +-60)."""
    return {
        "mel_db": log_mel_distance(reference, estimate, sample_rate),
        "stft": stft_distance(reference, estimate),
        "si_sdr_db": min(SDR_RANGE, max(-SDR_RANGE, si_sdr(reference, estimate))),
    }


def counts_to_decode(wanted: Sequence[int], num_codebooks: int) -> list[int]:
    """How many codebooks to decode, in turn: those wanted, and all. Raises ValueError for more than there are."""
    if max(wanted) > num_codebooks:
        raise ValueError(f"codebook_counts: {max(wanted)} is more than the codec's {num_codebooks}")
    return sorted({*wanted, num_codebooks})


def mean_of(rows: Sequence[dict], column: str, **where: object) -> float:
    """The mean of a column over the rows that have these values. Raises ValueError when there is none."""
    values = [row[column] for row in rows if all(row[k] == v for k, v in where.items())]
    if not values:
        raise ValueError(f"no row has {where}")
    return sum(values) / len(values)
