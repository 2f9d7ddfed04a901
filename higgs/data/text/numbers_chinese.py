"""Numbers as Chinese words: the rules that `higgs.data.text.numbers` applies to lines in Chinese."""

import re
import unicodedata
from collections.abc import Callable

Rule = tuple[str, Callable[[re.Match], str]]

DIGITS = "零一二三四五六七八九"
SIZES = ((10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十"))
FULL_WIDTH = str.maketrans("０１２３４５６７８９．，", "0123456789.,")
DIGIT = r"[0-9０-９]"
# Atomic, as the English one.
NUMBER = rf"(?>(?:{DIGIT}{{1,3}}(?:[,，]{DIGIT}{{3}})+(?!{DIGIT})|{DIGIT}+)(?:[.．]{DIGIT}+)?)"
# Digits and Latin letters with the marks between them: the last rule reads it as a whole or leaves it.
LETTER = "[A-Za-z0-9０-９_]"
TOKEN = rf"(?<!{LETTER}){LETTER}++(?:(?:[.,:/．-]{{1,3}}|，(?={DIGIT}{{3}}(?!{DIGIT}))){LETTER}++)*+"
MIXED = re.compile(r"[A-Za-z_][.．]?[0-9０-９]|[0-9０-９][.．]?[A-Za-z_]")
START = r"(?<![A-Za-z0-9０-９_.,:/$€£¥￥-])"
END = r"(?![A-Za-z0-9０-９_/]|[.．:：-][0-9０-９])"
SIGNED = rf"(?<![A-Za-z0-9０-９_.,:/$€£¥￥])(?P<minus>[-−－]?)(?P<number>{NUMBER})"
CURRENCIES = {
    "$": "美元", "US$": "美元", "HK$": "港元", "NT$": "新台币", "A$": "澳元", "C$": "加元", "CA$": "加元",
    "S$": "新加坡元", "€": "欧元", "£": "英镑", "¥": "元", "￥": "元", "₹": "卢比", "₩": "韩元", "₽": "卢布",
}  # fmt: skip
OPERATORS = {
    "+": "加", "-": "减", "−": "减", "–": "减", "×": "乘", "*": "乘", "÷": "除以", "/": "除以",
    "±": "正负", "√": "根号", "≥": "大于等于", "≤": "小于等于", "≈": "约等于",
    ">": "大于", "<": "小于",
}  # fmt: skip
UNITS = {
    "m/s²": "米每二次方秒",
    "km/h": "公里每小时", "m/s": "米每秒", "km²": "平方公里", "m²": "平方米", "m2": "平方米", "km2": "平方公里",
    "cm²": "平方厘米", "m³": "立方米", "m3": "立方米", "cm³": "立方厘米", "km": "公里", "cm": "厘米",
    "mm": "毫米", "m": "米", "kg": "公斤", "mg": "毫克", "g": "克", "ml": "毫升", "mL": "毫升", "L": "升",
    "l": "升", "kWh": "千瓦时", "kW": "千瓦", "W": "瓦", "V": "伏", "Hz": "赫兹", "kHz": "千赫", "MHz": "兆赫",
    "GHz": "吉赫", "dB": "分贝", "h": "小时", "min": "分钟", "s": "秒", "ms": "毫秒",
    "kcal": "千卡", "kJ": "千焦", "kPa": "千帕", "MPa": "兆帕", "mAh": "毫安时", "mA": "毫安", "ha": "公顷",
    "MW": "兆瓦", "nm": "纳米", "μm": "微米", "µm": "微米", "μg": "微克", "µg": "微克", "Mbps": "兆比特每秒",
}  # fmt: skip
# Measure words: two of them are 两, not 二.
MEASURES = (
    "个|只|条|本|位|次|天|年|件|张|名|块|辆|家|种|倍|岁|小时|分钟|周|斤|公里|公斤|米|人|杯|瓶|台|座|部|篇|首|点|元|"
    "支|头|匹|双|对|套|间|层|遍|句|段|群|秒"
)


def integer(value: int) -> str:
    """0 ... 10^16 - 1 -> words; skipped places are read as 零."""
    words = _integer(value)
    if words.startswith("一十"):
        words = words[1:]
    return re.sub("^二(?=[千万亿])", "两", words)


def _integer(value: int) -> str:
    for size, name in SIZES:
        if value >= size:
            high, low = divmod(value, size)
            rest = ("零" if low < size // 10 else "") + _integer(low) if low else ""
            return _integer(high) + name + rest
    return DIGITS[value]


def spell_digits(digits: str, one: str = "一") -> str:
    """Digits one by one; in telephone numbers 1 is 幺."""
    return "".join(DIGITS[int(digit)] for digit in digits).replace("一", one)


def number(digits: str) -> str:
    """ "1,234.50" -> words. More than 16 digits, or digits that start with 0, are read one by one."""
    whole, _, decimals = digits.translate(FULL_WIDTH).replace(",", "").partition(".")
    one_by_one = len(whole) > 16 or (len(whole) > 1 and whole[0] == "0")
    words = spell_digits(whole) if one_by_one else integer(int(whole))
    return f"{words}点{spell_digits(decimals)}" if decimals else words


def read_token(token: str, pattern: str, say: Callable[[str], str]) -> str:
    """The numbers of a token in words; the token as it is where letters touch digits ("PM2.5", "802.11ac")."""
    return token if MIXED.search(token) else re.sub(pattern, lambda m: say(m[0]), token)


def _expression(match: re.Match) -> str:
    words = re.sub(r"\s?([-+−–×*÷/])\s?", lambda m: OPERATORS[m[1]], match["expression"])
    return re.sub(NUMBER, lambda m: number(m[0]), words) + "等于"


def _counted(digits: str) -> str:
    return "两" if digits in ("2", "２") else number(digits)


def _signed(match: re.Match, say: Callable[[str], str] = number) -> str:
    return ("负" if match["minus"] else "") + say(match["number"])


def _date(match: re.Match) -> str:
    year, month, day = (match[name].translate(FULL_WIDTH) for name in ("year", "month", "day"))
    return f"{spell_digits(year)}年{integer(int(month))}月{integer(int(day))}日"


def _time(match: re.Match) -> str:
    hour, minute, second = match["hour"], match["minute"], match["second"]
    words = f"{_counted(str(int(hour)))}点"
    if int(minute) or second:
        words += f"{'零' if int(minute) < 10 and int(minute) else ''}{integer(int(minute))}分"
    return words + (f"{integer(int(second))}秒" if second else "")


def _money(match: re.Match) -> str:
    return f"{_signed(match)}{match['magnitude'] or ''}{CURRENCIES[match['sign']]}"


def _degrees(match: re.Match) -> str:
    scale = {"F": "华氏度", "℉": "华氏度", "°": "度"}.get(match["scale"][-1], "摄氏度")
    minus = "" if not match["minus"] else "负" if scale == "度" else "零下"
    return f"{minus}{number(match['number'])}{scale}"


def _fraction(match: re.Match) -> str:
    if max(len(match["top"]), len(match["bottom"])) > 16:
        return match[0]
    top, bottom = int(match["top"]), int(match["bottom"])
    return f"{integer(bottom)}分之{integer(top)}" if 0 < top < bottom else match[0]


SIGNS = "|".join(sorted(map(re.escape, CURRENCIES), key=len, reverse=True))
UNIT = "|".join(sorted((re.escape(unit) for unit in UNITS), key=len, reverse=True))
RULES: list[Rule] = [
    (rf"(?<![A-Za-z0-9０-９.,/])({DIGIT}*)([¼-¾⅐-⅞])",
     lambda m: f"{m[1]}{m[1] and '又'}{unicodedata.normalize('NFKC', m[2])}".replace("⁄", "/")),
    (rf"{START}(?P<year>{DIGIT}{{4}})[-/](?P<month>0?[1-9]|1[0-2])[-/](?P<day>[12][0-9]|3[01]|0?[1-9]){END}", _date),
    (rf"{START}(?P<year>(?:19|20)[0-9]{{2}})\.(?P<month>0?[1-9]|1[0-2])\.(?P<day>[12][0-9]|3[01]|0?[1-9]){END}",
     _date),
    (rf"{START}(?P<first>{DIGIT}{{4}})[-~～–—](?P<last>{DIGIT}{{4}})(?=年)",
     lambda m: f"{spell_digits(m['first'].translate(FULL_WIDTH))}到{spell_digits(m['last'].translate(FULL_WIDTH))}"),
    (rf"{START}(?P<year>{DIGIT}{{4}}|(?<=['’]){DIGIT}{{2}})(?=年)",
     lambda m: spell_digits(m["year"].translate(FULL_WIDTH))),
    (rf"{START}(?P<first>{DIGIT}{{4}})[-/](?P<last>{DIGIT}{{2}})(?=赛季|学年|财年)",
     lambda m: f"{spell_digits(m['first'].translate(FULL_WIDTH))}到{spell_digits(m['last'].translate(FULL_WIDTH))}"),
    (rf"{START}[5-90]0(?=后)", lambda m: spell_digits(m[0])),
    (rf"{START}[0-9]{{1,3}}(?: [0-9]{{3}})* 000{END}", lambda m: m[0].replace(" ", "")),
    (rf"{START}[0-9]++(?:\.[0-9]++){{2,}}+{END}", lambda m: "点".join(number(part) for part in m[0].split("."))),
    # "98年" is a year, "85年" after 了, 过, ... a duration.
    (rf"(?<![了过近约有共满达第续长经0-9０-９.．,]){START}(?P<year>[6-9６-９][1-9１-９])(?=年(?![来后前间内里以历]))",
     lambda m: spell_digits(m["year"].translate(FULL_WIDTH))),
    (r"(?<=[0-9][:：][0-5][0-9])\s?[-~～–—]\s?(?=[0-9]{1,2}[:：][0-5][0-9])|"
     rf"(?<=[%％℃])\s?[-~～–—]\s?(?={DIGIT})|(?<=[0-9０-９点])[~～](?=-?{DIGIT})|"
     rf"(?<=[年月日号点时])[-~～–—](?={DIGIT})",
     lambda m: "到"),
    (rf"{START}(?P<hour>[01]?[0-9]|2[0-3])[:：](?P<minute>[0-5][0-9])(?:[:：](?P<second>[0-5][0-9]))?{END}", _time),
    (rf"{START}(?:\+86[ -]?)?1[0-9]{{2}}(?P<mark>[ -]?)[0-9]{{4}}(?P=mark)[0-9]{{4}}{END}|"
     rf"{START}0[0-9]{{2,3}}-[0-9]{{7,8}}{END}|{START}[0-9]{{3,4}}-[0-9]{{3,4}}-[0-9]{{3,4}}{END}|"
     rf"(?<=[打拨线电话服])1(?:10|19|20|22|2[0-9]{{3}}|0[0-9]{{3}}){END}|(?<=[打拨线电话服])9[56][0-9]{{3,4}}{END}",
     lambda m: spell_digits(re.sub("[^0-9]", "", m[0]), "幺")),
    (rf"{START}(?P<expression>{NUMBER}(?:\s?[-+−–×*÷/]\s?{NUMBER}){{1,8}})\s?=\s?", _expression),
    (r"(?<=[0-9A-Za-z])\s?=\s?(?=[-−]?[0-9])", lambda m: "等于"),
    (r"(?<=[0-9])\s?(?P<sign>[×÷+<>])\s?(?=[0-9])|(?P<prefix>[±√≥≤≈])\s?(?=[0-9])",
     lambda m: OPERATORS[m["sign"] or m["prefix"]]),
    (rf"{START}(?P<first>{DIGIT}{{1,2}})[:：](?P<last>{DIGIT}{{1,6}}){END}",
     lambda m: f"{number(m['first'])}比{number(m['last'])}"),
    (rf"{START}(?P<first>{NUMBER})(?:[-~～–—]|\s[-–]\s)(?P<last>{NUMBER})(?![\d-])",
     lambda m: f"{number(m['first'])}到{m['last']}"),
    (rf"{SIGNED}\s?[%％]", lambda m: f"{'负' if m['minus'] else ''}百分之{number(m['number'])}"),
    (rf"{SIGNED}\s?‰", lambda m: f"{'负' if m['minus'] else ''}千分之{number(m['number'])}"),
    (rf"(?<![A-Za-z0-9.,])(?P<minus>[-−]?)(?P<sign>{SIGNS})\s?(?P<number>{NUMBER})(?P<magnitude>[万亿]?)元?",
     _money),
    (rf"{SIGNED}\s?(?P<scale>°\s?[CF]|[℃℉°])", _degrees),
    (rf"{SIGNED}\s?(?P<unit>{UNIT})(?:/(?P<per>{UNIT}))?{END}",
     lambda m: _signed(m, _counted) + UNITS[m["unit"]] + (f"每{UNITS[m['per']]}" if m["per"] else "")),
    (rf"{START}(?P<top>[0-9]+)/(?P<bottom>[0-9]+){END}", _fraction),
    (rf"{START}(?<!第)(?P<number>[2２])(?=\s?(?:{MEASURES}))", lambda m: "两"),
    (rf"(?<![A-Za-z0-9_.,])(?P<minus>[-−－])(?P<number>{NUMBER})(?![A-Za-z_])", _signed),
    (TOKEN, lambda m: read_token(m[0], NUMBER, number)),
]  # fmt: skip
