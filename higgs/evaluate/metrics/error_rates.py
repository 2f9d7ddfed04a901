"""Word and character errors between a reference text and a hypothesis, as Whisper normalises text.

English goes through Whisper's English normaliser (numbers, contractions, titles, spelling), other languages through its
basic one (case, punctuation, symbols). Before that, figures, units and abbreviations of English and Chinese are words,
because recognisers write "10:30" or "20 °C" for what was said in words.
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

from higgs.data.text.abbreviations import CONSONANT
from higgs.data.text.folding import FOLDED
from higgs.data.text.numbers import RULES, spell_out
from higgs.evaluate.judges.wheels import wheel_file

SPELLING_WHEEL = ("whisper-normalizer", "0.1.15")
SPELLING_FILE = "whisper_normalizer/normalizers/english.json"
# Written without spaces between words, so each character counts as a word (Radford et al. 2022, appendix C).
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my"})
# "U.S.", "B. B. C.", "B B C" -> "US", "BBC"; two spaced letters only without the words A and I.
INITIALS = re.compile(
    r"(?<![\w.'’])(?:(?:[A-Z]\.)+[A-Z]\b\.?|[A-Z]\.(?: [A-Z]\.)+|"
    r"[B-HJ-Z](?: [B-HJ-Z])+(?!\.)|[A-Z](?: [A-Z]){2,}(?!\.))(?![\w'’])"
)
# "P B X", which `spell_out` makes of "PBX": one word, as it is written. "US" stays apart from "us".
CONSONANTS = re.compile(rf"(?<![A-Z] )\b(?:{CONSONANT} )+{CONSONANT}\b(?! [A-Z]\b)")
HALF_OF_DAY = re.compile(r"(?<![\w.'])([ap])\.?\s?(m)(?:\b\.|(?!\w))", re.IGNORECASE)


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


def _join_initials(text: str) -> str:
    return INITIALS.sub(lambda m: re.sub(r"[\s.]", "", m[0]), text)


def _in_words(text: str, language: str, capitals: bool) -> str:
    if language not in RULES:
        return text
    if language != "en":
        return spell_out(text, language)
    text = CONSONANTS.sub(lambda m: m[0].replace(" ", ""), spell_out(_join_initials(text), language))
    text = HALF_OF_DAY.sub(r"\1\2", re.sub(r"\bO\.?K\b\.?|\bok\b", "okay", text))
    return _join_initials(text) if capitals else text


def normalize(text: str, language: str = "en", capitals: bool = False) -> str:
    """Text -> lower case words with single spaces; may be empty.

    Invisible characters go and apostrophes of all kinds are one first: Whisper's rules know U+0027 alone. Words without
    a letter or digit are dropped too, such as the "." that they leave of "...". Its basic rules remove combining marks,
    so Hindi and Thai lose vowels. "US" is spelled, unlike "us"; not with `capitals`, for texts without small letters.
    """
    text = _in_words(text.translate(FOLDED).replace("’", "'"), language, capitals)
    words = _normalizer(language)(text).split()
    return " ".join(word for word in words if any(symbol.isalnum() for symbol in word))


def _errors(process: Callable[..., Any], reference: str, hypothesis: str, language: str, spaced: bool) -> ErrorCounts:
    # One word of capitals, as "I" or "OK.", says nothing of how a recogniser writes.
    capitals = reference.isupper() or (hypothesis.isupper() and len(hypothesis.split()) > 1)
    pair = [normalize(text, language, capitals) for text in (reference, hypothesis)]
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
