"""Validation of texts to speak."""

import re

# Control characters other than white space, halves of surrogate pairs, and noncharacters.
INVALID = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef]")


def check_text(text: str) -> str:
    """The text itself. Raises ValueError for blank text and, with its position, for an invalid character."""
    if not text.strip():
        raise ValueError("there is no text to speak")
    if found := INVALID.search(text):
        raise ValueError(f"U+{ord(found[0]):04X} at character {found.start()} of the text cannot be spoken; remove it")
    return text
