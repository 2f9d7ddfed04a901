"""Numbers as words, in English and Chinese: numbers, dates, times, money, percentages, units, signs of mathematics.

The release was trained on text with numbers as words ("seventy degrees"), but its tools do not convert them. So this is
a separate step before `higgs.data.text.normalize`. It is idempotent. In English, abbreviations are read as well. A
token is read whole or left whole: words of letters and digits ("MP3", "PM2.5"), addresses and speaker tags stay.
"""

import re

from higgs.data.text.abbreviations import read_abbreviations
from higgs.data.text.numbers_chinese import RULES as CHINESE
from higgs.data.text.numbers_english import RULES as ENGLISH

RULES = {"en": ENGLISH, "zh": CHINESE}
URL = r"(?<![A-Za-z0-9])(?:[A-Za-z][A-Za-z0-9+.-]{0,15}://|www\.)[!-~]+"
EMAIL = r"(?<![A-Za-z0-9.+_-])[A-Za-z0-9.+_-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"
DOMAIN = (
    r"(?<![A-Za-z0-9.@-])(?:[A-Za-z0-9-]{1,63}\.){1,4}(?:com|org|net|edu|gov|io|co|ai|de|uk|cn|info)\b(?:[:/][!-~]*)?"
)
PROTECTED = re.compile(rf"(\[SPEAKER\d+\]|<\|[^|<>]*\|>|{URL}|{EMAIL}|{DOMAIN})")


def spell_out(text: str, language: str | None = None) -> str:
    """-> the text with its numbers in words, each line in its own language, English or Chinese, or all in "en" or "zh".

    Lines in other scripts (Japanese, Arabic, ...) are left alone. Latin script counts as English: skip this step for
    other languages that use it.
    """
    whole = language or line_language(text) or ("en" if not any(map(str.isalpha, text)) else None)
    lines = []
    for line in text.split("\n"):
        own = language or (line_language(line) if any(map(str.isalpha, line)) else whole)
        segments = PROTECTED.split(line)
        segments[::2] = [_apply(own, segment) for segment in segments[::2]]
        lines.append("".join(segments))
    return "\n".join(lines)


def line_language(line: str) -> str | None:
    """ "zh" where there are more Chinese characters than words in Latin letters, else "en"; None for other scripts."""
    letters = "".join(filter(str.isalpha, line))  # not "²", "½"
    han = len(re.findall(r"[\u3400-\u9fff]", letters))
    latin = len(re.findall(r"[A-Za-z\u00c0-\u024f]+", line))
    units = len(re.findall(r"(?<=[0-9])[A-Za-z]+", line)) if han else 0  # "5km": of no language
    other = len(re.findall(r"[^\u3400-\u9fffA-Za-z\u00c0-\u024f\uff21-\uff5a\u02b0-\u036f]", letters))
    if other > 0 and other >= latin:
        return None
    return "zh" if han and han >= latin - units else "en" if latin else None


def _apply(language: str | None, text: str) -> str:
    """Applies all rules in turn until nothing changes: a replacement may make another match possible."""
    before = None
    while text != before:
        before = text
        text = read_abbreviations(text) if language == "en" else text
        for pattern, say in RULES.get(language, ()) if re.search(r"[\d¼-¾²³⅐-⅞]", text) else ():
            text = re.sub(pattern, say, text)
    return text
