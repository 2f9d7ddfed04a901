"""Conversations as JSON, in the original's form: strict, with errors that name the place and the choices.

    {"messages": [
       {"role": "user", "content": [{"type": "text", "text": "Say this."}, {"type": "audio", "audio_url": "a.wav"}]},
       {"role": "assistant", "content": {"type": "audio", "audio_url": "b.wav"}, "recipient": "all"}],
     "start_index": 0, "speaker": "ada", "misc": {}}

The original read every string for special tokens. Here strings are text: whoever trusts a file says so with
`allow_special=True`, and its texts are then read as in the original, except those that say `"allow_special": false`.
What is written here says of every text that could be read both ways which it is.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from higgs.data.chatml import ROLES, AudioContent, ChatMLSample, Content, Message, TextContent
from higgs.data.strict_json import fields_of, parse_json
from higgs.files import read_lines, read_text, replacing

# Key -> (type, whether it may be absent or null).
SAMPLE = {
    "messages": (list, False), "start_index": (int, True), "speaker": (str, True), "misc": (dict, True),
}  # fmt: skip
MESSAGE = {"role": (str, False), "content": (object, False), "recipient": (str, True)}
TEXT = {"type": (str, True), "text": (str, False), "allow_special": (bool, True)}
AUDIO = {
    "type": (str, True), "audio_url": (str, False), "raw_audio": (str, True), "offset": (float, True),
    "duration": (float, True), "row_id": (int, True),
}  # fmt: skip


def sample_from_json(
    value: Any, allow_special: bool = False, where: str = "conversation"
) -> ChatMLSample:
    """A JSON object -> the conversation.

    `allow_special` reads `<|...|>` strings in its texts as the tokens that they name. Raises ValueError, which starts
    with `where` and the place in it, for unknown or missing keys, wrong types and values that no conversation has.
    """
    given = fields_of(value, SAMPLE, where)
    messages = given.pop("messages")
    if not messages:
        raise ValueError(f"{where}.messages: a conversation has at least one message")
    start = given.get("start_index", 0)
    if not 0 <= start <= len(messages):
        raise ValueError(f"{where}.start_index: expected 0 ... {len(messages)}, got {start}")
    places = (f"{where}.messages[{index}]" for index in range(len(messages)))
    read = [
        _message(entry, allow_special, place) for entry, place in zip(messages, places, strict=True)
    ]
    return ChatMLSample(read, **given)


def _message(value: Any, allow_special: bool, where: str) -> Message:
    given = fields_of(value, MESSAGE, where)
    if given["role"] not in ROLES:
        raise ValueError(f"{where}.role: expected one of {', '.join(ROLES)}, got {given['role']!r}")
    content, place = given["content"], f"{where}.content"
    if isinstance(content, list):
        parts = [_content(part, allow_special, f"{place}[{i}]") for i, part in enumerate(content)]
    else:
        parts = _content(content, allow_special, place)
    try:
        return Message(given["role"], parts, given.get("recipient"))
    except ValueError as error:
        raise ValueError(f"{where}.recipient: {error}") from error


def _content(value: Any, allow_special: bool, where: str) -> Content:
    if isinstance(value, str):
        return TextContent(value, True) if allow_special and _ambiguous(value) else value
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: expected a string, or an object with text or audio_url, got {type(value).__name__} {value!r:.60}"
        )
    kind = value.get("type", "audio" if "audio_url" in value else "text")
    if kind not in ("text", "audio"):
        raise ValueError(f"{where}.type: expected text or audio, got {kind!r}")
    given = fields_of(value, TEXT if kind == "text" else AUDIO, where)
    given.pop("type", None)
    if kind == "text":
        if given.get("allow_special") and not allow_special:
            raise ValueError(
                f"{where}.allow_special: a file cannot make its own text into special tokens; whoever trusts it reads "
                "it with allow_special=True"
            )
        special = allow_special and _ambiguous(given["text"])
        return TextContent(given["text"], given.get("allow_special", special))
    try:
        return AudioContent(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _ambiguous(text: str) -> bool:
    """Whether a text can hold the string of a special token: all of them have one."""
    return "<" in text


def sample_to_json(sample: ChatMLSample) -> dict[str, Any]:
    """-> what `sample_from_json` reads again; conversations with special tokens need its `allow_special=True`."""

    def content(part: Content) -> str | dict[str, Any]:
        if isinstance(part, AudioContent):
            given = {key: value for key, value in vars(part).items() if value is not None}
            return {"type": "audio", **given}
        text = TextContent(part) if isinstance(part, str) else part
        if text.allow_special or _ambiguous(text.text):
            return {"type": "text", "text": text.text, "allow_special": text.allow_special}
        return part if isinstance(part, str) else {"type": "text", "text": text.text}

    def message(entry: Message) -> dict[str, Any]:
        several = isinstance(entry.content, list)
        said = [content(part) for part in entry.content] if several else content(entry.content)
        row = {"role": entry.role, "content": said}
        return row | ({} if entry.recipient is None else {"recipient": entry.recipient})

    row = {"messages": [message(entry) for entry in sample.messages]}
    rest = {
        "start_index": sample.start_index or None,
        "speaker": sample.speaker,
        "misc": sample.misc,
    }
    return row | {key: value for key, value in rest.items() if value is not None}


def read_conversations(path: str | Path, allow_special: bool = False) -> list[ChatMLSample]:
    """A `.jsonl` of conversations, or a `.json` of one or of a list -> the conversations in order.

    Raises ValueError naming file, line and place of what is wrong.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        found = [(where, parse_json(line, where)) for where, line in read_lines(path)]
    else:
        whole = parse_json(read_text(path), str(path))
        several = isinstance(whole, list)
        found = (
            [(f"{path}[{i}]", v) for i, v in enumerate(whole)] if several else [(f"{path}", whole)]
        )
    return [
        sample_from_json(value, allow_special, f"{where}: conversation") for where, value in found
    ]


def write_conversations(path: str | Path, samples: Sequence[ChatMLSample]) -> None:
    """One conversation in each line; the file is written whole or not at all."""
    rows = [json.dumps(sample_to_json(sample), ensure_ascii=False) for sample in samples]
    with replacing(path) as partial:
        partial.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
