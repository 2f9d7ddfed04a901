"""SeedTTS-Eval's word error rate, as its authors' scripts compute it.

Source: `run_wer.py` and `average_wer.py` of github.com/BytedanceSpeech/seed-tts-eval, commit 95003fe4. Unlike in
`higgs.evaluate.metrics.error_rates`, only punctuation and case are removed ("50" against "fifty" is an error), and the
result is the mean of per-utterance rates. A missing utterance, which their scripts skip, has all words missing.
"""

import string

import jiwer

# Punctuation of Chinese in zhon 2.1.1 (hanzi.punctuation); zhon 1.1 lacks the full width full stop.
HANZI_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。"
)
REMOVED = str.maketrans("", "", (HANZI_PUNCTUATION + string.punctuation).replace("'", ""))
LANGUAGES = ("en", "zh")


def normalize(text: str, language: str) -> str:
    """Text -> no punctuation but the ASCII apostrophe; English in lower case, Chinese with spaces between characters.

    Raises ValueError for languages that SeedTTS-Eval does not have.
    """
    if language not in LANGUAGES:
        raise ValueError(f"SeedTTS-Eval scores {' and '.join(LANGUAGES)}, not {language!r}")
    text = text.translate(REMOVED).replace("  ", " ")
    return " ".join(text) if language == "zh" else text.lower()


def utterance_wer(reference: str, hypothesis: str, language: str = "en") -> float:
    """Text to be spoken, transcript -> errors / words; ValueError if nothing remains of the reference."""
    normalized = normalize(reference, language)
    if not normalized.strip():
        raise ValueError(f"nothing is left of the reference {reference!r} without punctuation")
    return jiwer.process_words(normalized, normalize(hypothesis, language)).wer
