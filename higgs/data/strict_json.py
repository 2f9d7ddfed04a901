"""JSON as people write it, read strictly: syntax, keys and types, each error with its place and the choices."""

import json
from typing import Any

NAMES = {
    list: "a list", dict: "an object", str: "a string", int: "an integer", float: "a number", bool: "true or false",
}  # fmt: skip


def parse_json(text: str, where: str) -> Any:
    """Strict JSON: a key that stands twice, NaN and broken syntax are a ValueError that names `where`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(keys := dict(pairs)) < len(pairs):
            names = [key for key, _ in pairs]
            raise ValueError(f"{where}: {max(names, key=names.count)!r} stands twice")
        return keys

    def number(word: str) -> None:
        raise ValueError(f"{where}: {word} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=number)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error


def fields_of(value: Any, keys: dict[str, tuple[type, bool]], where: str) -> dict[str, Any]:
    """A JSON object -> its fields without nulls. Raises ValueError naming the place, what is wrong and the choices."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__} {value!r:.60}")
    if unknown := sorted(set(value) - set(keys)):
        raise ValueError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; keys are {', '.join(keys)}"
        )
    if missing := [k for k, (_, optional) in keys.items() if not optional and value.get(k) is None]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    given = {key: entry for key, entry in value.items() if entry is not None}
    for key, entry in given.items():
        kind = keys[key][0]
        fits = isinstance(entry, int | float if kind is float else kind)
        if not fits or (isinstance(entry, bool) and kind not in (bool, object)):
            raise ValueError(
                f"{where}.{key}: expected {NAMES[kind]}, got {type(entry).__name__} {entry!r:.60}"
            )
    return given
