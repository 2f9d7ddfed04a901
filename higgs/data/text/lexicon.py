"""Pronunciation lexicon: an option of text tokenizers for models too small to learn English spelling.

With a `lexicon.json` beside the `tokenizer.json` of a checkpoint, the words listed there are encoded as phonemes, one
token each, and all others as written. The release has none.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from higgs.checkpoint.tensors import CheckpointError, read_json
from higgs.validation import Record, validate

FILE = "lexicon.json"
# Before a word: it is encoded as written, whatever the lexicon lists. Invisible in a text (WORD JOINER).
SPELL = "\u2060"
# Words of letters and inner apostrophes; not in brackets, tokens or next to digits: [SPEAKER0].
WORD = re.compile(rf"(?<![\w\[<|/])({SPELL})?([A-Za-z]+(?:['’][A-Za-z]+)*)(?![\w\]>|])")
FIRST, LAST = 0xE000, 0xF8FF  # private use area: otherwise "t" would be both letter and phoneme


class _File(Record):
    phonemes: str
    words: dict[str, str]


@dataclass(frozen=True)
class Lexicon:
    """`words` are lower-case words and their phonemes; `phonemes` the phonemes in the order of their tokens."""

    phonemes: str
    words: dict[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.phonemes) > LAST - FIRST + 1:
            raise ValueError(
                f"the lexicon lists {len(self.phonemes)} phonemes, at most {LAST - FIRST + 1} are possible"
            )
        if len(set(self.phonemes)) < len(self.phonemes):
            raise ValueError(f"the lexicon lists a duplicate phoneme: {self.phonemes}")
        used = set("".join(self.words.values()))
        if unknown := sorted(used - set(self.phonemes)):
            raise ValueError(f"the lexicon uses phonemes that it does not list: {unknown}")

    @classmethod
    def read(cls, folder: Path) -> "Lexicon | None":
        """The lexicon in a checkpoint's folder, or None. Raises CheckpointError for a damaged one."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            file = validate(_File, read_json(path), "lexicon")
            return cls(file.phonemes, file.words)
        except ValueError as error:
            raise CheckpointError(f"{path} is no lexicon ({error})") from error

    @property
    def tokens(self) -> list[str]:
        """The text tokenizer's tokens, one for each phoneme."""
        return [chr(FIRST + index) for index in range(len(self.phonemes))]

    def pronounce(self, text: str) -> str:
        """The text with each listed word as the characters of its phonemes' tokens."""
        tokens = str.maketrans(dict(zip(self.phonemes, self.tokens, strict=True)))

        def replace(match: re.Match) -> str:
            mark, word = match.groups()
            phonemes = None if mark else self.words.get(word.lower().replace("’", "'"))
            return word if phonemes is None else phonemes.translate(tokens)

        return WORD.sub(replace, text)

    def readable(self, text: str) -> str:
        """The inverse of `pronounce`: the characters of phoneme tokens as phonemes."""
        return text.translate({FIRST + index: phoneme for index, phoneme in enumerate(self.phonemes)})
