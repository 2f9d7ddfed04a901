"""What was said and what was heard: word and character errors as Whisper normalises text.

English goes through Whisper's English normaliser (numbers, contractions, titles, spelling), every
other language through its basic one (case, punctuation, symbols). Rates of a corpus are sums of
errors over sums of words; the mean of per-utterance rates, which some benchmarks report, is another
number and never shares a column with this one.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

# First, because importing transformers imports torchaudio, and higgs.audio holds the import that
# survives a CPU-only torch.
import higgs.audio  # noqa: F401

# isort: split
import jiwer
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

from higgs.evaluate.judges.wheels import wheel_file

SPELLING_WHEEL = ("whisper-normalizer", "0.1.15")
SPELLING_FILE = "whisper_normalizer/normalizers/english.json"

# Written without spaces between words, so a letter is counted as a word (Radford et al. 2022,
# appendix C).
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my"})


@dataclass(frozen=True)
class _Errors:
    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def total(self) -> int:
        """Units in the reference."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float:
        """Errors per unit of the reference; insertions can lift it above 1."""
        return self.errors / self.total


class WordErrors(_Errors):
    """Edits that turn the reference's words into the hypothesis's."""

    @property
    def words(self) -> int:
        return self.total


class CharacterErrors(_Errors):
    """Edits that turn the reference's characters into the hypothesis's."""

    @property
    def characters(self) -> int:
        return self.total


@cache
def _normalizer(language: str) -> Callable[[str], str]:
    if not re.fullmatch("[a-z]{2,3}", language):
        raise ValueError(f"language: expected an ISO 639 code such as 'en' or 'es', got {language!r}")
    if language == "en":
        spelling = json.loads(wheel_file(SPELLING_WHEEL, SPELLING_FILE).read_text(encoding="utf-8"))
        return EnglishTextNormalizer(spelling)
    return BasicTextNormalizer(split_letters=language in UNSPACED)


def normalize(text: str, language: str = "en") -> str:
    """Text -> lower case words with single spaces, as the error counts see it; may be empty.

    Beyond Whisper's rules a word without a letter or digit is dropped: theirs leave a "." of "...".
    Their basic rules drop combining marks too, so scripts that write vowels so (Hindi, Thai) lose
    them.
    """
    words = _normalizer(language)(text).split()
    return " ".join(word for word in words if any(symbol.isalnum() for symbol in word))


def _normalized_pair(reference: str, hypothesis: str, language: str) -> tuple[str, str]:
    wanted, heard = normalize(reference, language), normalize(hypothesis, language)
    if not wanted:
        raise ValueError(f"the reference {reference!r} holds no words after normalisation ({language})")
    return wanted, heard


def word_errors(reference: str, hypothesis: str, language: str = "en") -> WordErrors:
    """Text that should be said, text that was heard -> counts over normalised words.

    An empty hypothesis deletes every word. An empty reference raises ValueError.
    """
    wanted, heard = _normalized_pair(reference, hypothesis, language)
    counts = jiwer.process_words(wanted, heard)
    return WordErrors(counts.substitutions, counts.deletions, counts.insertions, counts.hits)


def character_errors(reference: str, hypothesis: str, language: str = "en") -> CharacterErrors:
    """As word_errors, over characters; the space between words counts as one where there is one."""
    wanted, heard = _normalized_pair(reference, hypothesis, language)
    if language in UNSPACED:
        wanted, heard = wanted.replace(" ", ""), heard.replace(" ", "")
    counts = jiwer.process_characters(wanted, heard)
    return CharacterErrors(counts.substitutions, counts.deletions, counts.insertions, counts.hits)


def corpus_rate(utterances: Iterable[WordErrors] | Iterable[CharacterErrors]) -> float:
    """Counts of several utterances, all words or all characters -> sum of errors / sum of units."""
    counts = list(utterances)
    if not counts:
        raise ValueError("corpus_rate: no utterances")
    kinds = {type(count).__name__ for count in counts}
    if len(kinds) > 1:
        raise TypeError(f"corpus_rate: cannot add {' and '.join(sorted(kinds))}")
    return sum(count.errors for count in counts) / sum(count.total for count in counts)
