"""Long texts in chunks that are generated one after another: by speaker, paragraph, sentence and number of words.

Chunks end at sentence ends; a sentence that is too long is split after a clause, and only a long clause between words.
Numbers and abbreviations are never split, and no chunk is empty.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from higgs.validation import Count, Positive, Record

HAN = r"\u3400-\u9fff\uf900-\ufaff"
# A word: one Chinese character, or up to 40 characters between blanks.
WORD = re.compile(rf"\s*(?:[{HAN}][^\w\s]*|[^\s{HAN}]{{1,40}})\s*")
BLANKS = re.compile(r"\s*")
CLOSING = "\"'”’」』)]）】》"
SENTENCE_END = re.compile(rf"(?:[.!?…]+|[。！？；]+)[{re.escape(CLOSING)}]*")
CLAUSE_END = re.compile(rf"(?:[，、；：—–]+|[,;:]+(?=[\s{HAN}{re.escape(CLOSING)}]))[{re.escape(CLOSING)}]*")
# Abbreviations whose full stop ends no sentence; the second set only before a digit.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st mt gen col sgt capt lt rev hon vs cf approx dept gov sen rep e.g i.e".split()
)
BEFORE_DIGITS = frozenset("no nos fig vol p pp ch sec jan feb mar apr jun jul aug sep sept oct nov dec".split())
SPEAKER_TAG = re.compile(r"\[SPEAKER(\d+)\]")
LIKE_A_TAG = re.compile(r"\[\s*speaker[\s_-]*(?:\d+|[a-z])?\s*\]|\[speaker\s*\d+", re.IGNORECASE)


Seconds = Annotated[float, Field(ge=0)]


class ChunkOptions(Record):
    """Options of long-form generation."""

    max_words: Positive = 100  # of a chunk
    max_turns: Positive = 1  # of a dialogue in a chunk
    context_chunks: Count | None = 2  # earlier chunks in the prompt, after the reference; None: all
    per_speaker_context: bool = False  # only chunks of the same speaker
    sentence_pause: Seconds = 0.0  # silence between chunks, by their boundary
    paragraph_pause: Seconds = 0.5
    speaker_pause: Seconds = 0.2
    match_levels: bool = True  # the loudness of the chunks of one speaker
    retries: Count = 2  # with another seed, of a chunk without audio or cut off at its limit

    @model_validator(mode="after")
    def _one_turn(self) -> "ChunkOptions":
        if self.per_speaker_context and self.max_turns > 1:
            raise ValueError(f"max_turns must be 1 with per_speaker_context, got {self.max_turns}")
        return self

    def pause(self, boundary: str) -> float:
        return 0.0 if boundary == "start" else getattr(self, f"{boundary}_pause")


@dataclass(frozen=True)
class Chunk:
    text: str  # with its speaker tags
    speakers: tuple[int, ...] = ()
    boundary: str = "start"  # what precedes it: "start" (of the text), "speaker", "paragraph" or "sentence"


def count_words(text: str) -> int:
    """Words as `max_words` counts them; each Chinese character is one."""
    return len(WORD.findall(text))


def sentences(text: str) -> list[str]:
    """-> segments that concatenate to the text, each with the blanks after its sentence."""
    return _split(text, SENTENCE_END, _ends_sentence)


def _split(text: str, ends: re.Pattern, accept: Callable[[str, re.Match, str], bool]) -> list[str]:
    """Splits after the matches that `accept` accepts, given the text before and the character after a match."""
    segments, start = [], 0
    for match in ends.finditer(text):
        before, follower = text[start : match.start()], BLANKS.match(text, match.end())
        if before.strip() and accept(before, match, text[follower.end() :][:1]):
            segments.append(text[start : follower.end()])
            start = follower.end()
    return [*segments, text[start:]] if start < len(text) else segments


def _ends_sentence(before: str, match: re.Match, follower: str) -> bool:
    spaced = match.string[match.end() : match.end() + 1].isspace() or not follower
    if match[0][0] in "。！？；":
        return True
    if not spaced and not re.search(rf"[{HAN}]", before[-1:] + follower):
        return False
    if match[0].rstrip(CLOSING) != ".":
        return True
    word = re.search(r"[\w.]*$", before)[0].lower()
    if word in ("a.m", "p.m"):
        return follower.isupper()
    if word in BEFORE_DIGITS and follower.isdigit():
        return False
    initials = re.fullmatch(r"(?:[^\W\d]\.)*[a-z]", word)
    listed = word.isdigit() and before.strip() == word  # "1. First"
    return not (word in ABBREVIATIONS or initials or listed)


SPLITTERS = (sentences, lambda text: _split(text, CLAUSE_END, lambda *_: True), WORD.findall)


def _fit(text: str, max_words: int, splitters: tuple = SPLITTERS) -> list[str]:
    """-> segments of at most `max_words` that concatenate to the text, split as coarsely as possible."""
    split, *finer = splitters
    packed, free = [], 0
    for segment in split(text):
        words = count_words(segment)
        if words > max_words:
            packed += _fit(segment, max_words, tuple(finer))
            free = 0
        elif words <= free:
            packed[-1] += segment
            free -= words
        else:
            packed.append(segment)
            free = max_words - words
    return packed


def chunk_text(text: str, max_words: int = 100) -> list[Chunk]:
    """-> chunks of at most `max_words`, white space collapsed; none spans two paragraphs (split at blank lines).

    What has no letter and no digit ("* * *", emoji) becomes a pause.
    """
    chunks: list[Chunk] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        boundary = "paragraph" if chunks else "start"
        for segment in _fit(" ".join(paragraph.split()), max_words):
            if any(map(str.isalnum, segment)):
                chunks.append(Chunk(segment.strip(), boundary=boundary))
                boundary = "sentence"
            elif chunks:
                boundary = "paragraph"
    return chunks


def speaker_turns(text: str) -> list[tuple[int, str]]:
    """ "[SPEAKER0] Hi. [SPEAKER1] Yes?" -> [(0, "Hi."), (1, "Yes?")], without empty turns; [] for text without tags.

    Raises ValueError for malformed tags, for text before the first tag, and where no turn has words.
    """
    parts = SPEAKER_TAG.split(text)
    if unknown := next((tag[0] for part in parts[::2] for tag in LIKE_A_TAG.finditer(part)), None):
        raise ValueError(f"unknown speaker tag {unknown!r}; tags are [SPEAKER0], [SPEAKER1], ...")
    if len(parts) == 1:
        return []
    if parts[0].strip():
        raise ValueError(f"{parts[0].strip()[:40]!r} comes before the first speaker tag")
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    turns = [(int(number), words.strip()) for number, words in pairs if words.strip()]
    if not turns:
        raise ValueError(f"there is no text to speak after the speaker tags of {text[:40]!r}")
    return turns


def chunk_turns(turns: Iterable[tuple[int, str]], options: ChunkOptions) -> list[Chunk]:
    """Turns (speaker, text) -> chunks of up to `max_turns` turns within `max_words`; others as in `chunk_text`."""
    chunks: list[Chunk] = []
    merged = 0
    for number, turn in turns:
        for index, part in enumerate(chunk_text(turn, options.max_words)):
            text = f"[SPEAKER{number}] {part.text}"
            last = chunks[-1] if chunks else None
            fits = last and count_words(SPEAKER_TAG.sub("", f"{last.text} {text}")) <= options.max_words
            if fits and index == 0 and merged < options.max_turns:
                chunks[-1] = Chunk(f"{last.text}\n{text}", (*last.speakers, number), last.boundary)
                merged += 1
                continue
            boundary = part.boundary if index else "speaker" if last else "start"
            if index == 0 and last and last.speakers[-1] == number:
                boundary = "paragraph"
            chunks.append(Chunk(text, (number,), boundary))
            merged = 1
    return chunks
