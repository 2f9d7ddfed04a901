"""Conversations as JSON, in the form of the reference implementation (boson-ai/higgs-audio), strictly validated.

    {"messages": [
       {"role": "user", "content": [{"type": "text", "text": "Say this."}, {"type": "audio", "audio_url": "a.wav"}]},
       {"role": "assistant", "content": {"type": "audio", "audio_url": "b.wav"}, "recipient": "all"}],
     "start_index": 0, "speaker": "ada", "misc": {}}

Strings are plain text, unless a trusted file is read with `allow_special=True`, which applies to all texts but those
with `"allow_special": false`. Written files state `allow_special` for every text with "<", as all special tokens have.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo

from higgs.data.chatml import ROLES, AudioContent, ChatMLSample, Content, Message, TextContent
from higgs.files import read_lines, read_text, write_atomically
from higgs.validation import Count, Record, parse_json, validate


class _Text(Record):
    type: Literal["text"] = "text"
    text: str
    allow_special: bool | None = None


class _Audio(Record):
    type: Literal["audio"] = "audio"
    audio_url: str
    raw_audio: str | None = None
    offset: float | None = None
    duration: float | None = None
    row_id: int | None = None


def _string(text: str, info: ValidationInfo) -> str | TextContent:
    return TextContent(text, True) if info.context and "<" in text else text


def _text(content: _Text, info: ValidationInfo) -> TextContent:
    if content.allow_special and not info.context:
        raise ValueError("allow_special: special tokens are only read from trusted files, with allow_special=True")
    special = info.context and "<" in content.text
    return TextContent(content.text, special if content.allow_special is None else content.allow_special)


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        return f"<{value.get('type', 'audio' if 'audio_url' in value else 'text')}>"
    return f"<{type(value).__name__}>"


EXPECTED = "Input should be a string, or an object with text or audio_url"
BY_TAG = Discriminator(_tag, custom_error_type="content", custom_error_message=EXPECTED)
Part = (
    Annotated[str, AfterValidator(_string), Tag("<str>")]
    | Annotated[_Text, AfterValidator(_text), Tag("<text>")]
    | Annotated[_Audio, AfterValidator(lambda a: AudioContent(**a.model_dump(exclude={"type"}))), Tag("<audio>")]
)
Parts = Annotated[list[Annotated[Part, BY_TAG]], Tag("<list>")]


class _Message(Record):
    role: Literal[ROLES]
    content: Annotated[Part | Parts, BY_TAG]
    recipient: str | None = None


class _Sample(Record):
    messages: Annotated[list[Annotated[_Message, AfterValidator(lambda m: Message(**dict(m)))]], Field(min_length=1)]
    start_index: Count | None = None
    speaker: str | None = None
    misc: dict[str, Any] | None = None


def sample_from_json(value: Any, allow_special: bool = False, where: str = "conversation") -> ChatMLSample:
    """A JSON object -> the conversation. Raises ValueError with the path of the fault below `where`."""
    sample = validate(_Sample, value, where, context=allow_special)
    start, count = sample.start_index or 0, len(sample.messages)
    if start > count:
        raise ValueError(f"{where}.start_index: expected 0 ... {count}, got {start}")
    return ChatMLSample(sample.messages, start, sample.speaker, sample.misc)


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _content_to_json(part: Content) -> str | dict[str, Any]:
    if isinstance(part, AudioContent):
        return _without_none(type="audio", **vars(part))
    text = TextContent(part) if isinstance(part, str) else part
    if text.allow_special or "<" in text.text:
        return {"type": "text", **vars(text)}
    return part if isinstance(part, str) else {"type": "text", "text": text.text}


def sample_to_json(sample: ChatMLSample) -> dict[str, Any]:
    """-> what `sample_from_json` reads; conversations with special tokens need its `allow_special=True`."""
    messages = []
    for message in sample.messages:
        several = isinstance(message.content, list)
        content = list(map(_content_to_json, message.content)) if several else _content_to_json(message.content)
        messages.append(_without_none(role=message.role, content=content, recipient=message.recipient))
    start = sample.start_index or None
    return _without_none(messages=messages, start_index=start, speaker=sample.speaker, misc=sample.misc)


def json_lines(path: str | Path) -> list[tuple[str, str]]:
    """JSON Lines, or a `.json` of one record or of a list -> (place, JSON) of each record."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        return list(read_lines(path))
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, list):
        return [(str(path), json.dumps(content))]
    return [(f"{path}[{index}]", json.dumps(record)) for index, record in enumerate(content)]


def read_conversations(path: str | Path, allow_special: bool = False) -> list[ChatMLSample]:
    """-> the conversations in order (see `json_lines`). Raises ValueError naming file, line and path of the fault."""
    records = [(f"{where}: conversation", parse_json(line, where)) for where, line in json_lines(path)]
    return [sample_from_json(record, allow_special, where) for where, record in records]


def write_conversations(path: str | Path, samples: Sequence[ChatMLSample]) -> None:
    """One conversation per line; the file is written whole or not at all."""
    write_atomically(path, "".join(json.dumps(sample_to_json(s), ensure_ascii=False) + "\n" for s in samples))
