"""Long texts in chunks that are generated one after another: by speaker, paragraph, sentence and number of words.

Chunks end at sentence ends; a sentence that is too long is split after a clause, and only a long clause between words.
Numbers and abbreviations are never split, and no chunk is empty.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from higgs.data.text.abbreviations import NEVER_LAST, STARTERS, abbreviates
from higgs.validation import Count, Positive, Record

HAN = r"\u3400-\u9fff\uf900-\ufaff"
UNSPACED = r"\u3040-\u30ff\uff66-\uff9f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # kana, Thai, Lao, Burmese, Khmer
# A word: one Chinese character, 4 letters of another script without blanks, or up to 40 characters between blanks.
WORD = re.compile(
    rf"\s*(?:[{HAN}][^\w\s]*|(?:(?=\w)[{UNSPACED}][^\w\s]*){{1,4}}|(?:[^\s{HAN}{UNSPACED}]|(?!\w)[{UNSPACED}]){{1,40}})\s*"
)
BLANKS = re.compile(r"\s*")
CLOSING = "\"'”’」』)]）】》»"
CLOSED = re.escape(CLOSING)
OPENING = "\"'“‘「『([（【《«¿¡"
FULL_STOPS = "。！？；｡।॥۔؟։።។៕။"  # these end a sentence without a blank after them
SENTENCE_END = re.compile(rf"(?:\.(?:\s\.){{2,}}|[.!?…]+|[{FULL_STOPS}]+)[{CLOSED}]*")
# The full stop before a lower-case word ends a clause at least; marks inside a number ("12：30", "1998–2003") do not.
CLAUSE_END = re.compile(
    rf"(?:(?!(?<=\d)[，：—–]\d)[，、；：—–،؛]+|(?<![,;:])[,;:]++(?=[\s{HAN}{CLOSED}])|(?<![.!?…])[.!?…]++(?=[{CLOSED}]*+\s[a-z]))[{CLOSED}]*"
)
ITEM = re.compile(r"(?:^|(?<=\s))(?:[•⁃‣*-]\s?)?(?:(?P<number>[0-9]{1,3})|(?P<letter>[a-z]))(?:[.]?\)|[.])\s(?=[A-Z])")
SPEAKER_TAG = re.compile(r"\[SPEAKER(\d+)\]")
TAG_COLON = re.compile(rf"({SPEAKER_TAG.pattern})[ \t]*[:：]")
LIKE_A_TAG = re.compile(r"\[\s*speaker[\s_-]*(?:\d+|[a-z])?\s*\]|\[speaker\s*\d+", re.IGNORECASE)
LIKE_A_SPEAKER = re.compile(
    r"^[\s*_]*(?:\[S\d{1,2}\]|[<({]\s*(?:speaker|spk|s)[\s_-]*\d{1,2}\s*[>)}]|speaker[\s_-]*(?:\d{1,2}|[A-Z])\s*[:：])",
    re.IGNORECASE | re.MULTILINE,
)
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
    """Words as `max_words` counts them; each Chinese character is one, and 4 letters of Thai or kana."""
    return len(WORD.findall(text))


def sentences(text: str) -> list[str]:
    """-> segments that concatenate to the text, each up to the end of a sentence and the blanks after it.

    The items of a numbered list start segments, too. No segment but an item ends before a word in lower case, unless
    the whole text is in lower case.
    """
    accept = partial(_ends_sentence, cased=any(map(str.isupper, text)))
    items = (text[first:last] for first, last in pairwise([*_items(text), len(text)]))
    return [sentence for item in items for sentence in _split(item, SENTENCE_END, accept)]


def _items(text: str) -> list[int]:
    """0 and the offsets of the second, third, ... item of lists ("1. One 2. Two", "a) One b) Two")."""
    starts, expected = [0], None
    for match in ITEM.finditer(text):
        value = int(match["number"]) if match["number"] else ord(match["letter"])
        if value == expected:
            starts.append(match.start())
        elif text[max(0, match.start() - 2) : match.start()].strip()[-1:] not in ("", *".:!?"):
            continue
        expected = value + 1
    return starts


def _split(text: str, ends: re.Pattern, accept: Callable[[str, re.Match, str], bool]) -> list[str]:
    """Splits after the matches that `accept` accepts, given up to 40 characters before a match and after its blanks."""
    segments, start = [], 0
    for match in ends.finditer(text):
        before = text[max(start, match.start() - 40) : match.start()]
        follower = BLANKS.match(text, match.end()).end()
        if before.strip() and accept(before, match, text[follower : follower + 40]):
            segments.append(text[start:follower])
            start = follower
    return [*segments, text[start:]] if start < len(text) else segments


def _ends_sentence(before: str, match: re.Match, after: str, cased: bool) -> bool:
    mark = match[0].rstrip(CLOSING)
    spaced = match.string[match.end() : match.end() + 1].isspace() or not after
    next_word = re.match(r"[^\W\d_]*", after.lstrip(OPENING))[0]
    capital = next_word[:2] != next_word[:2].lower()  # "iPhone", too
    starter = next_word.lower() in STARTERS and (capital or not cased) and after[len(next_word) :][:1] != "."
    if mark[0] in FULL_STOPS:
        goes_on = mark[-1] in "！？" or match[0][-1] in ")）]】"  # “去？”他问
        return mark == match[0] or spaced or not after[:1].isalpha() or not goes_on
    if not spaced and not re.search(rf"[{HAN}{UNSPACED}]", before[-1:] + after[:1]):
        glued = re.search(r"(?<![/@_.])\b[\w,]*[a-z0-9]{2}$", before)
        return bool(glued) and capital and (starter or next_word.lower() in NEVER_LAST)
    if cased and not capital and next_word != next_word.upper():
        return False
    if mark != ".":
        ellipsis = set(mark) <= set(".… ") and mark.count(".") + 3 * mark.count("…") <= 3
        return not (before[-1] == "[" or (ellipsis and next_word == "I"))
    return not abbreviates(before, after, next_word, capital, starter)


_clauses = partial(_split, ends=CLAUSE_END, accept=lambda *_: True)


SPLITTERS = (sentences, _clauses, WORD.findall)


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
