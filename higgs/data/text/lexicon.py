"""Words as phonemes: an option of text tokenizers for models too small to learn English spelling.

A checkpoint with a `lexicon.json` beside its `tokenizer.json` reads the words that it lists as phonemes, one token
each, and spells all others. The release has none: its text is read as it is written.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from higgs.files import replacing

FILE = "lexicon.json"
# Before a word: it is spelled, whatever the lexicon knows. Invisible in a text (WORD JOINER).
SPELL = "\u2060"
# Words of letters and inner apostrophes. What stands in brackets, tokens or beside digits is no word: [SPEAKER0].
WORD = re.compile(rf"(?<![\w\[<|/])({SPELL})?([A-Za-z]+(?:['’][A-Za-z]+)*)(?![\w\]>|])")
FIRST = 0xE000  # private use: a phoneme has a character of its own, or "t" would be both letter and phoneme


@dataclass(frozen=True)
class Piece:
    """A run of text. `phonemes` is None for what the lexicon does not know, and between words."""

    text: str
    phonemes: str | None = None
    spelled: bool = False


@dataclass(frozen=True)
class Lexicon:
    """`words` are lower-case words and their phonemes; `phonemes` the phonemes in the order of their tokens."""

    phonemes: str
    words: dict[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        if len(set(self.phonemes)) < len(self.phonemes):
            raise ValueError(f"the lexicon lists a phoneme twice: {self.phonemes}")
        used = set("".join(self.words.values()))
        if unknown := sorted(used - set(self.phonemes)):
            raise ValueError(f"the lexicon uses phonemes that it does not list: {unknown}")

    @classmethod
    def read(cls, folder: Path) -> "Lexicon | None":
        """The lexicon of a checkpoint's folder, if it has one. Raises ValueError for one that is damaged."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no lexicon ({error})") from error

    def write(self, folder: Path) -> None:
        content = {"phonemes": self.phonemes, "words": self.words}
        with replacing(folder / FILE) as partial:
            text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            partial.write_text(text + "\n", "utf-8")

    @property
    def tokens(self) -> list[str]:
        """What the text tokenizer has to know as tokens, one for each phoneme."""
        return [chr(FIRST + index) for index in range(len(self.phonemes))]

    def split(self, text: str) -> Iterator[Piece]:
        """Words that are known, and what is between them; together they are the text without its marks."""
        end = 0
        for match in WORD.finditer(text):
            mark, word = match.groups()
            phonemes = self.words.get(word.lower().replace("’", "'"))
            if phonemes is None and not mark:
                continue
            if text[end : match.start()]:
                yield Piece(text[end : match.start()])
            yield Piece(word, phonemes, spelled=bool(mark))
            end = match.end()
        if text[end:]:
            yield Piece(text[end:])

    def pronounce(self, text: str) -> str:
        """The text with each known word as the characters of its phonemes' tokens."""
        return "".join(
            piece.text
            if piece.phonemes is None or piece.spelled
            else "".join(chr(FIRST + self.phonemes.index(p)) for p in piece.phonemes)
            for piece in self.split(text)
        )

    def readable(self, text: str) -> str:
        """The characters of phonemes as phonemes."""
        names = {FIRST + index: phoneme for index, phoneme in enumerate(self.phonemes)}
        return text.translate(names)
