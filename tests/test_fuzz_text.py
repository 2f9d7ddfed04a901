"""Random texts through everything between input and tokens: nothing raises, is dropped, empty or slow.

In a normal run 60 texts for each property, the same ones each time; `pytest -m fuzz` draws 2,000.
"""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from higgs.data.text.chunks import ChunkOptions, chunk_text, chunk_turns, count_words, sentences, speaker_turns
from higgs.data.text.folding import FOLDED, check_text
from higgs.data.text.markup import end_lines, plain_text
from higgs.data.text.normalize import SOUND_EVENTS, normalize_contents
from higgs.data.text.numbers import spell_out
from higgs.data.text.tokenizer import TextTokenizer
from higgs.evaluate.metrics.error_rates import normalize, word_errors
from training.nano.byte_tokenizer import byte_tokenizer

COUNTS = [60, pytest.param(2000, marks=pytest.mark.fuzz)]
SECONDS = 2.0  # of the processor, for a text of at most 600 characters
TOKENIZER = TextTokenizer(byte_tokenizer())
PIECES = [
    "Dr. ", "Mr. Fox", "e.g. ", "a.m.", "U.S. ", "No. 5", "1,234.5", "$5", "A$15", "10:30", "5 km", "½", "m²", "±5",
    "3:1", "2 + 2 = 4", "Chapter IV", "1. ", "...", " . . .", "…", "!?", '"', "'", "’", "“", "[SPEAKER0] ", "[laugh]",
    "<|eot_id|>", "https://a.org/5", "a@b.org", "\n", "\n\n", "\t", "\u2028", "\u200b", "\u00ad", "\ufb01", "Ａ１",
    "e\u0301", "👍", "👩\u200d👧", "你好。", "10点30分", "3月5日", "これは本です。", "यह घर है।", "هل أنت؟", "สวัสดี",
    "שלום",
    "**", "*", "_", "`", "# ", "- ", "| ", "[a](b)", "<p>", "</p>", "<break/>", "&amp;", "&#0;", "&#xd800;", "\\",
    "\u0600", "٣", "Ⅳ", "①", "x" * 50,
]  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join),
    st.lists(st.sampled_from("0123456789.,:-/$% abmAP年月日点"), max_size=40).map("".join),
)


def letters(text: str) -> list[str]:
    return [symbol for symbol in text if symbol.isalnum()]


def accepted(text: str) -> bool:
    """Whether a text may be spoken; anything else than a ValueError is a fault."""
    try:
        return check_text(text) == text
    except ValueError:
        return False


def folding_changes_nothing_twice(text: str) -> None:
    once = text.translate(FOLDED)
    assert once.translate(FOLDED) == once
    plain = "".join(symbol for symbol in text if ord(symbol) not in FOLDED)
    assert plain.translate(FOLDED) == plain


def sentences_are_the_text(text: str) -> None:
    found = sentences(text)
    assert "".join(found) == text and all(found)


def chunks_hold_every_letter(text: str) -> None:
    for words in (1, 3, 100):
        chunks = chunk_text(text, words)
        assert letters("".join(chunk.text for chunk in chunks)) == letters(text)
        assert all(letters(chunk.text) and count_words(chunk.text) <= words for chunk in chunks)
        assert [chunk.boundary for chunk in chunks[:1]] == ["start"][: len(chunks)]


def turns_hold_every_word(text: str) -> None:
    try:
        turns = speaker_turns(f"[SPEAKER0] {text}")
    except ValueError:
        return
    chunks = chunk_turns(turns, ChunkOptions(max_words=5))
    assert letters("".join(words for _, words in turns)) == letters(
        "".join(words for chunk in chunks for _, words in speaker_turns(chunk.text))
    )


def markup_is_not_needed(text: str) -> None:
    """Blanks and full stops come between lines; letters and digits stay but for those of tags and entities."""
    assert letters(end_lines(text)) == letters(text)
    text = text.translate(FOLDED)
    plain = plain_text(text)
    if not set(text) & set("<&[:\\"):
        assert letters(plain) == letters(text)
        assert plain_text(plain) == plain


def numbers_are_read_once(text: str) -> None:
    once = spell_out(text)
    assert spell_out(once) == once
    others = [
        symbol for symbol in text if symbol.isalpha() and ord(symbol) > 0x590 and not 0x3000 < ord(symbol) < 0xA000
    ]
    left = [symbol for symbol in once if symbol.isalpha() and ord(symbol) > 0x590 and not 0x3000 < ord(symbol) < 0xA000]
    assert left == others, "other scripts stay"


def normalisation_keeps_letters(text: str) -> None:
    if not accepted(text):
        return
    try:
        parts = normalize_contents(text)
    except ValueError:
        return
    assert all(part.text for part in parts)
    if not any(tag in text for tag in SOUND_EVENTS):
        once = "".join(part.text for part in parts)
        assert [letter for letter in letters(once) if letter in letters(text)] == letters(text) or "°" in text
        assert "".join(part.text for part in normalize_contents(once)) == once


def tokens_are_the_text(text: str) -> None:
    if accepted(text):
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text and max(ids) < TOKENIZER.vocab_size


def a_text_has_no_errors_against_itself(text: str) -> None:
    for language in ("en", "zh", "es"):
        if normalize(text, language):
            assert word_errors(text, text, language).errors == 0


CHECKS = [
    folding_changes_nothing_twice, sentences_are_the_text, chunks_hold_every_letter, turns_hold_every_word,
    markup_is_not_needed, numbers_are_read_once, normalisation_keeps_letters, tokens_are_the_text,
    a_text_has_no_errors_against_itself,
]  # fmt: skip


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_random_texts(check, count):
    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(TEXTS)
    def run(text: str) -> None:
        started = time.process_time()
        check(text)
        assert time.process_time() - started < SECONDS

    run()
