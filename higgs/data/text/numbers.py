"""Numbers as words, in English and Chinese: numbers, dates, times, money, percentages, units.

The release was trained on numbers as words ("seventy degrees"), but its tools do not convert them. This step before
`higgs.data.text.normalize` is idempotent and changes only digits and their signs. Words of letters and digits ("MP3"),
addresses and speaker tags are left alone.
"""

import re
from collections.abc import Callable

from num2words import num2words

from higgs.data.text.numbers_chinese import RULES as CHINESE

Rule = tuple[str, Callable[[re.Match], str]]

PROTECTED = re.compile(r"(\[SPEAKER\d+\]|<\|[^|<>]*\|>|\b\w+://\S+|\bwww\.\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+)")
NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
START = r"(?<![\w.,:/$€£¥-])"  # not inside a word or a number
END = r"(?![\w/]|[.,:-]?[0-9])"
SIGNED = rf"(?<![\w.,:/$€£¥])(?P<minus>[-−]?)(?P<number>{NUMBER})"

MONTHS = "January February March April May June July August September October November December".split()
MONTH = "|".join(MONTHS) + r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
DAY = r"(?P<day>0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
YEAR = r"(?P<year>1[1-9][0-9]{2}|20[0-9]{2})"
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""),
}
MAGNITUDES = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion"}
UNITS = {
    "km/h": "kilometre per hour", "kph": "kilometre per hour", "mph": "mile per hour", "m/s": "metre per second",
    "km²": "square kilometre", "m²": "square metre", "m³": "cubic metre", "km": "kilometre", "cm": "centimetre",
    "mm": "millimetre", "m": "metre", "kg": "kilogram", "mg": "milligram", "g": "gram", "lbs": "pound", "lb": "pound",
    "oz": "ounce", "ft": "foot", "mi": "mile", "yd": "yard", "ml": "millilitre", "mL": "millilitre", "l": "litre",
    "L": "litre", "KB": "kilobyte", "kB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
    "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "Hz": "hertz", "kWh": "kilowatt hour",
    "kW": "kilowatt", "W": "watt", "V": "volt", "dB": "decibel", "ms": "millisecond", "min": "minute",
    "hrs": "hour", "hr": "hour", "h": "hour",
}  # fmt: skip


def spell_out(text: str) -> str:
    """-> the text with its numbers in words: lines in Latin script in English, in Chinese; others are left alone."""
    whole = line_language(text) or ("en" if not re.search(r"[^\W\d_]", text) else None)
    lines = []
    for line in text.split("\n"):
        language = line_language(line) if re.search(r"[^\W\d_]", line) else whole
        rules = {"en": ENGLISH, "zh": CHINESE}.get(language, ())
        segments = PROTECTED.split(line)
        segments[::2] = [_apply(rules, segment) for segment in segments[::2]]
        lines.append("".join(segments))
    return "\n".join(lines)


def line_language(line: str) -> str | None:
    """ "zh" where there are more Chinese characters than words in Latin letters, else "en"; None for other scripts."""
    letters = re.sub(r"[\d_\W]", "", line)
    han = len(re.findall(r"[\u3400-\u9fff]", letters))
    latin = len(re.findall(r"[A-Za-z\u00c0-\u024f]+", line))
    other = len(re.findall(r"[^\u3400-\u9fffA-Za-z\u00c0-\u024f\uff21-\uff5a\u02b0-\u036f]", letters))
    if other > 0 and other >= latin:
        return None
    return "zh" if han and han >= latin else "en" if latin else None


def _apply(rules: list[Rule], text: str) -> str:
    """Applies the rules until nothing changes: a replacement may make another match possible."""
    before = None
    while text != before and re.search(r"\d", text):
        before = text
        for pattern, say in rules:
            text = re.sub(pattern, say, text)
    return text


def _integer(value: int, kind: str = "cardinal") -> str:
    return num2words(value, to=kind).replace(",", "")


def spell_digits(digits: str) -> str:
    """ "007" -> "zero zero seven"."""
    return " ".join(_integer(int(digit)) for digit in digits if digit.isdigit())


def number(digits: str) -> str:
    """ "1,234.50" -> words. More than 15 digits, or digits that start with 0, are read one by one."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    one_by_one = len(whole) > 15 or (len(whole) > 1 and whole[0] == "0")
    words = spell_digits(whole) if one_by_one else _integer(int(whole))
    return f"{words} point {spell_digits(decimals)}" if decimals else words


def _signed(match: re.Match) -> str:
    return ("minus " if match["minus"] else "") + number(match["number"])


def _plural(noun: str) -> str:
    first, *rest = noun.split(" per ")
    plural = "feet" if first == "foot" else first if first.endswith("hertz") else f"{first}s"
    return " per ".join([plural, *rest])


def _year(year: str | None) -> str:
    return f", {_integer(int(year), 'year')}" if year else ""


def _date(day: str, month: str, year: str | None) -> str:
    return f"{month} {_integer(int(day), 'ordinal')}{_year(year)}"


def _month(name: str) -> str:
    return next(month for month in MONTHS if month[:3] == name[:3])


def _slashed_date(match: re.Match) -> str:
    """Month first, as in the United States, unless the first number is above 12."""
    first, second = int(match[1]), int(match[2])
    month, day = (first, second) if first <= 12 else (second, first)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return _date(str(day), MONTHS[month - 1], match["year"])


def _day_month(match: re.Match) -> str:
    day = f"{match['the'] or 'the '}{_integer(int(match['day']), 'ordinal')}"
    return f"{day} of {_month(match['month'])}{_year(match['year'])}"


def _time(match: re.Match) -> str:
    parts = match.groupdict()
    hour, minute, second = int(parts["hour"]), parts.get("minute"), parts.get("second")
    suffix = f" {parts['half'][0].lower()}.m." if parts.get("half") else ""
    words = _integer(hour)
    if minute and int(minute):
        words += f" {'oh ' if minute[0] == '0' else ''}{_integer(int(minute))}"
    elif minute and not suffix and not second:
        words += " o'clock" if 1 <= hour <= 12 else " hundred"
    if second:
        words += f" and {_integer(int(second))} second{'s' if int(second) != 1 else ''}"
    return words + suffix


def _money(match: re.Match) -> str:
    one, many, small_one, small_many = CURRENCIES[match["sign"].replace("US", "").replace("￥", "¥")]
    minus = "minus " if match["minus"] else ""
    digits, upto, magnitude = match["number"], match["upto"], match["magnitude"]
    if magnitude:
        scale = MAGNITUDES.get(magnitude.strip().lower(), magnitude.strip())
        words = number(digits) + (f" to {number(upto)}" if upto else "")
        return f"{minus}{words} {scale} {many}"
    if upto:
        return f"{minus}{number(digits)} to {number(upto)} {many}"
    whole, _, decimals = digits.partition(".")
    if not (len(decimals) == 2 and small_one):
        return f"{minus}{number(digits)} {one if digits == '1' else many}"
    large, small = int(whole.replace(",", "")), int(decimals)
    parts = [f"{number(whole)} {one if large == 1 else many}"] if large or not small else []
    parts += [f"{_integer(small)} {small_one if small == 1 else small_many}"] if small else []
    return minus + " and ".join(parts)


def _unit(match: re.Match) -> str:
    noun = UNITS[match["unit"]]
    return f"{_signed(match)} {noun if match['number'] == '1' else _plural(noun)}"


def _degrees(match: re.Match) -> str:
    scale = {"C": " Celsius", "F": " Fahrenheit", "℃": " Celsius", "℉": " Fahrenheit"}
    words = "degree" if match["number"] == "1" else "degrees"
    return f"{_signed(match)} {words}{scale.get(match['scale'][-1], '')}"


def _decade(match: re.Match) -> str:
    digits = match["decade"]
    words = _integer(int(digits), "year" if len(digits) == 4 else "cardinal")
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _fraction(match: re.Match) -> str:
    top, bottom = int(match["top"]), int(match["bottom"])
    if not (0 < top < bottom and bottom in (*range(2, 11), 12, 16)):
        return match[0]
    part = {2: "half", 4: "quarter"}.get(bottom) or _integer(bottom, "ordinal")
    part = part if top == 1 else f"{part}s"
    whole = f"{number(match['whole'])} and " if match["whole"] else ""
    return f"{whole}{'a' if whole and top == 1 else _integer(top)} {part}"


def _range(match: re.Match) -> str:
    """The end stays in digits: a later rule reads it together with a sign or unit that may follow."""
    first, last = match["first"], match["last"]
    if re.fullmatch(YEAR, first) and re.fullmatch(YEAR, last):
        return f"{_integer(int(first), 'year')} to {_integer(int(last), 'year')}"
    return f"{number(first)} to {last}"


def _phone(match: re.Match) -> str:
    return ", ".join(spell_digits(group) for group in re.findall(r"[0-9]+", match[0]))


HALF = r"(?P<half>[ap]\.m\.|(?:[ap]m|AM|PM)\b\.?)"  # "a.m." also ends a sentence
UNIT = "|".join(sorted((re.escape(unit) for unit in UNITS), key=len, reverse=True))
ENGLISH: list[Rule] = [
    (rf"{START}{YEAR}-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12][0-9]|3[01]){END}",
     lambda m: _date(m["day"], MONTHS[int(m["month"]) - 1], m["year"])),
    (rf"{START}([0-9]{{1,2}})/([0-9]{{1,2}})/{YEAR}{END}", _slashed_date),
    (rf"\b(?P<month>{MONTH}) {DAY}(?:,? {YEAR})?{END}", lambda m: _date(m["day"], _month(m["month"]), m["year"])),
    (rf"{START}(?P<the>[Tt]he )?\b{DAY} (?:of )?(?P<month>{MONTH})(?:,? {YEAR})?{END}", _day_month),
    (rf"\b(?P<month>{MONTH}) {YEAR}{END}", lambda m: f"{_month(m['month'])} {_integer(int(m['year']), 'year')}"),
    (r"(?<=[0-9]:[0-5][0-9])\s?[-–]\s?(?=[0-9]{1,2}:[0-5][0-9])", lambda m: " to "),
    (rf"{START}(?P<hour>[01]?[0-9]|2[0-3]):(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?(?:\s?{HALF})?{END}",
     _time),
    (rf"{START}(?P<hour>0?[1-9]|1[0-2])\s?{HALF}{END}", _time),
    (rf"{START}(?:\+?[0-9]{{1,3}}[ -])?(?:\(?[0-9]{{3}}\)?[ -])?[0-9]{{3}}-[0-9]{{4}}{END}|"
     rf"{START}\+[0-9]{{1,3}}(?:[ -]?[0-9]{{2,}})+{END}", _phone),
    (rf"(?<![\w.,])(?P<minus>[-−]?)(?P<sign>(?:US)?\$|[€£¥￥])\s?(?P<number>{NUMBER})"
     rf"(?:\s?[-–]\s?[$€£¥￥]?(?P<upto>{NUMBER}))?"
     rf"(?P<magnitude>\s(?:thousand|million|billion|trillion)\b|(?:k|K|m|M|bn|B)\b)?{END}", _money),
    (rf"{START}(?P<minus>)(?P<number>{NUMBER})(?P<upto>)(?P<magnitude>)\s?(?P<sign>[€£])", _money),
    (rf"{START}[0-9]+(?:\.[0-9]+){{2,}}{END}", lambda m: " point ".join(map(number, m[0].split(".")))),
    (rf"{START}(?P<first>{NUMBER})(?:-|\s?–\s?)(?P<last>{NUMBER})(?![\d-])", _range),
    (rf"{SIGNED}\s?%", lambda m: f"{_signed(m)} percent"),
    (rf"{SIGNED}\s?(?P<scale>°\s?[CF]\b|[℃℉°])", _degrees),
    (rf"{SIGNED}\s?(?P<unit>{UNIT}){END}", _unit),
    (r"(?<![\w.,])['’]?(?P<decade>[12][0-9]{2}0|(?<=['’])[2-9]0)'?s\b", _decade),
    (rf"{START}(?P<number>{NUMBER})(?:st|nd|rd|th)\b",
     lambda m: _integer(int(m["number"].replace(",", "")), "ordinal") if "." not in m["number"] else m[0]),
    (rf"(?:#|\b[Nn]o\. ?)(?P<number>{NUMBER}){END}", lambda m: f"number {number(m['number'])}"),
    (rf"{START}(?:(?P<whole>[0-9]+) )?(?P<top>[0-9]+)/(?P<bottom>[0-9]+){END}", _fraction),
    (rf"\b(?P<before>(?i:in|since|until|during|year|before|after|by|late|early) ){YEAR}{END}",
     lambda m: m["before"] + _integer(int(m["year"]), "year")),
    (r"(?<![\w.])\.(?P<decimals>[0-9]+)(?!\w)", lambda m: f"point {spell_digits(m['decimals'])}"),
    (rf"(?<![\w.,-])(?P<minus>[-−])(?P<number>{NUMBER})(?!\w)", _signed),
    (rf"(?<![A-Za-z0-9_])(?P<number>{NUMBER})(?!\w)", lambda m: number(m["number"])),
]  # fmt: skip
