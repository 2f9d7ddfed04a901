"""Naturalness: mean opinion scores predicted by a network."""

from statistics import fmean

import torch
from torch import Tensor

from higgs.evaluate.judges.base import SAMPLE_RATE, mel_power, mono_16_khz
from higgs.evaluate.judges.wheels import onnx_session


class DNSMOS:
    """DNSMOS P.835 and P.808 of speechmos 0.0.1.1: predicted mean opinion scores, 1 to 5.

    Reddy, Gopal and Cutler, 2021 and 2022. Trained on noise suppression: most sensitive to noise and distortion. Clips
    are scored in windows of 9.01 s, one each second; shorter ones are repeated to fill one, as in the reference code.
    """

    name, short = "DNSMOS P.835 and P.808 (PyPI wheel speechmos 0.0.1.1)", "DNSMOS"
    WHEEL = ("speechmos", "0.0.1.1")
    FOLDER = "speechmos/dnsmos_models"
    WINDOW_SECONDS = 9.01
    # The reference's polynomials from the network's output to the scale of human ratings, highest power first.
    POLYNOMIALS = {
        "signal": (-0.08397278, 1.22083953, 0.0052439),
        "background": (-0.13166888, 1.60915514, -0.39604546),
        "overall": (-0.06766283, 1.11546468, 0.04602535),
    }

    def __init__(self) -> None:
        """Raises MetricModelUnavailable if the wheel is missing."""
        self._p835 = onnx_session(self.WHEEL, f"{self.FOLDER}/sig_bak_ovr.onnx")
        self._p808 = onnx_session(self.WHEEL, f"{self.FOLDER}/model_v8.onnx")

    def rate(self, waveform: Tensor, sample_rate: int) -> dict[str, float]:
        """float [L] in [-1, 1] -> `signal`, `background` and `overall` quality (P.835), and `p808`."""
        samples = mono_16_khz(waveform, sample_rate)
        length = int(self.WINDOW_SECONDS * SAMPLE_RATE)
        while len(samples) < length:
            samples = torch.cat([samples, samples])
        scores = []
        for second in range(int(len(samples) // SAMPLE_RATE - self.WINDOW_SECONDS) + 1):
            # Where this product rounds down (seconds 7 to 23), the window is a sample short; the reference skips it.
            window = samples[second * SAMPLE_RATE : int((second + self.WINDOW_SECONDS) * SAMPLE_RATE)]
            if len(window) == length:
                scores.append(self._rate_window(window))
        return {name: fmean(score[name] for score in scores) for name in scores[0]}

    def _rate_window(self, window: Tensor) -> dict[str, float]:
        (outputs,) = self._p835.run(None, {"input_1": window[None].numpy()})
        pairs = zip(self.POLYNOMIALS.items(), map(float, outputs[0]), strict=True)
        scores = {name: (a * output + b) * output + c for (name, (a, b, c)), output in pairs}
        (p808,) = self._p808.run(None, {"input_1": self._log_mel(window[:-160])[None].numpy()})
        return scores | {"p808": float(p808[0, 0])}

    def _log_mel(self, samples: Tensor) -> Tensor:
        """[L] -> [1 + L // 160, 120]: mel power in dB below its peak, at most 80, as (dB + 40) / 40."""
        power = mel_power(samples, 321, 160, 120).clamp(min=1e-10)
        decibels = 10 * (power / power.max()).log10()
        return (decibels.clamp(min=-80.0) + 40) / 40
