"""Numbers as English words: the rules that `higgs.data.text.numbers` applies to lines in Latin letters."""

import re
import unicodedata

from num2words import num2words

from higgs.data.text.numbers_chinese import TOKEN, Rule, read_token
from higgs.data.text.units import CODES, CURRENCIES, MAGNITUDES, OPERATORS, PREFIXES, UNITS

# Atomic: what follows a number never makes a match give back a part of it.
NUMBER = r"(?>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])|[0-9]+)(?:\.[0-9]+)?)"
START = r"(?<![\w.,:/$€£¥-])"  # not inside a word or a number
END = r"(?![\w/]|[.,:-]?[0-9])"
SIGNED = rf"(?<![\w.,:$€£¥%°])(?<!\w[-−])(?<![0-9]/)(?P<minus>[-−]?)(?P<number>{NUMBER})"

MONTHS = "January February March April May June July August September October November December".split()
MONTH = "|".join(MONTHS) + r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
DAY = r"(?P<day>0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
YEAR = r"(?P<year>1[0-9]{3}|20[0-9]{2})"
LAST_YEAR = YEAR.replace("year", "last")
# Words after a number that make it a quantity: plural nouns, not verbs that end in s.
QUANTITY = (
    r"(?=(?:\s(?:to|and|or)\s[0-9]{4})?\s(?:(?!(?:was|has|is|as|its|does|his|goes|sees|marks|begins|ends|wins|always|perhaps|versus)\b)[a-z]*[^\Wsui]s|"
    r"people|men|women|children|feet|hundred|thousand|million|billion|percent)\b)"
)
UNCOUNTED = QUANTITY.replace("(?=", "(?!", 1)
BEFORE_YEAR = (
    r"(?:Q[1-4]|FY|ca?\.)|(?i:in|fiscal|since|until|till|during|year|before|after|by|late|early|from|circa|born|died|founded|established|built|dated|spring|summer|autumn|fall|winter|AD|©|"
    + "".join(
        f"(?<!{noun} )" for noun in "total population sum average number speed height price cost distance".split()
    )
    + "of)"
)
IS = "was|is|will|saw|has|had|brought|began|started|ended|marked|marks|may|would|could|turned"


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
    irregular = {"foot": "feet", "inch": "inches", "hertz": "hertz"}
    last = first.split()[-1]
    return " per ".join([first.removesuffix(last) + irregular.get(last, f"{last}s"), *rest])


def spell_year(digits: str) -> str:
    return _integer(int(digits), "year").replace("oh-", "oh ")


def _date(day: str, month: int, year: str | None) -> str:
    words = f"{MONTHS[month - 1]} {_integer(int(day), 'ordinal')}"
    return f"{words}, {spell_year(year)}" if year else words


def _month(name: str) -> int:
    return next(i for i, month in enumerate(MONTHS, 1) if month[:3] == name[:3])


def _slashed_date(match: re.Match) -> str:
    """Month first, as in the United States, unless the first number is above 12."""
    first, second = int(match[1]), int(match[2])
    month, day = (first, second) if first <= 12 else (second, first)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return _date(str(day), month, match["year"])


def _day_month(match: re.Match) -> str:
    words = f"{match['the'] or 'the '}{_integer(int(match['day']), 'ordinal')} of {MONTHS[_month(match['month']) - 1]}"
    return f"{words}, {spell_year(match['year'])}" if match["year"] else words


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
    one, many, small_one, small_many = CURRENCIES[match["sign"].replace("￥", "¥")]
    minus = "minus " if match["minus"] else ""
    digits, upto, magnitude, per = match["number"], match["upto"], match["magnitude"], match["per"]
    per = f" per {UNITS.get(per, per)}" if per else ""
    if magnitude:
        scale = MAGNITUDES.get(magnitude.strip().lower(), magnitude.strip())
        words = number(digits) + (f" to {number(upto)}" if upto else "")
        return f"{minus}{words} {scale} {many}{per}"
    if upto:
        return f"{minus}{number(digits)} to {number(upto)} {many}{per}"
    whole, _, decimals = digits.partition(".")
    if not (len(decimals) == 2 and small_one):
        return f"{minus}{number(digits)} {one if digits == '1' else many}{per}"
    large, small = whole.replace(",", "").lstrip("0"), int(decimals)
    parts = [f"{number(whole or '0')} {one if large == '1' else many}"] if large or not small else []
    parts += [f"{_integer(small)} {small_one if small == 1 else small_many}"] if small else []
    return minus + " and ".join(parts) + per


def _unit(match: re.Match) -> str:
    """ "30s" and "1990s" may be decades, so they stay; "in." keeps the full stop of a sentence."""
    unit, per = match["unit"], match["per"]
    if unit == "s" and re.search(r"(?<![0-9.,])(?:[0-9]0|[0-9]{3,})s$", match[0]):
        return match[0]
    noun = "inch" if unit.startswith("in") else UNITS[unit]
    noun = noun if match["number"] == "1" else _plural(noun)
    return f"{_signed(match)} {noun}" + (f" per {UNITS[per]}" if per else "")


def _degrees(match: re.Match) -> str:
    scale = {"C": " Celsius", "F": " Fahrenheit", "℃": " Celsius", "℉": " Fahrenheit"}
    scale |= {"N": " north", "S": " south", "E": " east", "W": " west"}
    words = "degree" if match["number"] == "1" else "degrees"
    return f"{_signed(match)} {words}{scale.get(match['scale'][-1], '')}"


def _decade(match: re.Match) -> str:
    digits = match["decade"]
    words = _integer(int(digits), "year" if len(digits) == 4 else "cardinal")
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _fraction(match: re.Match) -> str:
    if max(len(match["top"]), len(match["bottom"])) > 15:
        return match[0]
    top, bottom = int(match["top"]), int(match["bottom"])
    if not (0 < top < bottom and bottom in (*range(2, 11), 12, 16)):
        pair = not match["whole"] and not match["minus"] and max(len(match["top"]), len(match["bottom"])) <= 2
        return f"{number(match['top'])} {number(match['bottom'])}" if pair else match[0]  # "24/7"
    part = {2: "half", 4: "quarter"}.get(bottom) or _integer(bottom, "ordinal")
    part = part if top == 1 else f"{part}s" if bottom > 2 else "halves"
    whole = f"{number(match['whole'])} and " if match["whole"] else ""
    return f"{'minus ' if match['minus'] else ''}{whole}{'a' if whole and top == 1 else _integer(top)} {part}"


def _over(match: re.Match) -> str:
    """ "120/80" -> "over"; "1/2/3" -> "slash". A slash between words would be an "or"."""
    numbers = [number(digits) for digits in match["numbers"].split("/")]
    return ("minus " if match["minus"] else "") + (" over " if len(numbers) == 2 else " slash ").join(numbers)


def _nth(match: re.Match) -> str:
    whole, _, decimals = match["number"].replace(",", "").partition(".")
    if not decimals and len(whole) > 15:
        return f"{spell_digits(whole[:-1])} {_integer(int(whole[-1]), 'ordinal')}"
    if not decimals:
        return _integer(int(whole), "ordinal")
    return f"{number(f'{whole}.{decimals[:-1]}') if decimals[1:] else f'{number(whole)} point'} " + _integer(
        int(decimals[-1]), "ordinal"
    )


def _years(match: re.Match) -> str:
    link = match["link"].strip()
    return f"{match['before'] or ''}{spell_year(match['year'])}" + (
        (f" {link} " if link.isalpha() else "/" if link == "/" else " to ") + spell_year(match["last"])
    )


def _season(match: re.Match) -> str:
    """ "2023-24" is a season, "2024-05" a month."""
    first, last = int(match["year"]) % 100, int(match["last"])
    if last > first:
        return f"{spell_year(match['year'])} to {'oh ' if last < 10 else ''}{_integer(last)}"
    return f"{MONTHS[last - 1]} {spell_year(match['year'])}" if 1 <= last <= 12 else match[0]


def _operators(expression: str) -> str:
    words = re.sub(r"(?<=[0-9])\s?([-+−–×*÷/])\s?", lambda m: f" {OPERATORS[m[1]]} ", expression)
    return re.sub(NUMBER, lambda m: number(m[0]), words)


def _phone(match: re.Match) -> str:
    groups = re.findall(r"[0-9]+|[A-Z]+", match[0])
    return ", ".join(group if group.isalpha() else spell_digits(group) for group in groups)


HALF = r"(?P<half>[ap]\.m\.|(?:[ap]m|AM|PM)\b\.?)"  # "a.m." also ends a sentence
ANY_HALF = r"(?:[ap]\.m\.|(?:[ap]m|AM|PM)\b)"
UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
SIGNS = "|".join(sorted(map(re.escape, CURRENCIES), key=len, reverse=True)) + "|￥"
MEASURE = rf"(?:{UNIT})(?:/(?:{UNIT}))?{END}"
TAIL = rf"(?=\s?(?:{MEASURE}|{ANY_HALF}|[%°℃℉])|(?:st|nd|rd|th|M|bn)\b|{END})"  # what may follow the end of a range
RULES: list[Rule] = [
    (r"(?<![\w.,])[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![\w.,]?[0-9])|(?<![\w.,])[0-9]{1,3}(?:\.[0-9]{3})*\.000\.000(?![\w.,]?[0-9])",
     lambda m: m[0].replace(".", "").replace(",", ".")),  # "1.234,56" of continental Europe
    (r"(?<![\w.,/])([0-9]*)([¼-¾⅐-⅞])",
     lambda m: f"{m[1]} {unicodedata.normalize('NFKC', m[2])}".strip().replace("⁄", "/")),
    (rf"(?<![\w.,:/-])(?<![0-9] )[0-9]{{1,3}}"
     r"(?:(?: [0-9]{3})* 000|(?<![0-9]{3})(?: [0-9]{3}){2,}|(?:[\u00a0\u2009\u202f][0-9]{3})+)"
     rf"{END}(?! [0-9]{{3}})",
     lambda m: re.sub(r"\s", "", m[0])),
    (rf"{START}{YEAR}([-/.])(?P<month>0[1-9]|1[0-2])\2(?P<day>0[1-9]|[12][0-9]|3[01]){END}",
     lambda m: _date(m["day"], int(m["month"]), m["year"])),
    (rf"{START}([0-9]{{1,2}})/([0-9]{{1,2}})/{YEAR}{END}", _slashed_date),
    (rf"{START}(?=0|1[0-2]/0)(?P<month>0[1-9]|1[0-2])/(?P<day>0[1-9]|[12][0-9]|3[01]){END}",
     lambda m: _date(m["day"], int(m["month"]), None)),
    (rf"{START}(?P<day>0?[1-9]|[12][0-9]|3[01])\.(?P<month>0?[1-9]|1[0-2])\.{YEAR}{END}",
     lambda m: _date(m["day"], int(m["month"]), m["year"])),
    (rf"\b(?P<month>{MONTH}) (?P<first>[12]?[0-9]|3[01])[-–]{DAY}(?P<end>,? {YEAR})?{END}",
     lambda m: f"{_date(m['first'], _month(m['month']), None)} to {_integer(int(m['day']), 'ordinal')}"
     + (f", {spell_year(m['year'])}" if m["year"] else "")),
    (rf"\b(?P<month>{MONTH}) {DAY}(?:,? {YEAR})?{END}",
     lambda m: _date(m["day"], _month(m["month"]), m["year"])),
    (rf"{START}(?P<the>[Tt]he )?\b{DAY} (?:of )?(?P<month>{MONTH})(?:,? {YEAR})?{END}", _day_month),
    (rf"\b(?P<month>{MONTH}),? {YEAR}{END}", lambda m: f"{MONTHS[_month(m['month']) - 1]} {spell_year(m['year'])}"),
    (rf"(?:(?<=[0-9]:[0-5][0-9])|(?<=[0-9\s][apAP][mM])|(?<=[ap]\.m\.))\s?[-–]\s?"
     rf"(?=[0-9]{{1,2}}(?:[:.][0-5][0-9]|\s?{ANY_HALF}))|(?:(?<=[%°℃℉])|(?<=°[CF]))\s?[-–]\s?(?=[0-9])",
     lambda m: " to "),
    (rf"{START}(?P<hour>[01]?[0-9]|2[0-3]):(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?(?:\s?{HALF})?{END}",
     _time),
    (rf"{START}(?P<hour>0?[1-9]|1[0-2])(?:\.(?P<minute>[0-5][0-9]))?\s?{HALF}{END}", _time),
    (rf"{START}(?P<first>[0-9]{{1,3}}):(?P<last>[0-9]{{1,2}})[-–](?=[0-9]{{1,2}}{END})",
     lambda m: f"{number(m['first'])} {number(m['last'])} to "),
    (rf"{START}(?P<first>[0-9]{{1,2}}):(?P<last>[0-9]{{1,6}}){END}",
     lambda m: f"{number(m['first'])} to {number(m['last'])}"),
    (rf"{START}(?:\+?[0-9]{{1,3}}[ -])?(?:\(?[0-9]{{3}}\)?[ -])?[0-9]{{3}}-[0-9]{{4}}{END}|"
     rf"{START}(?:1[ .])?[0-9]{{3}}(?P<mark>[ .])[0-9]{{3}}(?P=mark)[0-9]{{4}}{END}|"
     rf"(?<=(?i:call|dial|ring|text) )(?:[2-9]11|112|999|988){END}(?![-.]\w)|{START}[0-9]{{5}}-[0-9]{{4}}{END}|"
     rf"{START}0(?=(?: ?[0-9]){{8,10}}{END})[0-9]{{2,4}}(?: [0-9]{{3,6}}){{1,3}}{END}|"
     rf"{START}1-8[0-9]{{2}}-[A-Z]{{3,}}\b|"
     rf"{START}[0-9]++(?:-[0-9]++){{2,}}+{END}|"
     rf"{START}\+(?=(?:[ -]?[0-9]){{7}})[0-9]{{1,3}}(?:[ -][0-9](?=[ -]))?(?:[ -]?[0-9]{{2,}}+)++{END}", _phone),
    (rf"\b(?P<before>USD|EUR|GBP|INR)\s?(?P<number>{NUMBER}){END}|"
     rf"{START}(?P<first>{NUMBER})\s?(?P<after>USD|EUR|GBP|INR)\b",
     lambda m: CODES[m["before"] or m["after"]] + (m["number"] or m["first"])),
    (rf"(?<![\w.,])(?P<minus>[-−]?)(?P<sign>{SIGNS})\s?(?P<number>{NUMBER}|\.[0-9]{{2}}(?![0-9]))"
     rf"(?:\s?[-–]\s?[$€£¥￥]?(?P<upto>{NUMBER}))?"
     rf"(?P<magnitude>\s(?:thousand|million|billion|trillion|lakh|crore)\b|(?:[kKmMBT]|bn)\b)?(?:/(?P<per>[A-Za-z]+))?{END}",
     _money),
    (rf"{START}(?P<minus>)(?P<number>{NUMBER})(?P<upto>)(?P<magnitude>)\s?(?P<sign>[€£])(?P<per>)", _money),
    (rf"{START}(?P<number>{NUMBER})\s?¢", lambda m: f"{number(m['number'])} cent{'s' if m['number'] != '1' else ''}"),
    (rf"{START}(?P<number>{NUMBER})(?P<magnitude>M|bn|(?<=\.[0-9])[kKBT]|(?<=\.[0-9]{{2}})[kKBT]){END}",
     lambda m: f"{number(m['number'])} {MAGNITUDES[m['magnitude'].lower()]}"),
    (rf"{START}(?P<number>{NUMBER})[x×](?=[\s.,;!?)]|$)(?!\s(?:[-+=−×]|plus|equals))",
     lambda m: f"{number(m['number'])} times"),
    (rf"{START}(?P<number>{NUMBER})[eE](?P<sign>[-+−])(?P<power>[0-9]{{1,3}}){END}",
     lambda m: f"{number(m['number'])} times ten to the {'' if m['sign'] == '+' else 'minus '}{number(m['power'])}"),
    (r"(?<![\w.])(?:[Vv]ersion )?v(?=[0-9]+\.[0-9.]*+(?![\w-]))", lambda m: "version "),
    (rf"{START}[0-9]++(?:\.[0-9]++){{2,}}+{END}(?!-\w)",
     lambda m: " point ".join(number(part) for part in m[0].split("."))),
    (rf"{START}{YEAR}[-–/](?P<last>[0-9]{{2}}){END}{UNCOUNTED}", _season),
    (rf"{START}(?P<before>){YEAR}(?P<link>\s?–\s?|[-/]){LAST_YEAR}{END}{UNCOUNTED}", _years),
    (rf"\b(?P<before>[Ff]rom |[Bb]etween ){YEAR}(?P<link> (?:to|and|until|till|through) ){LAST_YEAR}{END}{UNCOUNTED}",
     _years),
    (rf"{START}(?P<expression>{NUMBER}(?:\s?[-+−–×*÷/]\s?{NUMBER}){{1,8}})\s?=\s?",
     lambda m: f"{_operators(m['expression'])} equals "),
    (r"(?<=\w)\s?=\s?(?=[-−]?[0-9])", lambda m: " equals "),
    (r"(?<=[0-9])(?:\s?(?P<sign>[×÷])\s?| (?P<spaced>[+x]) )(?=[0-9])",
     lambda m: f" {OPERATORS[m['sign'] or m['spaced']]} "),
    (r"(?:(?<=[0-9²³])|(?<=[0-9][a-z])) \+ (?=[0-9])", lambda m: " plus "),
    (r"(?<=[0-9])\+(?![\w+=])", lambda m: " plus"),
    (r"(?<![\w+)])\+(?=\.?[0-9])", lambda m: "plus "),
    (rf"{START}(?P<feet>[1-9])['′’]\s?(?P<inches>[0-9]|1[01])(?:[\"″”]|(?= tall))",
     lambda m: f"{number(m['feet'])} {'foot' if m['feet'] == '1' else 'feet'} {number(m['inches'])}"),
    (r"(?P<space>(?<=\w))?(?P<sign>[±√≥≤≈]|(?<!\S)[<>~])\s?(?=[0-9][0-9.,]*+(?!>))",
     lambda m: f"{' ' if m['space'] is not None else ''}{PREFIXES[m['sign']]} "),
    (rf"{START}(?P<first>{NUMBER})\s?(?P<unit>{UNIT})\s?[-–]\s?(?P<last>{NUMBER}\s?(?P=unit){END})",
     lambda m: f"{number(m['first'])} to {m['last']}"),
    (rf"{START}(?P<first>{NUMBER})(?:-|\s?–\s?)(?P<last>{NUMBER})(?![\d-]){TAIL}",
     lambda m: f"{number(m['first'])} to {m['last']}"),  # the end is read with what follows
    (rf"{SIGNED}\s?%", lambda m: f"{_signed(m)} percent"),
    (rf"{SIGNED}\s?(?P<scale>°\s?[CF]\b|°[NSEW]\b|[℃℉]|°(?![A-Za-z0-9]))", _degrees),
    (rf"{START}(?P<number>{NUMBER})-(?P<unit>{UNIT})(?=\s[a-z])",
     lambda m: f"{number(m['number'])}-{UNITS[m['unit']]}"),
    (rf"{SIGNED}\s?(?P<unit>{UNIT})(?:/(?P<per>{UNIT}))?{END}(?:(?<=[a-z]{{2}})\.(?=\s[a-z(]|,))?",
     _unit),
    (rf"{SIGNED} (?P<unit>in\.(?=\s[a-z(]|,)|in(?=\.\s*$|\.\s[A-Z]))(?P<per>)", _unit),
    (rf"(?<=[A-Za-z0-9])(?:[²³]|\^(?P<power>[-−]?[0-9]+){END})",
     lambda m: {"²": " squared", "^2": " squared", "³": " cubed", "^3": " cubed"}.get(m[0])
     or f" to the power of {m['power']}"),
    (r"(?<![\w.,])['’]?(?P<decade>(?:1[1-9]|20)[0-9]0|(?<=['’])[2-9]0)'?s\b", _decade),
    (r"(?<=\b(?i:his|her|mid|the)[ -])(?P<decade>[2-9]0)s\b", _decade),
    (rf"(?<![\w.,:$])(?:(?P<top>[0-9]+)/)?(?P<number>{NUMBER})(?:st|nd|rd|th|ST|ND|RD|TH)\b",
     lambda m: (f"{number(m['top'])} " if m["top"] else "") + _nth(m)),
    (rf"(?:#|\b[Nn]o(?P<many>s?)\. ?)(?P<number>{NUMBER}){END}",
     lambda m: f"number{m['many'] or ''} {number(m['number'])}"),
    (rf"{START}(?P<minus>[-−]?)(?:(?P<whole>[0-9]+) )?(?P<top>[0-9]+)/(?P<bottom>[0-9]+){END}", _fraction),
    # Not possessive: Python 3.11.2 then loses the group around it.
    (rf"{START}(?P<minus>[-−]?)(?P<numbers>{NUMBER}(?:/{NUMBER})+){END}", _over),
    (r"(?<!\S)['’](?P<last>[0-9]{2})(?![\w'’]|[^'’]*['’](?!\w))",  # no quotation
     lambda m: "oh " * (m["last"][0] == "0") + _integer(int(m["last"]))),
    (rf"(?:(?<!\w)(?P<before>(?:{BEFORE_YEAR}) |[Mm]id-|[Yy]ear was )|"
     r"(?P<the>\b(?i:the|this|our|his|her|their|a) )(?=[0-9]+ [A-Za-z])|"
     rf"(?<=[(\[])(?=[0-9]+[)\]])){YEAR}{END}{UNCOUNTED}",
     lambda m: (m["before"] or m["the"] or "") + spell_year(m["year"])),
    (rf"(?:(?:^|(?<=[.!?]\s)){YEAR}(?=\s(?:{IS})\b)|{START}(?P<last>[0-9]{{3,4}})(?=\s(?:AD|BC|CE|BCE)\b)|"
     rf"{START}{YEAR.replace('year', 'owner')}(?=['’]s\b))",
     lambda m: spell_year(m["year"] or m["last"] or m["owner"])),
    (r"(?<![\w.,:/-])(?P<minus>[-−]?)\.(?P<decimals>[0-9]+)(?!\w|\.[0-9])",
     lambda m: f"{'minus ' if m['minus'] else ''}point {spell_digits(m['decimals'])}"),
    (rf"(?<![\w.,-])(?P<minus>[-−])(?P<number>{NUMBER})(?!\w)", _signed),
    (TOKEN, lambda m: read_token(m[0], NUMBER, number)),
]  # fmt: skip
