"""Characters of texts to speak: those that are refused, and those that look or sound like others.

`text.translate(FOLDED)` after NFC changes no text of plain letters, digits and punctuation in any script.
"""

import re
import unicodedata

# Unicode's Default_Ignorable_Code_Point, but for the joiners U+200C and U+200D, which some scripts need.
INVISIBLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200B), (0x200E, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF),
)  # fmt: skip
LIGATURES = (0xFB00, 0xFB06)
FULL_WIDTH = ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))  # digits and letters; punctuation is Chinese
SPACES = (0x00A0, *range(0x2000, 0x200B), 0x202F, 0x205F)
APOSTROPHES = (0x00B4, 0x02BC, 0xFF07)  # the typographic one, U+2019, is read as it is

FOLDED: dict[int, str | None] = {code: None for first, last in INVISIBLE for code in range(first, last + 1)}
FOLDED |= {
    code: unicodedata.normalize("NFKC", chr(code))
    for first, last in (LIGATURES, *FULL_WIDTH)
    for code in range(first, last + 1)
}
FOLDED |= dict.fromkeys(SPACES, " ") | dict.fromkeys(APOSTROPHES, "'")

# Control characters other than white space, halves of surrogate pairs, and noncharacters.
INVALID = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef]")


def check_text(text: str) -> str:
    """The text itself. Raises ValueError for blank text and, with its position, for an invalid character."""
    if not text.strip():
        raise ValueError("there is no text to speak")
    if found := INVALID.search(text):
        raise ValueError(f"U+{ord(found[0]):04X} at character {found.start()} of the text cannot be spoken; remove it")
    return text
