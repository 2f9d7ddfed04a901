"""The sections of params.yaml as strict records. Inherited fields are keys at the top of the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, model_validator

from higgs.checkpoint.alias import Checkpoint
from higgs.files import read_text
from higgs.validation import Count, ParamsError, Positive, Record, check_keys, choices, explained, parse_yaml, validate

T = TypeVar("T")


def _distinct(values: list[T]) -> list[T]:
    if len(set(values)) < len(values):
        raise ValueError(f"expected no duplicates, got {values!r}")
    return values


Choices = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]


class StageParams(Record):
    """The scalars that every stage reads."""

    seed: Count
    repeatable: bool
    checkpoint: Annotated[str, AfterValidator(lambda text: Checkpoint.parse(text).name)]


class SpeechParams(StageParams):
    """The scripts that are generated and evaluated: the name of a set, or a file."""

    set: Annotated[str, Field(min_length=1)]


class TokenizeParams(StageParams):
    """recordings -> codes, and what each further codebook adds."""

    recordings: str
    languages: Choices[str]
    max_clips: Positive | None
    skip: Annotated[list[str], AfterValidator(_distinct)]
    pad_to_hop: bool
    codebook_counts: Choices[Positive]
    players: Count


class GenerateParams(SpeechParams):
    """scripts -> speech. Sampling settings that are null are the checkpoint's; SamplingConfig checks their ranges."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    ras_window: int | None
    ras_max_repeats: int | None
    strict_eos: bool | None
    max_new_tokens: Positive
    seeds: Choices[int]
    repeated_texts: Count | None
    players: Count


class EvaluateParams(SpeechParams):
    """speech -> metrics, in the judge's languages. Judges that are null are left out, with their metrics."""

    judge: str | None
    speaker_encoder: str | None
    naturalness: str | None
    naturalness_texts: Count | None  # scripts, one sample of each
    languages: Choices[str]
    second_system: str | None
    jitter_clips: Count | None
    jitter_copies: Positive
    bootstrap_resamples: Positive
    coverage_trials: Positive
    players: Count


class Placement(Record):
    """Where the parts of a stage are made and lie. It changes no result, so it is the runner's alone."""

    workers: Positive | None
    cluster: Annotated[str, Field(pattern=r"^(local|auto|[A-Za-z0-9.-]+:[0-9]{1,5})$")] | None = None
    work: Annotated[str, Field(pattern=r"^s3://[^/\s]+(/\S*)?$")] | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[A-Za-z][A-Za-z0-9-]*)?)$")] | None = None

    @model_validator(mode="after")
    def _reachable(self) -> "Placement":
        if self.cluster not in (None, "local") and self.work is None:
            raise ValueError(f"cluster: {self.cluster} needs work: s3://BUCKET/PREFIX, which all its machines reach")
        return self


SECTIONS = {"tokenize": TokenizeParams, "generate": GenerateParams, "evaluate": EvaluateParams}
SCALARS = tuple(SpeechParams.model_fields)
PLACES = tuple(Placement.model_fields)
WORKERS = PLACES[0]


def scalars_of(stage: str) -> list[str]:
    """The keys at the top of params.yaml that a stage reads. Unknown stage: ParamsError."""
    if stage not in SECTIONS:
        raise ParamsError(f"unknown stage {stage!r}{choices(stage, SECTIONS)}")
    return [name for name in SCALARS if name in SECTIONS[stage].model_fields]


def read_params(path: str | Path = "params.yaml") -> dict[str, Any]:
    """The whole file. ParamsError unless it is a mapping; the values are not checked."""
    return validate(dict[str, Any], parse_yaml(read_text(path), str(path)), str(path))


def select(params: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """`{"seed": ..., ..., stage: {...}}` of one stage. ParamsError for its name and for keys at the top."""
    names = [*scalars_of(stage), stage]
    check_keys(params, (*SCALARS, *PLACES, *SECTIONS), required=(*names, WORKERS), what="params.yaml")
    return {name: params[name] for name in names}


def placement(params: Mapping[str, Any]) -> Placement:
    return validate(Placement, {name: params[name] for name in PLACES if name in params}, "")


def from_section(cls: type[T], section: Mapping[str, Any], **scalars: Any) -> T:
    """A stage's parameters from its section and the scalars beside it. Raises ParamsError."""
    where = next(stage for stage, known in SECTIONS.items() if known is cls)
    section = validate(dict[str, Any], section, where)
    if misplaced := sorted(set(section) & set(SCALARS)):
        raise ParamsError(f"{where}: {', '.join(misplaced)} belongs beside the section, not into it")
    with explained(where, kind=cls, beside=SCALARS):
        return cls.model_validate(section | scalars)
