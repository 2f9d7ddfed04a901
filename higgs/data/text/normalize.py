"""Text as the model was trained to read it: the original's clean-up in its order, and sound events as tokens.

Figures stay figures, as in the original; `higgs.data.text.numbers` puts them into words, before this.
"""

import re
from dataclasses import replace

from higgs.data.chatml import ChatMLSample, Message, TextContent
from higgs.data.text.checks import check_text
from higgs.tokens import SPECIAL_TOKENS

PUNCTUATION = str.maketrans(
    {
        "，": ", ", "。": ".", "：": ":", "；": ";", "？": "?", "！": "!", "（": "(", "）": ")", "【": "[",
        "】": "]", "《": "<", "》": ">", "“": '"', "”": '"', "‘": "'", "’": "'", "、": ",", "—": "-",
        "…": "...", "·": ".", "「": '"', "」": '"', "『": '"', "』": '"',
    }
)  # fmt: skip
SPELT = {"(": " ", ")": " ", "°F": " degrees Fahrenheit", "°C": " degrees Celsius"}


def _event(kind: str, name: str) -> str:
    return f"{SPECIAL_TOKENS[kind]}[{name}]{SPECIAL_TOKENS[f'{kind}_close']}"


# What a text may ask for -> what the model reads.
SOUND_EVENTS = {
    "[laugh]": _event("sound_event", "Laughter"),
    "[humming start]": _event("sound_start", "Humming"),
    "[humming end]": _event("sound_stop", "Humming"),
    "[music start]": _event("sound_start", "Music"),
    "[music end]": _event("sound_stop", "Music"),
    "[music]": _event("sound_event", "Music"),
    "[sing start]": _event("sound_start", "Singing"),
    "[sing end]": _event("sound_stop", "Singing"),
    "[applause]": _event("sound_event", "Applause"),
    "[cheering]": _event("sound_event", "Cheering"),
    "[cough]": _event("sound_event", "Cough"),
}
# While a text is worked on, a sound event is one noncharacter, which `check_text` lets no text hold: so nothing that
# a user wrote can pass for one.
MARKS = {tag: chr(0xFDD0 + index) for index, tag in enumerate(SOUND_EVENTS)}
EVENT_OF = {mark: SOUND_EVENTS[tag] for tag, mark in MARKS.items()}
ENDS = (*".!?,;\"'", SPECIAL_TOKENS["sound_event_close"], SPECIAL_TOKENS["sound_stop_close"])


def normalize_text(text: str) -> str:
    """-> what the original's example script makes of a transcript, as one string.

    Punctuation of Chinese becomes ASCII, brackets blanks, degrees words, the tags of SOUND_EVENTS the strings of their
    tokens; blank lines go, white space is collapsed, and a full stop closes what nothing else does.
    Raises ValueError for text that cannot be spoken, and where nothing is left of it.
    """
    return "".join(content.text for content in normalize_contents(text))


def normalize_contents(text: str) -> list[TextContent]:
    """As `normalize_text`, as the parts of a message: sound events are tokens, whatever else looks like one is text."""
    pieces = re.split(f"([{''.join(EVENT_OF)}])", _clean(text))
    return [
        TextContent(EVENT_OF[piece], allow_special=True) if piece in EVENT_OF else TextContent(piece)
        for piece in pieces
        if piece
    ]


def normalize_prompt(sample: ChatMLSample) -> ChatMLSample:
    """A conversation whose last message, the text to speak, is normalised."""
    *context, last = sample.messages
    parts = [
        normal
        for part in last.parts
        for normal in (normalize_contents(part.text) if isinstance(part, TextContent) else [part])
    ]
    return replace(sample, messages=[*context, Message(last.role, parts)])


def _clean(text: str) -> str:
    cleaned = check_text(text).strip().translate(PUNCTUATION)
    for table in (SPELT, MARKS):
        for written, meant in table.items():
            cleaned = cleaned.replace(written, meant)
    lines = (" ".join(line.split()) for line in cleaned.split("\n"))
    cleaned = "\n".join(line for line in lines if line)
    if not cleaned:
        raise ValueError(f"nothing is left to speak of {text!r}")
    last = EVENT_OF.get(cleaned[-1], cleaned)
    return cleaned if last.endswith(ENDS) else f"{cleaned}."
