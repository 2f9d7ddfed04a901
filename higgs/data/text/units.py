"""Currencies, units and signs of mathematics as English nouns and words."""

DOLLARS = {
    "US": "", "A": "Australian ", "AU": "Australian ", "C": "Canadian ", "CA": "Canadian ", "NZ": "New Zealand ",
    "HK": "Hong Kong ", "S": "Singapore ", "SG": "Singapore ", "NT": "New Taiwan ",
}  # fmt: skip
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"), "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"), "¥": ("yen", "yen", "", ""), "R$": ("real", "reais", "cent", "cents"),
    "₹": ("rupee", "rupees", "paisa", "paise"), "₩": ("won", "won", "", ""), "₽": ("ruble", "rubles", "", ""),
    "₺": ("lira", "lira", "", ""), "₪": ("shekel", "shekels", "", ""), "₱": ("peso", "pesos", "", ""),
    "₫": ("dong", "dong", "", ""), "₦": ("naira", "naira", "", ""), "฿": ("baht", "baht", "", ""),
}  # fmt: skip
CURRENCIES |= {
    f"{code}$": (f"{country}dollar", f"{country}dollars", "cent", "cents") for code, country in DOLLARS.items()
}
CODES = {"USD": "$", "EUR": "€", "GBP": "£", "INR": "₹"}
MAGNITUDES = {
    "k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion", "t": "trillion",
}  # fmt: skip
LENGTHS = {
    "km": "kilometre", "cm": "centimetre", "mm": "millimetre", "m": "metre", "ft": "foot", "mi": "mile",
}  # fmt: skip
UNITS = LENGTHS | {
    "kph": "kilometre per hour", "mph": "mile per hour", "kg": "kilogram", "mg": "milligram", "g": "gram",
    "lbs": "pound", "lb": "pound", "oz": "ounce", "yd": "yard", "ml": "millilitre", "mL": "millilitre", "l": "litre",
    "L": "litre", "KB": "kilobyte", "kB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
    "kbps": "kilobit per second", "Mbps": "megabit per second", "Gbps": "gigabit per second", "kHz": "kilohertz",
    "MHz": "megahertz", "GHz": "gigahertz", "Hz": "hertz", "kWh": "kilowatt hour", "kW": "kilowatt", "W": "watt",
    "V": "volt", "dB": "decibel", "ms": "millisecond", "s": "second", "sec": "second", "secs": "second",
    "min": "minute", "mins": "minute", "hrs": "hour", "hr": "hour", "h": "hour", "tsp": "teaspoon",
    "tbsp": "tablespoon", "fps": "frame per second", "yr": "year", "yrs": "year", "wk": "week", "wks": "week",
    "mo": "month", "mos": "month", "cal": "calorie", "kcal": "kilocalorie", "kJ": "kilojoule", "gal": "gallon",
    "ha": "hectare", "psi": "pound per square inch", "rpm": "revolution per minute", "MW": "megawatt",
    "mAh": "milliampere hour", "kPa": "kilopascal", "nm": "nanometre", "µm": "micrometre", "μm": "micrometre",
    "µg": "microgram", "μg": "microgram", "mcg": "microgram",
}  # fmt: skip
UNITS |= {f"{unit}{sign}": f"square {noun}" for unit, noun in LENGTHS.items() for sign in "²2"}
UNITS |= {f"{unit}{sign}": f"cubic {noun}" for unit, noun in LENGTHS.items() for sign in "³3"}
UNITS |= {
    f"{short}{stop} {unit}": f"{word} {noun}"
    for short, word in (("sq", "square"), ("cu", "cubic"))
    for stop in ("", ".")
    for unit, noun in (LENGTHS | {"in": "inch", "yd": "yard"}).items()
}
UNITS |= {"s²": "second squared", "s2": "second squared"}
OPERATORS = {
    "+": "plus", "-": "minus", "−": "minus", "–": "minus", "×": "times", "*": "times", "÷": "divided by",
    "/": "divided by", "x": "by",
}  # fmt: skip
PREFIXES = {
    "±": "plus or minus", "√": "the square root of", "≥": "greater than or equal to", "≤": "less than or equal to",
    "≈": "approximately", "~": "about", "<": "less than", ">": "greater than",
}  # fmt: skip
