"""Characters that look or sound like others: what people paste from web pages, PDF files and word processors.

`text.translate(FOLDED)` after NFC. It changes no text of plain letters, digits and punctuation in any script.
"""

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
