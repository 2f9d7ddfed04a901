"""How natural speech sounds, as a network predicts what listeners would have said."""

from statistics import fmean

import torch
from torch import Tensor

from higgs.audio import resample
from higgs.evaluate.judges.slaney_mel import mel_power
from higgs.evaluate.judges.wheels import onnx_session
from higgs.evaluate.metrics.signal import mono


class DNSMOS:
    """DNSMOS P.835 and P.808 of speechmos 0.0.1.1: predicted mean opinion scores, 1 to 5.

    Reddy, Gopal and Cutler, 2021 and 2022. Trained to judge noise suppression, so noise and
    distortion are what it hears best. Clips are judged in windows of 9.01 s, one each second;
    shorter ones are repeated until they fill a window, as the authors do, so a very short clip is
    judged mostly on its own repetition.
    """

    WHEEL = ("speechmos", "0.0.1.1")
    FOLDER = "speechmos/dnsmos_models"
    SAMPLE_RATE = 16_000
    SECONDS = 9.01  # of a window
    # The authors' curves from the network's output to the scale of listeners, highest power first.
    CURVES = {
        "signal": (-0.08397278, 1.22083953, 0.0052439),
        "background": (-0.13166888, 1.60915514, -0.39604546),
        "overall": (-0.06766283, 1.11546468, 0.04602535),
    }

    name = "DNSMOS P.835 and P.808 (PyPI wheel speechmos 0.0.1.1)"
    short = "DNSMOS"

    def __init__(self) -> None:
        """Raises JudgeUnavailable that says what to install if the wheel is absent."""
        self._p835 = onnx_session(self.WHEEL, f"{self.FOLDER}/sig_bak_ovr.onnx")
        self._p808 = onnx_session(self.WHEEL, f"{self.FOLDER}/model_v8.onnx")

    def rate(self, waveform: Tensor, sample_rate: int) -> dict[str, float]:
        """float [L] in [-1, 1] -> `signal`, `background` and `overall` quality (P.835), and `p808`.

        Raises as `check_waveform` does.
        """
        samples = resample(mono(waveform, "waveform").float(), sample_rate, self.SAMPLE_RATE)
        length = int(self.SECONDS * self.SAMPLE_RATE)
        while len(samples) < length:
            samples = torch.cat([samples, samples])
        scores = []
        for second in range(int(len(samples) // self.SAMPLE_RATE - self.SECONDS) + 1):
            # Where this product rounds down, the window is a sample short, and the authors' code
            # leaves it out (seconds 7 to 23). Left out here too, so that their scores come out.
            end = int((second + self.SECONDS) * self.SAMPLE_RATE)
            window = samples[second * self.SAMPLE_RATE : end]
            if len(window) == length:
                scores.append(self._rate_window(window))
        return {name: fmean(row[name] for row in scores) for name in scores[0]}

    def _rate_window(self, window: Tensor) -> dict[str, float]:
        (outputs,) = self._p835.run(None, {"input_1": window[None].numpy()})
        scores = {
            name: (a * float(output) + b) * float(output) + c
            for (name, (a, b, c)), output in zip(self.CURVES.items(), outputs[0], strict=True)
        }
        (p808,) = self._p808.run(None, {"input_1": self._decibels(window[:-160])[None].numpy()})
        return scores | {"p808": float(p808[0, 0])}

    def _decibels(self, samples: Tensor) -> Tensor:
        """[L] -> [1 + L // 160, 120]: mel power in dB below its peak, at most 80, as (dB + 40) / 40."""
        power = mel_power(samples, 321, 160, 120, self.SAMPLE_RATE).clamp(min=1e-10)
        decibels = 10 * (power / power.max()).log10()
        return (decibels.clamp(min=-80.0) + 40) / 40
