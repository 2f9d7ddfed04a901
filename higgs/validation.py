"""Strict records for YAML and JSON input: every fault is reported with its place, on top of pydantic.

Types are exact, but an int may be a float. Unknown keys, NaN and duplicate keys are errors. YAML is 1.2, as in DVC.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class ParamsError(ValueError):
    """Invalid input. The message has the place and the value of each fault."""


class Record(BaseModel):
    """Fields with exact types. Raises pydantic's ValidationError, a ValueError; see `validate`."""

    model_config = STRICT | ConfigDict(frozen=True)


def validate(kind: type[T], value: Any, where: str, error: type[ValueError] = ParamsError, context: Any = None) -> T:
    """`value` as a Record, or as another type. Raises `error` with all faults and their places in `where`."""
    adapter = TypeAdapter(kind, config=None if _records(kind) == [kind] else STRICT)
    with explained(where, error, kind):
        return adapter.validate_python(value, context=context)


@contextmanager
def explained(
    where: str, error: type[ValueError] = ParamsError, kind: Any = None, beside: Collection = ()
) -> Iterator[None]:
    """Turns a ValidationError of its block into `error`. Keys named in `beside` are reported without `where`."""
    try:
        yield
    except RecursionError:
        raise error(f"{where}: nested too deeply") from None
    except ValidationError as caught:
        faults = [_fault(f, "" if {*f["loc"][:1]} & {*beside} else where, kind) for f in caught.errors()]
        raise error("; ".join(fault.removeprefix(": ") for fault in faults)) from None


def _fault(fault: dict[str, Any], where: str, kind: Any) -> str:
    # pydantic's "[key]" and the names in <> of unions (`higgs/data/chatml_json.py`) are no part of the place.
    path = [p for p in fault["loc"] if p != "[key]" and not str(p).startswith("<")]
    *above, last = path or [""]
    if fault["type"] == "missing":
        return f"{_place(where, above)}: missing key {last!r}"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{_place(where, above)}: unknown key {last!r}{choices(str(last), _keys(kind, above))}"
    if fault["type"] == "value_error":
        return f"{_place(where, path)}: {fault['ctx']['error']}"
    message = re.sub(r" or instance of \w+", "", fault["msg"].replace("Input should be", "must be"))
    return f"{_place(where, path)}: {message}, got {fault['input']!r:.60}"


def _place(where: str, path: Iterable[Any]) -> str:
    for part in path:
        where += f"[{part}]" if isinstance(part, int) else f"{'.' if where else ''}{part}"
    return where


def _records(hint: Any) -> list[type[Record]]:
    if isinstance(hint, type) and issubclass(hint, Record):
        return [hint]
    return [record for part in get_args(hint) for record in _records(part)]


def _keys(kind: Any, path: Iterable[Any]) -> list[str]:
    """The keys of the records at `path` in `kind`."""
    records = _records(kind)
    for key in (part for part in path if isinstance(part, str)):
        fields = [record.model_fields[key] for record in records if key in record.model_fields]
        records = [record for field in fields for record in _records(field.annotation)]
    return list(dict.fromkeys(key for record in records for key in record.model_fields))


def check_keys(values: Collection[Any], known: Iterable[str], required: Iterable[str], what: str) -> None:
    """Raises ParamsError for unknown keys, with the known ones, and for missing ones."""
    known = list(known)
    faults = [f"unknown key {k!r}{choices(str(k), known)}" for k in values if k not in known]
    faults += [f"missing key {key!r}" for key in required if key not in values]
    if faults:
        raise ParamsError(f"{what}: " + "; ".join(faults))


def choices(word: str, known: Iterable[str]) -> str:
    """Advice for an error message: the known words, that which is most like `word` first."""
    ranked = sorted(known, key=lambda name: -difflib.SequenceMatcher(None, word, name).ratio())
    return f" (did you mean {ranked[0]!r}? choices: {', '.join(ranked)})" if ranked else ""


def parse_yaml(text: str, where: str = "YAML") -> Any:
    """YAML 1.2 -> Python objects, with DVC's reader. Duplicate keys, broken syntax, wrong values: ParamsError."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # ruamel's, too
        message = str(error).split("To suppress this check")[0].strip()  # ruamel's advice
        raise ParamsError(f"{where}: {message}") from error


def parse_json(text: str, where: str) -> Any:
    """JSON -> Python objects. Duplicate keys, NaN, broken syntax: ParamsError that names `where`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(keys := dict(pairs)) < len(pairs):
            names = [key for key, _ in pairs]
            raise ParamsError(f"{where}: duplicate key {max(names, key=names.count)!r}")
        return keys

    def refuse(word: str) -> None:
        raise ParamsError(f"{where}: {word} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except ParamsError:
        raise
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits, and of deep nesting
        raise ParamsError(f"{where}: not JSON: {error}") from error


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested mappings -> "outer.inner": text of the value."""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found
