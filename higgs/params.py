"""The sections of params.yaml as strict dataclasses: a wrong key is an error naming the choices.

The file is read as YAML 1.2, exactly as DVC reads it: `1e-4` is a number and `no` is a word, never
a boolean.
"""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

T = TypeVar("T")


class ParamsError(ValueError):
    """params.yaml says something that no stage understands."""


def _require(holds: bool, name: str, wanted: str, value: Any) -> None:
    if not holds:
        raise ParamsError(f"{name}: expected {wanted}, got {value!r}")


def _require_choices(name: str, values: list[Any]) -> None:
    distinct = len(set(values)) == len(values)
    _require(bool(values) and distinct, name, "at least one entry and none twice", values)


def _require_count(name: str, value: int | None) -> None:
    _require(value is None or value >= 0, name, "null or 0 or more", value)


@dataclass(frozen=True)
class StageParams:
    """The scalars at the top of params.yaml, which every stage reads."""

    seed: int
    repeatable: bool
    checkpoint: str

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        Checkpoint.parse(self.checkpoint)


@dataclass(frozen=True)
class TokenizeParams(StageParams):
    """recordings -> codes, and what each further codebook adds."""

    recordings: str
    languages: list[str]
    max_clips: int | None
    pad_to_hop: bool
    codebook_counts: list[int]
    players: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choices("languages", self.languages)
        _require_choices("codebook_counts", self.codebook_counts)
        _require(
            min(self.codebook_counts) >= 1, "codebook_counts", "counts from 1", self.codebook_counts
        )
        _require(
            self.max_clips is None or self.max_clips >= 1,
            "max_clips",
            "null or 1 or more",
            self.max_clips,
        )
        _require(self.players >= 0, "players", "0 or more", self.players)


@dataclass(frozen=True)
class GenerateParams(StageParams):
    """scripts -> speech. The ranges of the sampling settings are SamplingConfig's to check.

    `set` is written in the section `evaluate`: what is spoken is what is judged.
    """

    set: str
    temperature: float
    top_k: int | None
    top_p: float
    ras_window: int | None
    ras_max_repeats: int
    max_new_tokens: int
    seeds: list[int]
    repeated_texts: int | None
    players: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choices("seeds", self.seeds)
        _require_count("repeated_texts", self.repeated_texts)
        _require(bool(self.set), "set", "the name of a set or a file", self.set)
        _require(self.max_new_tokens >= 1, "max_new_tokens", "1 or more", self.max_new_tokens)
        _require(self.players >= 0, "players", "0 or more", self.players)


@dataclass(frozen=True)
class EvaluateParams(StageParams):
    """speech -> how good it is, with the languages that the judge understands.

    Judges that are null, and what they would say, are left out. One take of each of `naturalness_texts` scripts has
    its naturalness predicted.
    """

    set: str
    judge: str | None
    speaker_encoder: str | None
    naturalness: str | None
    naturalness_texts: int | None
    languages: list[str]
    second_system: str | None
    jitter_clips: int | None
    jitter_copies: int
    bootstrap_resamples: int
    coverage_trials: int
    players: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choices("languages", self.languages)
        _require(
            self.bootstrap_resamples >= 1,
            "bootstrap_resamples",
            "1 or more",
            self.bootstrap_resamples,
        )
        _require_count("naturalness_texts", self.naturalness_texts)
        _require_count("jitter_clips", self.jitter_clips)
        _require(self.jitter_copies >= 1, "jitter_copies", "1 or more", self.jitter_copies)
        _require(self.coverage_trials >= 1, "coverage_trials", "1 or more", self.coverage_trials)
        _require(self.players >= 0, "players", "0 or more", self.players)


SECTIONS: dict[str, type[StageParams]] = {
    "tokenize": TokenizeParams,
    "generate": GenerateParams,
    "evaluate": EvaluateParams,
}
# Stage -> keys that it reads in the section of another one.
BORROWED = {"generate": {"set": "evaluate"}}
SCALARS = tuple(field.name for field in fields(StageParams))
WORKERS = "workers"  # changes no result, so it is the runner's alone

RELEASED_MODEL = "bosonai/higgs-audio-v2-generation-3B-base"
RELEASED_MODEL_REVISION = "10840182ca4ad5d9d9113b60b9bb3c1ef1ba3f84"
RELEASED_CODEC = "bosonai/higgs-audio-v2-tokenizer@9d4988fbd4ad07b4cac3a5fa462741a41810dbec"


@dataclass(frozen=True)
class Checkpoint:
    """What the one key `checkpoint` stands for: where model and codec are, and how they are run."""

    name: str
    model: str
    codec: str
    dtype: str
    device: str

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """`nano`, `organisation/name@revision`, or a folder (or s3://) with `model/` and `codec/`.

        A model from the hub goes with the released codec. Its revision is a full commit hash: a
        branch moves, and the same params.yaml would then mean something else. Anything else is a
        ParamsError.
        """
        if text == "nano":
            # float32 on the CPU: this is where its codes repeat bit by bit.
            return cls._from_folder(text, "data/checkpoints/nano", "float32", "cpu")
        if Path(text).is_dir():
            if lacking := [part for part in ("model", "codec") if not Path(text, part).is_dir()]:
                above = Path(text, "config.json").is_file()
                raise ParamsError(
                    f"checkpoint: {text!r} has no {'/ and no '.join(lacking)}/ in it"
                    f"{': name the folder above it' if above else ''}"
                )
            return cls._from_folder(text, text.rstrip("/"))
        if text.startswith("s3://"):
            return cls._from_folder(text, text.rstrip("/"))
        name, _, revision = text.partition("@")
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            raise ParamsError(
                f"checkpoint: {text!r} is neither 'nano', nor 'organisation/name@revision', "
                "nor a folder here"
            )
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            known = RELEASED_MODEL_REVISION if name == RELEASED_MODEL else "<40 hexadecimal digits>"
            raise ParamsError(
                f"checkpoint: {text!r} is no folder here, and as a hub id it must pin a full "
                f"commit: write {name}@{known}"
            )
        return cls(name=text, model=text, codec=RELEASED_CODEC, dtype="bfloat16", device="auto")

    @classmethod
    def _from_folder(
        cls, name: str, folder: str, dtype: str = "auto", device: str = "auto"
    ) -> "Checkpoint":
        return cls(name, f"{folder}/model", f"{folder}/codec", dtype, device)


def parse_yaml(text: str, what: str = "YAML") -> Any:
    """YAML 1.2 -> Python objects, with DVC's reader. Duplicate keys, broken syntax: ParamsError."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        # ruamel appends advice on how to switch the check off, which is not what is wanted here.
        message = str(error).split("To suppress this check")[0].strip()
        raise ParamsError(f"{what}: {message}") from error


def read_params(path: str | Path = "params.yaml") -> dict[str, Any]:
    """The whole file as it stands. Not a mapping at the top: ParamsError."""
    params = parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    if not isinstance(params, dict):
        raise ParamsError(f"{path}: expected a mapping at the top, got {type(params).__name__}")
    return params


def select(params: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The scalars and the section of one stage, as `{"seed": ..., ..., stage: {...}}`.

    With what the stage borrows from another section. Raises ParamsError for a stage without a
    section here, and for unknown or missing keys at the top.
    """
    if stage not in SECTIONS:
        raise ParamsError(f"unknown stage {stage!r}{_choices(stage, SECTIONS)}")
    known = (*SCALARS, WORKERS, *SECTIONS)
    check_keys(params, known, required=(*SCALARS, WORKERS, stage), what="params.yaml")
    values = {name: params[name] for name in (*SCALARS, stage)}
    for key, owner in BORROWED.get(stage, {}).items():
        section, other = values[stage], params.get(owner)
        if isinstance(section, Mapping) and key in section:
            raise ParamsError(f"{stage}.{key}: belongs into the section {owner}")
        if isinstance(section, Mapping) and isinstance(other, Mapping) and key in other:
            values[stage] = {**section, key: other[key]}
    return values


def worker_count(params: Mapping[str, Any]) -> int | None:
    """How many processes share a stage's work; None: one for each usable core."""
    count = params[WORKERS]
    if count is not None and (type(count) is not int or count < 1):
        raise ParamsError(f"{WORKERS}: expected null or 1 or more, got {count!r}")
    return count


def load_section(stage: str, path: str | Path = "params.yaml") -> StageParams:
    """One stage's parameters, checked."""
    values = select(read_params(path), stage)
    return from_section(SECTIONS[stage], values.pop(stage), **values)


def from_section(cls: type[T], section: Mapping[str, Any], **scalars: Any) -> T:
    """A dataclass from a section of params.yaml and the scalars beside it.

    Types are exact: a boolean is no int and a string is no number, but an int will do for a float.
    Raises ParamsError for unknown keys, missing keys and wrong types.
    """
    what = next((stage for stage, known in SECTIONS.items() if known is cls), cls.__name__)
    if not isinstance(section, Mapping):
        raise ParamsError(f"{what}: expected a mapping, got {_described(section)}")
    if twice := sorted(set(section) & set(scalars)):
        raise ParamsError(f"{what}: {', '.join(twice)} belongs beside the section, not into it")
    values = {**section, **scalars}
    required = [
        field.name for field in fields(cls) if field.default is field.default_factory is MISSING
    ]
    check_keys(values, [field.name for field in fields(cls)], required, what)
    hints = typing.get_type_hints(cls)
    places = {name: name if name in scalars else f"{what}.{name}" for name in values}
    return cls(**{name: _typed(value, hints[name], places[name]) for name, value in values.items()})


def check_keys(
    values: Iterable[Any], known: Iterable[str], required: Iterable[str], what: str
) -> None:
    """Raises ParamsError for unknown keys, naming the closest known one first, and missing ones."""
    known, values = list(known), list(values)
    unknown = [key for key in values if key not in known]
    missing = [key for key in required if key not in values]
    problems = [f"unknown key {key!r}{_choices(str(key), known)}" for key in unknown]
    problems += [f"missing key {key!r}" for key in missing]
    if problems:
        raise ParamsError(f"{what}: " + "; ".join(problems))


def _choices(word: str, known: Iterable[str]) -> str:
    ranked = sorted(known, key=lambda name: -difflib.SequenceMatcher(None, word, name).ratio())
    return f" (did you mean {ranked[0]!r}? choices: {', '.join(ranked)})"


def _typed(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotation wants it, or a ParamsError."""
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        (hint,) = (choice for choice in hint.__args__ if choice is not type(None))
        return _typed(value, hint, name)
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise ParamsError(f"{name}: expected a list, got {_described(value)}")
        (item,) = typing.get_args(hint)
        return [_typed(entry, item, f"{name}[{index}]") for index, entry in enumerate(value)]
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ParamsError(
            f"{name}: expected {hint.__name__}, got {_described(value)}{_advice(value, hint)}"
        )
    if hint is float and not math.isfinite(value):
        raise ParamsError(f"{name}: expected a finite number, got {value}")
    return value


def _described(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r}"


def _advice(value: Any, hint: type) -> str:
    if hint is bool and isinstance(value, str):
        return " (YAML 1.2 knows only true and false)"
    if hint in (int, float) and isinstance(value, str):
        return " (write the number without quotes)"
    return ""
