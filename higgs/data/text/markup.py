"""What a text on a page holds beside its words: Markdown, HTML, SSML, entities, emoji, and the ends of its lines."""

import html
import re
import unicodedata
from itertools import pairwise

from higgs.data.text.folding import FOLDED

HAN_END = re.compile(r"[\u3400-\u9fff]$")
BULLETS = "-*+•⁃‣·▪●◦"
PICTURE = (
    r"(?:[\u20e3\u2190-\u21ff\u2300-\u23ff\u2500-\u27bf\u2900-\u297f\u2b00-\u2bff\ufffd©®™\U0001f000-\U0001faff]"
    r"[\u200d\U0001f3fb-\U0001f3ff]*|(?<![\w:]):[a-z]+(?:_[a-z]+)*:(?![\w:]))"
)
ATTRIBUTES = r"(?:\s+[\w:.-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>=]+))*\s*"
ENDS_A_LINE = "br|p|div|li|h[1-6]|tr|s|ul|ol|table|blockquote|section|article|title|speak|hr"

# In this order. A tag of the model's own (<SE>, <|...|>) is none.
MARKUP = [(re.compile(pattern, re.MULTILINE), text) for pattern, text in (
    (r"<!--(?:(?!<!--)[\s\S])*?-->", ""),
    (r"(?i)<(script|style)\b[^<>]*>(?:(?!<(?:script|style)\b)[\s\S])*?</\1\s*>", ""),
    (r"(?i)<sub\s+alias=[\"']([^\"'<>]*)[\"']\s*>[^<>]*</sub\s*>", r"\1"),
    (rf"(?i)(?<=\w)[ \t]*<break\b{ATTRIBUTES}/?>(?:[ \t]*</break\s*>)?(?=[ \t]*\w)", ","),
    (rf"(?i)[ \t]*</?(?:{ENDS_A_LINE})\b{ATTRIBUTES}/?>[ \t]*", "\n"),
    (rf"</?(?!SE\b|SE_[se]\b)[A-Za-z][\w.-]*(?::[\w-]+)?{ATTRIBUTES}/?>", ""),
    (r"^[ \t]*(?:```|~~~).*$", ""),
    (r"^[ \t]*\|?(?:[ \t]*:?-{2,}:?[ \t]*\|)+[ \t]*(?::?-{2,}:?)?[ \t]*$", ""),  # under the head of a table
    (r"^[ \t]*(?:[-*_=][ \t]*){3,}$", ""),
    (r"^[ \t]*(?:>[ \t]?)+", ""),
    (r"!?\[([^\[\]\n]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+\"[^\"\n]*\")?\)", r"\1"),
    (r"\[\^[\w-]{1,20}\]:?", ""),
    (r"\[([^\[\]\n]+)\]\[[^\[\]\n]*\]", r"\1"),
    (r"`+", ""),
    (r"(\*\*|__|~~|==)(?=\S)([^\n]+?)(?<=\S)\1", r"\2"),
    (r"(?<![\w*\\])\*{1,3}(?=[\w\"'“‘(])|(?<=[\w.,!?;:\"'”’…)])\*{1,3}(?![\w*])", ""),
    (r"(?<![\w\\])_{1,3}(?=[^\W_])|(?<=[^\W_])_{1,3}(?!\w)|(?<=[.,!?])_{1,3}(?!\w)", ""),
    (r"\\([\\`*_{}\[\]()#+.!|~>-])", r"\1"),
)]  # fmt: skip
ENTITY = re.compile(r"&(?:amp;)*(#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z]\w{1,30};)")
HEADING = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+(.*?)[ \t#]*$")
ITEM = re.compile(rf"[ \t]*(?:[{re.escape(BULLETS)}][ \t]+|(?=\d{{1,3}}[.)][ \t]))(?:\[[ xX]\][ \t]+)?(?=.*\w)")
CELLS = re.compile(r"[ \t]*\|(.*?)\|?[ \t]*$")
EVENTS = {"laugh": "[laugh]", "cough": "[cough]", "cheer": "[cheering]", "applau": "[applause]", "music": "[music]"}
EVENT = re.compile(
    r"(?<!>)\[[ \t]*(?:(?P<kind>laugh|cough|cheer|applau|music)(?:s|es|ed|se|ing|ter)?|"
    r"(?P<span>humming|music|sing)(?:ing)? (?P<end>start|end))[ \t]*\]",
    re.IGNORECASE,
)


def plain_text(text: str) -> str:
    """The words of a text in Markdown, HTML or SSML, as they are meant to be heard.

    Entities become characters; emoji go; headings, list items and rows of tables end with a mark; sound events in
    other spellings ("[Laughs]") become those of the reference implementation. Text without markup is not changed.
    """
    for pattern, words in MARKUP:
        text = pattern.sub(words, text)
    text = ENTITY.sub(lambda m: html.unescape(f"&{m[1]}"), text).translate(FOLDED)
    text = EVENT.sub(_event, text)
    text = re.sub(rf"[ \t]*(?:{PICTURE}[ \t]*)+", _gap, text)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(map(_line, text.split("\n")))).strip()


def _event(match: re.Match) -> str:
    return f"[{match['span']} {match['end']}]".lower() if match["span"] else EVENTS[match["kind"].lower()]


def _gap(match: re.Match) -> str:
    """A blank between words where a picture stood."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return " " if before.strip() and after.strip() and after not in ".,;:!?…" else ""


def _line(line: str) -> str:
    if heading := HEADING.match(line):
        return _stopped(heading[1])
    if cells := CELLS.match(line):
        return _stopped(", ".join(filter(None, map(str.strip, cells[1].split("|")))))
    if item := ITEM.match(line):
        return _stopped(line[item.end() :])
    return line


def _stopped(line: str) -> str:
    """The line with a full stop, where it ends without a mark."""
    line = line.rstrip()
    end = line.rstrip("\"'”’)]）】」』")[-1:]
    return line + ("。" if HAN_END.search(end) else ".") if end.isalnum() else line


def _width(text: str) -> int:
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def end_lines(text: str) -> str:
    """Text in lines -> with a full stop at the end of lines that were broken on purpose and end without a mark.

    A list, a heading above its text, lines of a poem. The line breaks of hard-wrapped prose are left, and a word that
    was divided at one is joined.
    """
    return "".join(_end_lines(part) for part in re.split(r"(\n\s*\n)", text))


def _end_lines(paragraph: str) -> str:
    paragraph = re.sub(r"(?<=[^\W\d_])-[ \t]*\n[ \t]*(?=[^\W\d_])(?P<rest>\w*)", _joined, paragraph)
    lines = paragraph.split("\n")
    width = max(map(_width, lines))
    for index, (line, following) in enumerate(pairwise(lines)):
        first = (following.split() or [""])[0]
        wrapped = width >= 40 and _width(line.rstrip()) + 1 + _width(first) > width
        begins = first[:1].isupper() or first[:1].isdigit() or first in BULLETS or bool(HAN_END.match(first[:1]))
        if first and begins and not wrapped:
            lines[index] = _stopped(line)
    return "\n".join(lines)


def _joined(match: re.Match) -> str:
    """The second half of a divided word; "well-" and its like keep their hyphen."""
    before = re.search(r"\w*$", match.string[max(0, match.start() - 40) : match.start()])[0].lower()
    compound = before in COMPOUNDS or not match["rest"].islower()
    return ("-" if compound else "") + match["rest"]


COMPOUNDS = frozenset(
    "well self ex non half all high low long short old new one two three four five six seven eight nine ten "
    "twenty thirty forty fifty sixty seventy eighty ninety mother father brother sister ever much".split()
)
