"""PESQ, where somebody has installed it."""

from torch import Tensor

from higgs.audio import resample
from higgs.evaluate.metrics import mono
from higgs.evaluate.wheels import optional_module

SAMPLE_RATE = 16_000


def pesq(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """[L], [L] -> wideband PESQ (ITU-T P.862.2), 1.04 to 4.64, by the package `pesq`.

    It is not installed with this project, because it needs a C compiler: JudgeUnavailable says how.
    Raises ValueError for what it cannot judge: silence, less than a quarter of a second.
    """
    package = optional_module("pesq", "pesq==0.0.4")
    clips = (
        resample(mono(waveform, what).float(), sample_rate, SAMPLE_RATE).numpy()
        for waveform, what in ((reference, "reference"), (estimate, "estimate"))
    )
    try:
        return float(package.pesq(SAMPLE_RATE, *clips, "wb"))
    except package.PesqError as error:
        raise ValueError(f"PESQ: {error}") from error
