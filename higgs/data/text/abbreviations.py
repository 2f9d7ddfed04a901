"""Abbreviations: which full stops may end a sentence, and how English abbreviations are read."""

import re

from num2words import num2words

# Before a name: the full stop ends no sentence.
TITLES = {
    "Mr": "Mister", "Mrs": "Missus", "Dr": "Doctor", "Prof": "Professor", "Gen": "General", "Adm": "Admiral",
    "Col": "Colonel", "Maj": "Major", "Sgt": "Sergeant", "Capt": "Captain", "Cpt": "Captain", "Lt": "Lieutenant",
    "Cmdr": "Commander", "Rev": "Reverend", "Hon": "Honorable", "Gov": "Governor", "Sen": "Senator",
    "Rep": "Representative", "Pres": "President", "St": "Saint", "Mt": "Mount", "Ft": "Fort",
}  # fmt: skip
STREETS = {
    "St": "Street", "Dr": "Drive", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Ln": "Lane", "Hwy": "Highway",
}  # fmt: skip
INSIDE = {"e.g": "for example", "i.e": "that is", "vs": "versus", "approx": "approximately", "a.k.a": "also known as"}
LAST = {
    "etc": "et cetera", "Jr": "Junior", "Sr": "Senior", "Inc": "Incorporated", "Ltd": "Limited", "Corp": "Corporation",
    "Co": "Company", "Dept": "Department", "Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday",
    "Thu": "Thursday", "Thurs": "Thursday", "Fri": "Friday", "Jan": "January", "Feb": "February", "Apr": "April",
    "Aug": "August", "Sept": "September", "Oct": "October", "Nov": "November", "Dec": "December",
}  # fmt: skip
BEFORE_NUMBER = {"p": "page", "pp": "pages", "vol": "volume", "ch": "chapter", "fig": "figure", "sec": "section"}
LETTERS = (
    "US|USA|UK|EU|UN|UAE|IBM|IRS|FBI|CIA|FDA|BBC|CNN|NBC|CBS|NBA|NFL|CEO|CFO|CTO|AI|TV|PC|DNA|RNA|HIV|GPS|USB|CPU|GPU|"
    "HTML|URL|PDF|ATM|GDP|"
    "(?<=[Tt]he )(?:WHO|IT)|IT(?= (?:team|department|support|staff|industry|manager|specialist)s?\\b)"
)
# The full stop of an abbreviation ends no sentence; one only before the first word of another; none before a digit.
NEVER_LAST = frozenset([*(title.lower() for title in TITLES), *INSIDE, "ms", "messrs", "cf", "dept"]) - {
    "st",
    "ft",
    "rep",
}
MAYBE_LAST = frozenset(
    "st St ft Ft rep Rep "
    "Ave Blvd Rd Jr Sr Inc Ltd Co co Corp Bros al etc ph.d Ph.D Mon Tue Tues Wed Thu Thurs Fri Sat Sun Jan Feb "
    "Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec".split()
)
BEFORE_DIGITS = frozenset("no nos n° nr fig vol p pp ch sec jan feb mar apr jun jul aug sep sept oct nov dec".split())
# After "a.m." and "p.m.", beside titles.
NAMES_OF_TIMES = frozenset("Monday Tuesday Wednesday Thursday Friday Saturday Sunday Eastern Pacific Central".split())
# First words of sentences: after them a capital letter is no sign of a name.
STARTERS = frozenset(
    "a after all although an and are as at because before but can did do does during even every for from had has "
    "have he her here his how however i if in is it its let many maybe meanwhile more most my never next no not now "
    "of on once one or our perhaps please she since so some sometimes still such that the their then there these "
    "they this those though thus to today tomorrow until was we well were what when where which while who why will "
    "with yes yesterday yet you your".split()
)
SURNAMES = frozenset({"an", "so", "who", "you"})  # "Dr. Who"

ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
NUMERAL = r"(?=[IVXLC]+\b)(?:X[LC]|L?X{0,3})(?:I[VX]|V?I{0,3})(?!\w)"
REIGNS = (
    "Henry|Louis|George|Elizabeth|Charles|Edward|William|James|Richard|John|John Paul|Paul|Pius|Benedict|Clement|"
    "Gregory|Innocent|Leo|Urban|Francis|Philip|Napoleon|Nicholas|Alexander|Catherine|Peter|Mary|Frederick|Wilhelm|"
    "Ivan|Gustav|Christian|Carl|Albert|Leopold|Ferdinand|Alfonso|Ptolemy|Ramesses|Ramses|Thutmose|Mehmed|Murad|"
    "Otto|Haakon|Harald"
)
COUNTED = (
    "Chapter|Part|Volume|Book|Section|Act|Scene|Article|Appendix|Phase|Stage|Type|Level|Class|Figure|Table|"
    "World War|Super Bowl|Title|Unit|Grade|Round|Lesson|Apollo|Rocky|Schedule"
)
STREET = re.compile(
    r"(?<![\w-])(?P<before>(?P<house>[0-9]+ )?(?:[A-Z][a-z]+ ){1,3}|[0-9]{1,3}(?:st|nd|rd|th) )"
    rf"(?P<short>{'|'.join(STREETS)})\b\.?"
)
TITLE = re.compile(rf"\b(?:(?P<bare>Mrs?|Dr)|(?P<dotted>{'|'.join(TITLES)})\.)(?= [A-Z]| and\b)")
WITHIN = re.compile(rf"(?<![\w.])(?P<short>{'|'.join(map(re.escape, INSIDE))})\.(?=,?\s)")
FINAL = re.compile(rf"(?<![\w.])(?P<short>{'|'.join(LAST)})\.")
NUMBERED = re.compile(rf"(?<![\w.])(?P<short>{'|'.join(BEFORE_NUMBER)})\.(?= [0-9])", re.IGNORECASE)
SLASHED = re.compile(r"(?<![\w/\\.:@~-])[A-Za-z]{2,}(?:/[A-Za-z]{2,}){1,3}(?![\w/\\:@-]|\.\w)")
SHORT = {"w/o": "without", "c/o": "care of", "n/a": "not applicable", "s/he": "she or he", "(s)he": "she or he"}
PER = frozenset("second minute hour day week month year night person mile gallon litre liter".split())
SHORTENED = re.compile(r"(?<![\w/])(?:w/o|c/o|[nN]/[aA]|s/he|\(s\)he)(?![\w/])")
CONSONANT = "[B-DF-HJ-NP-TV-XZ]"
CONSONANTS = rf"(?<![0-9] )(?!CHF|GBP){CONSONANT}{{2,5}}(?! ?[0-9])"  # "KGB"; beside a number: a unit
SPELLED = re.compile(rf"(?<![\w.&-])(?:{LETTERS}|{CONSONANTS})(?![\w&$-]|\.\w)")


def read_abbreviations(text: str) -> str:
    """English text -> titles, streets, Latin abbreviations, Roman numerals, signs between words, initialisms."""
    text = STREET.sub(_street, text)
    text = TITLE.sub(lambda m: TITLES[m["bare"] or m["dotted"]], text)
    text = WITHIN.sub(lambda m: INSIDE[m["short"]], text)
    text = FINAL.sub(lambda m: LAST[m["short"]] + _stop(m), text)
    text = NUMBERED.sub(lambda m: _as_written(m["short"], BEFORE_NUMBER[m["short"].lower()]), text)
    text = re.sub(rf"\b(?:{REIGNS}) (?!I\b){NUMERAL}", lambda m: _numeral(m[0], "the {}", "ordinal"), text)
    text = re.sub(rf"\b(?:{COUNTED}) {NUMERAL}", lambda m: _numeral(m[0], "{}", "cardinal"), text)
    text = re.sub(r"(?<=\w) ?&(?!\w{2,8};) ?(?=\w)", " and ", text)
    text = SHORTENED.sub(lambda m: SHORT[m[0].lower()], text)
    text = SLASHED.sub(_alternatives, text)
    if len(re.findall("[a-z]", text)) >= len(re.findall("[A-Z]", text)):
        text = SPELLED.sub(lambda m: " ".join(m[0]), text)
    return text


def _as_written(short: str, word: str) -> str:
    return word.capitalize() if short[0].isupper() else word


def _stop(match: re.Match) -> str:
    """The full stop of an abbreviation, where it ends the sentence as well."""
    rest = re.match(r"[\"'”’)\]]*\s*(\w*)", match.string[match.end() : match.end() + 40])
    last = match.end() + rest.end() >= len(match.string.rstrip()) and not rest[1]
    return "." if last or (rest[1][:1].isupper() and rest[1].lower() in STARTERS) else ""


def _street(match: re.Match) -> str:
    """ "12 Main St.", "Main St. The" -> Street; "In St. Louis" and "Dear Dr. Smith" are left to the titles."""
    named = re.match(r" ([A-Z][a-z]+)", match.string[match.end() : match.end() + 40])
    if named and match[0][-1] == "." and named[1].lower() in STARTERS - SURNAMES:
        named = None
    last = match["before"].split()[-1].lower()
    if last in STARTERS or (match["short"] in TITLES and named and not match["house"]):
        return match[0]
    return match["before"] + STREETS[match["short"]] + (_stop(match) if match[0][-1] == "." else "")


def _alternatives(match: re.Match) -> str:
    """ "his/her" -> "his or her", "and/or" -> "and or", "TCP/IP" -> "TCP IP", "miles/hour" -> per."""
    words = match[0].split("/")
    if words[-1] in PER:
        return " per ".join(words)
    return (" or " if match[0].islower() and not {"and", "or"} & {*words} else " ").join(words)


def _numeral(phrase: str, form: str, kind: str) -> str:
    name, _, numeral = phrase.rpartition(" ")
    values = [ROMAN[letter] for letter in numeral]
    value = sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    words = num2words(value, to=kind)
    return f"{name} {form.format(words.title() if kind == 'ordinal' else words)}"


def abbreviates(before: str, after: str, next_word: str, capital: bool, starter: bool) -> bool:
    """Whether the full stop after `before` belongs to an abbreviation, initial or number, and ends no sentence."""
    word = re.search(r"[\w.°]*$", before)[0]
    item = re.fullmatch(r"\W*(?:\d+|[a-z])", before)  # "1. First"
    if item or word.lower() in NEVER_LAST or (word.lower() in BEFORE_DIGITS and after[:1].isdigit()):
        return True
    if word.lower() in ("a.m", "p.m", "etc"):
        return not capital or next_word in NAMES_OF_TIMES or next_word.lower() in NEVER_LAST
    initials = re.fullmatch(r"(?:[^\W\d]\.)*[^\W\d]", word)
    return bool(after) and bool(initials or word in MAYBE_LAST) and not starter
