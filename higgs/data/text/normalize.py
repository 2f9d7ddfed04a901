"""Text normalisation of the reference implementation (boson-ai/higgs-audio), in its order; digits are left alone."""

import re
from dataclasses import replace

from higgs.data.chatml import ChatMLSample, Message, TextContent
from higgs.data.text.folding import check_text
from higgs.tokens import SPECIAL_TOKENS

PUNCTUATION = str.maketrans(
    {
        "，": ", ", "。": ".", "：": ":", "；": ";", "？": "?", "！": "!", "（": "(", "）": ")", "【": "[",
        "】": "]", "《": "<", "》": ">", "“": '"', "”": '"', "‘": "'", "’": "'", "、": ",", "—": "-",
        "…": "...", "·": ".", "「": '"', "」": '"', "『": '"', "』": '"',
    }
)  # fmt: skip
REPLACED = {"(": " ", ")": " ", "°F": " degrees Fahrenheit", "°C": " degrees Celsius"}


def _event(kind: str, name: str) -> str:
    return f"{SPECIAL_TOKENS[kind]}[{name}]{SPECIAL_TOKENS[f'{kind}_close']}"


# Tag in a text -> tokens of the model.
SOUND_EVENTS = {
    "[laugh]": _event("sound_event", "Laughter"), "[humming start]": _event("sound_start", "Humming"),
    "[humming end]": _event("sound_stop", "Humming"), "[music start]": _event("sound_start", "Music"),
    "[music end]": _event("sound_stop", "Music"), "[music]": _event("sound_event", "Music"),
    "[sing start]": _event("sound_start", "Singing"), "[sing end]": _event("sound_stop", "Singing"),
    "[applause]": _event("sound_event", "Applause"), "[cheering]": _event("sound_event", "Cheering"),
    "[cough]": _event("sound_event", "Cough"),
}  # fmt: skip
# During normalisation a sound event is one noncharacter, which `check_text` rejects in texts: no user text can be taken
# for one.
MARKS = {tag: chr(0xFDD0 + index) for index, tag in enumerate(SOUND_EVENTS)}
EVENT_OF = {mark: SOUND_EVENTS[tag] for tag, mark in MARKS.items()}
ENDS = (*".!?,;\"'", SPECIAL_TOKENS["sound_event_close"], SPECIAL_TOKENS["sound_stop_close"])


def normalize_contents(text: str) -> list[TextContent]:
    """As the reference's example script normalises; only sound events are special. ValueError if nothing is left."""
    segments = filter(None, re.split(f"([{''.join(EVENT_OF)}])", _clean(text)))
    return [TextContent(EVENT_OF.get(segment, segment), segment in EVENT_OF) for segment in segments]


def normalize_prompt(sample: ChatMLSample) -> ChatMLSample:
    """The conversation with its last message, the text to speak, normalised."""
    *context, last = sample.messages
    normal = [normalize_contents(part.text) if isinstance(part, TextContent) else [part] for part in last.parts]
    parts = [part for several in normal for part in several]
    return replace(sample, messages=[*context, Message(last.role, parts)])


def _clean(text: str) -> str:
    cleaned = check_text(text).strip().translate(PUNCTUATION)
    for table in (REPLACED, MARKS):
        for old, new in table.items():
            cleaned = cleaned.replace(old, new)
    lines = (" ".join(line.split()) for line in cleaned.split("\n"))
    cleaned = "\n".join(line for line in lines if line)
    if not cleaned:
        raise ValueError(f"nothing is left to speak of {text!r}")
    last = EVENT_OF.get(cleaned[-1], cleaned)
    return cleaned if last.endswith(ENDS) else f"{cleaned}."
