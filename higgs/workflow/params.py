"""The sections of params.yaml as strict records. Inherited fields are keys at the top of the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

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


SECTIONS = {"tokenize": TokenizeParams, "generate": GenerateParams, "evaluate": EvaluateParams}
SCALARS = tuple(SpeechParams.model_fields)
WORKERS = "workers"  # changes no result, so it is the runner's alone


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
    check_keys(params, (*SCALARS, WORKERS, *SECTIONS), required=(*names, WORKERS), what="params.yaml")
    return {name: params[name] for name in names}


def worker_count(params: Mapping[str, Any]) -> int | None:
    """Processes of a stage; None: one for each usable core."""
    return validate(Positive | None, params[WORKERS], WORKERS)


def from_section(cls: type[T], section: Mapping[str, Any], **scalars: Any) -> T:
    """A stage's parameters from its section and the scalars beside it. Raises ParamsError."""
    where = next(stage for stage, known in SECTIONS.items() if known is cls)
    section = validate(dict[str, Any], section, where)
    if misplaced := sorted(set(section) & set(SCALARS)):
        raise ParamsError(f"{where}: {', '.join(misplaced)} belongs beside the section, not into it")
    with explained(where, kind=cls, beside=SCALARS):
        return cls.model_validate(section | scalars)
