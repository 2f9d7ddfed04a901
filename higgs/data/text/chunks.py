"""Long texts in chunks that are spoken one after another: by speaker, by paragraph, by sentence, by number of words.

A chunk ends where a sentence ends, as long as one fits; a sentence that is too long is cut behind a clause, and only
one without any between two words. Nothing is cut inside a number or an abbreviation, and no chunk is empty.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from higgs.validation import Count, Positive, Record

HAN = r"\u3400-\u9fff\uf900-\ufaff"
# A word: one Chinese character, or what stands between blanks, and of that at most 40 characters.
WORD = re.compile(rf"\s*(?:[{HAN}][^\w\s]*|[^\s{HAN}]{{1,40}})\s*")
BLANKS = re.compile(r"\s*")
CLOSING = "\"'”’」』)]）】》"
SENTENCE_END = re.compile(rf"(?:[.!?…]+|[。！？；]+)[{re.escape(CLOSING)}]*")
CLAUSE_END = re.compile(rf"(?:[，、；：—–]+|[,;:]+(?=[\s{HAN}{re.escape(CLOSING)}]))[{re.escape(CLOSING)}]*")
# They stand before what they belong to, so their full stop ends no sentence. The second lot only before a figure.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st mt gen col sgt capt lt rev hon vs cf approx dept gov sen rep e.g i.e".split()
)
BEFORE_FIGURES = frozenset("no nos fig vol p pp ch sec jan feb mar apr jun jul aug sep sept oct nov dec".split())
SPEAKER_TAG = re.compile(r"\[SPEAKER(\d+)\]")
LIKE_A_TAG = re.compile(r"\[\s*speaker[\s_-]*(?:\d+|[a-z])?\s*\]|\[speaker\s*\d+", re.IGNORECASE)


Seconds = Annotated[float, Field(ge=0)]


class ChunkOptions(Record):
    """How a long text is spoken.

    Chunks have at most `max_words` words, and at most `max_turns` turns of a dialogue. Each hears the last
    `context_chunks` chunks as earlier turns (None: all of them), beside the reference. With `per_speaker_context` the
    prompt of a chunk of a dialogue is that of its speaker, who hears nothing of the others. Pauses are seconds of
    silence between chunks, by what lies between them; `match_levels` brings the chunks of one speaker to one loudness.
    A chunk without audio, or cut off at its limit, is spoken again with another seed, up to `retries` times.
    """

    max_words: Positive = 100
    max_turns: Positive = 1
    context_chunks: Count | None = 2
    per_speaker_context: bool = False
    sentence_pause: Seconds = 0.0
    paragraph_pause: Seconds = 0.5
    speaker_pause: Seconds = 0.2
    match_levels: bool = True
    retries: Count = 2

    @model_validator(mode="after")
    def _one_turn(self) -> "ChunkOptions":
        if self.per_speaker_context and self.max_turns > 1:
            raise ValueError(
                f"max_turns must be 1 with per_speaker_context, got {self.max_turns}: a chunk has one speaker then"
            )
        return self

    def pause(self, border: str) -> float:
        """Seconds of silence at a border of a `Chunk`; none before the first."""
        return 0.0 if border == "start" else getattr(self, f"{border}_pause")


@dataclass(frozen=True)
class Chunk:
    """A piece of text, with the tags of its speakers, if it has any.

    `border` says what lies before it: "start" (it is the first), "speaker", "paragraph" or "sentence".
    """

    text: str
    speakers: tuple[int, ...] = ()
    border: str = "start"


def count_words(text: str) -> int:
    """Words as `max_words` counts them; each Chinese character is one."""
    return len(WORD.findall(text))


def sentences(text: str) -> list[str]:
    """-> pieces that concatenate to the text, each up to the end of a sentence and the blanks behind it."""
    return _cut(text, SENTENCE_END, _ends_sentence)


def _clauses(text: str) -> list[str]:
    return _cut(text, CLAUSE_END, lambda *_: True)


def _cut(text: str, ends: re.Pattern, accept: Callable[[str, re.Match, str], bool]) -> list[str]:
    """Cuts behind the matches that `accept` takes, given what stands before one and the character behind it."""
    pieces, start = [], 0
    for match in ends.finditer(text):
        before, follower = text[start : match.start()], BLANKS.match(text, match.end())
        if before.strip() and accept(before, match, text[follower.end() :][:1]):
            pieces.append(text[start : follower.end()])
            start = follower.end()
    return [*pieces, text[start:]] if start < len(text) else pieces


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
    if word in BEFORE_FIGURES and follower.isdigit():
        return False
    initials = re.fullmatch(r"(?:[^\W\d]\.)*[a-z]", word)
    listed = word.isdigit() and before.strip() == word  # "1. First"
    return not (word in ABBREVIATIONS or initials or listed)


def _fit(text: str, max_words: int, cutters: tuple = (sentences, _clauses, WORD.findall)) -> list[str]:
    """-> pieces of at most `max_words` that concatenate to the text, cut at the best places there are."""
    cut, *finer = cutters
    packed: list[str] = []
    room = 0
    for piece in cut(text):
        words = count_words(piece)
        if words > max_words:
            packed += _fit(piece, max_words, tuple(finer))
            room = 0
        elif words <= room:
            packed[-1] += piece
            room -= words
        else:
            packed.append(piece)
            room = max_words - words
    return packed


def chunk_text(text: str, max_words: int = 100) -> list[Chunk]:
    """-> chunks of at most `max_words`; none spans two paragraphs, which blank lines divide.

    White space within a chunk is collapsed.
    """
    chunks: list[Chunk] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        border = "paragraph" if chunks else "start"
        for piece in _fit(" ".join(paragraph.split()), max_words):
            chunks.append(Chunk(piece.strip(), border=border))
            border = "sentence"
    return chunks


def speaker_turns(text: str) -> list[tuple[int, str]]:
    """ "[SPEAKER0] Hi. [SPEAKER1] Yes?" -> [(0, "Hi."), (1, "Yes?")]; [] for text without tags.

    A turn without words is left out. Raises ValueError for tags that are no speaker's, for text before the first, and
    where no turn has words.
    """
    parts = SPEAKER_TAG.split(text)
    if strange := next((tag[0] for part in parts[::2] for tag in LIKE_A_TAG.finditer(part)), None):
        raise ValueError(f"unknown speaker tag {strange!r}; tags are [SPEAKER0], [SPEAKER1], ...")
    if len(parts) == 1:
        return []
    if parts[0].strip():
        raise ValueError(f"{parts[0].strip()[:40]!r} stands before the first speaker tag")
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    turns = [(int(number), said.strip()) for number, said in pairs if said.strip()]
    if not turns:
        raise ValueError(f"there is no text to speak behind the speaker tags of {text[:40]!r}")
    return turns


def chunk_turns(turns: Iterable[tuple[int, str]], options: ChunkOptions) -> list[Chunk]:
    """Turns (speaker, text) -> chunks of one turn, or of up to `max_turns` as long as `max_words` holds them.

    A turn that is longer is cut as `chunk_text` does, and the speaker's tag stands before each of its chunks.
    """
    chunks: list[Chunk] = []
    merged = 0
    for number, said in turns:
        for index, piece in enumerate(chunk_text(said, options.max_words)):
            text = f"[SPEAKER{number}] {piece.text}"
            last = chunks[-1] if chunks else None
            room = options.max_words - count_words(SPEAKER_TAG.sub("", f"{last.text} {text}")) if last else -1
            if last and index == 0 and merged < options.max_turns and room >= 0:
                chunks[-1] = Chunk(f"{last.text}\n{text}", (*last.speakers, number), last.border)
                merged += 1
                continue
            border = piece.border if index else "speaker" if last else "start"
            if index == 0 and last and last.speakers[-1] == number:
                border = "paragraph"
            chunks.append(Chunk(text, (number,), border))
            merged = 1
    return chunks
