"""Word and character errors between a reference text and a hypothesis, as Whisper normalises text.

English goes through Whisper's English normaliser (numbers, contractions, titles, spelling), other languages through its
basic one (case, punctuation, symbols).
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

# First: transformers imports torchaudio, and higgs.audio imports it so that it works beside a CPU-only torch.
import higgs.audio  # noqa: F401

# isort: split
import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from higgs.data.text.folding import FOLDED
from higgs.evaluate.judges.wheels import wheel_file

SPELLING_WHEEL = ("whisper-normalizer", "0.1.15")
SPELLING_FILE = "whisper_normalizer/normalizers/english.json"
# Written without spaces between words, so each character counts as a word (Radford et al. 2022, appendix C).
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my"})


class ErrorCounts(NamedTuple):
    """Edits that turn the reference's words (or characters) into the hypothesis's."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def total(self) -> int:
        """Words or characters of the reference."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float:
        """Errors / total; above 1 with enough insertions."""
        return self.errors / self.total


@cache
def _normalizer(language: str) -> Callable[[str], str]:
    if not re.fullmatch("[a-z]{2,3}", language):
        raise ValueError(f"language: expected an ISO 639 code such as 'en' or 'es', got {language!r}")
    if language == "en":
        return EnglishTextNormalizer(json.loads(wheel_file(SPELLING_WHEEL, SPELLING_FILE).read_text(encoding="utf-8")))
    return BasicTextNormalizer(split_letters=language in UNSPACED)


def normalize(text: str, language: str = "en") -> str:
    """Text -> lower case words with single spaces; may be empty.

    Invisible characters go and apostrophes of all kinds are one first: Whisper's rules know U+0027 alone. Words without
    a letter or digit are dropped too, such as the "." that they leave of "...". Its basic rules remove combining marks,
    so Hindi and Thai lose vowels.
    """
    words = _normalizer(language)(text.translate(FOLDED).replace("’", "'")).split()
    return " ".join(word for word in words if any(symbol.isalnum() for symbol in word))


def _errors(process: Callable[..., Any], reference: str, hypothesis: str, language: str, spaced: bool) -> ErrorCounts:
    pair = [normalize(text, language) for text in (reference, hypothesis)]
    if not pair[0]:
        raise ValueError(f"the reference {reference!r} holds no words after normalisation ({language})")
    output = process(*(text if spaced else text.replace(" ", "") for text in pair))
    return ErrorCounts(output.substitutions, output.deletions, output.insertions, output.hits)


def word_errors(reference: str, hypothesis: str, language: str = "en") -> ErrorCounts:
    """Text to be spoken, transcript -> counts over normalised words; ValueError for a reference without words."""
    return _errors(jiwer.process_words, reference, hypothesis, language, spaced=True)


def character_errors(reference: str, hypothesis: str, language: str = "en") -> ErrorCounts:
    """As `word_errors`, over characters; a space between words counts where the language has one."""
    return _errors(jiwer.process_characters, reference, hypothesis, language, spaced=language not in UNSPACED)
