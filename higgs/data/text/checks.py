"""Which texts can be spoken at all."""

import re

# Control characters other than white space, halves of surrogate pairs, and noncharacters.
UNSPEAKABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef]")


def check_text(text: str) -> str:
    """The text itself; emoji, right-to-left scripts and the strings of special tokens are text like any other.

    Raises ValueError for text that is empty or blank, and for characters that are none (NUL, ...), naming the place.
    """
    if not text.strip():
        raise ValueError("there is no text to speak")
    if found := UNSPEAKABLE.search(text):
        raise ValueError(
            f"U+{ord(found[0]):04X} at character {found.start()} of the text is no character to speak; remove it"
        )
    return text
