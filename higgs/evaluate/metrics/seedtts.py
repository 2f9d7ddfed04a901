"""SeedTTS-Eval's scoring of word errors, as its authors' scripts compute it.

Source: `run_wer.py` and `average_wer.py` of github.com/BytedanceSpeech/seed-tts-eval, commit
95003fe4. Their normaliser takes away punctuation and case and nothing else: "50" against "fifty" is
an error, and so is "colour" against "color". Their result is the mean of per-utterance rates, where
one run-away of ten words weighs as much as a paragraph. Both differ from the rates of
`higgs.evaluate.metrics.error_rates`, so the two never share a column.

One thing differs: their scripts skip a missing file, and the mean is that of the others. Here it
counts as an utterance of which every word is missing; where none is missing, results are equal.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

# Punctuation of Chinese, as zhon 2.1.1 lists it (hanzi.punctuation); zhon 1.1 lacks the full width
# full stop.
HANZI_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。"
)
REMOVED = str.maketrans("", "", (HANZI_PUNCTUATION + string.punctuation).replace("'", ""))
LANGUAGES = ("en", "zh")


def normalize(text: str, language: str) -> str:
    """Text -> what is compared: no punctuation but the ASCII apostrophe, English in lower case.

    Chinese becomes characters with blanks between them, which makes its WER a character error rate.
    Raises ValueError for languages that SeedTTS-Eval does not have.
    """
    if language not in LANGUAGES:
        raise ValueError(f"SeedTTS-Eval scores {' and '.join(LANGUAGES)}, not {language!r}")
    text = text.translate(REMOVED).replace("  ", " ")
    return " ".join(text) if language == "zh" else text.lower()


def utterance_wer(reference: str, hypothesis: str, language: str = "en") -> float:
    """Text that should be said, text that was heard -> errors / words; insertions can lift it above 1.

    Raises ValueError if nothing is left of the reference.
    """
    wanted = normalize(reference, language)
    if not wanted.strip():
        raise ValueError(f"nothing is left of the reference {reference!r} without punctuation")
    return jiwer.process_words(wanted, normalize(hypothesis, language)).wer


@dataclass(frozen=True)
class SeedTTSScore:
    """Over `n` utterances: the mean of their rates, and of those of at most 50 % (None without any)."""

    n: int
    wer: float
    wer_below_50: float | None
    above_50: int


def score(rates: Sequence[float]) -> SeedTTSScore:
    """Rates of utterances, 1 for each missing one -> the authors' two means."""
    if not rates:
        raise ValueError("score: no utterances")
    below = [rate for rate in rates if rate <= 0.5]
    return SeedTTSScore(
        n=len(rates),
        wer=sum(rates) / len(rates),
        wer_below_50=sum(below) / len(below) if below else None,
        above_50=len(rates) - len(below),
    )
