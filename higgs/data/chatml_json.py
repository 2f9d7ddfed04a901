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
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo

from higgs.data.chatml import ROLES, AudioContent, ChatMLSample, Content, Message, TextContent
from higgs.files import read_lines, read_text, replacing
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
    return TextContent(text, True) if info.context and _ambiguous(text) else text


def _text(given: _Text, info: ValidationInfo) -> TextContent:
    if given.allow_special and not info.context:
        raise ValueError(
            "allow_special: a file cannot make its own text into special tokens; whoever trusts it reads it with "
            "allow_special=True"
        )
    special = info.context and _ambiguous(given.text)
    return TextContent(given.text, special if given.allow_special is None else given.allow_special)


def _choice(value: Any) -> str:
    """Which of the tags below a content has."""
    if isinstance(value, dict):
        return f"<{value.get('type', 'audio' if 'audio_url' in value else 'text')}>"
    return f"<{type(value).__name__}>"


CHOICE = Discriminator(
    _choice,
    custom_error_type="content",
    custom_error_message="Input should be a string, or an object with text or audio_url",
)
Part = (
    Annotated[str, AfterValidator(_string), Tag("<str>")]
    | Annotated[_Text, AfterValidator(_text), Tag("<text>")]
    | Annotated[
        _Audio,
        AfterValidator(lambda a: AudioContent(**a.model_dump(exclude={"type"}))),
        Tag("<audio>"),
    ]
)
Parts = Annotated[list[Annotated[Part, CHOICE]], Tag("<list>")]


class _Message(Record):
    role: Literal[ROLES]
    content: Annotated[Part | Parts, CHOICE]
    recipient: str | None = None


class _Sample(Record):
    messages: Annotated[list[Annotated[_Message, AfterValidator(lambda m: Message(**dict(m)))]], Field(min_length=1)]
    start_index: Count | None = None
    speaker: str | None = None
    misc: dict[str, Any] | None = None


def sample_from_json(value: Any, allow_special: bool = False, where: str = "conversation") -> ChatMLSample:
    """A JSON object -> the conversation.

    `allow_special` reads `<|...|>` strings in its texts as the tokens that they name. Raises ValueError, which starts
    with `where` and the place in it, for unknown or missing keys, wrong types and values that no conversation has.
    """
    given = validate(_Sample, value, where, context=allow_special)
    start, count = given.start_index or 0, len(given.messages)
    if start > count:
        raise ValueError(f"{where}.start_index: expected 0 ... {count}, got {start}")
    return ChatMLSample(given.messages, start, given.speaker, given.misc)


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
        found = [(f"{path}[{i}]", v) for i, v in enumerate(whole)] if several else [(f"{path}", whole)]
    return [sample_from_json(value, allow_special, f"{where}: conversation") for where, value in found]


def write_conversations(path: str | Path, samples: Sequence[ChatMLSample]) -> None:
    """One conversation in each line; the file is written whole or not at all."""
    rows = [json.dumps(sample_to_json(sample), ensure_ascii=False) for sample in samples]
    with replacing(path) as partial:
        partial.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
