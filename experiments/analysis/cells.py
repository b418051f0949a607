"""What a cell of somebody's table says: a number, nothing, or something a person has to look at first."""

import math
import re

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "--", "?"})
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_WITH_UNIT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kmbgt])", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:[,'\u2019\u00a0\u2009\u202f ]\d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


class NotANumber(ValueError):
    """A cell that holds something else; says in words what, and what would do."""


def number(text: str) -> float:
    """The number a cell holds, NaN where it holds none: 1e9, 70B and 1.4T are numbers; 1,000 and 12 % are not.

    A unit is one letter, k, M, B (or G), T. Raises NotANumber.
    """
    word = text.strip()
    if word.lower() in MISSING:
        return math.nan
    if unit := _WITH_UNIT.fullmatch(word):
        return float(unit[1]) * UNITS[unit[2].lower()]
    try:
        value = float(word)
    except ValueError:
        raise NotANumber(_what_is_wrong(word)) from None
    if math.isinf(value):
        raise NotANumber(f"{word!r}, which is not finite")
    return value


def has_unit(text: str) -> bool:
    """Whether a cell's number was written with a letter: 70B."""
    return _WITH_UNIT.fullmatch(text.strip()) is not None


def _what_is_wrong(word: str) -> str:
    if word.endswith("%"):
        return f"{word!r}, a percentage; write the number it stands for"
    if _THOUSANDS.fullmatch(word):
        plain = re.sub(r"[^\d.+-]", "", word)
        return f"{word!r}, which has thousands separators; write {plain}"
    if _DECIMAL_COMMA.fullmatch(word):
        return f"{word!r}, which has a decimal comma; write {word.replace(',', '.')}"
    return f"{word!r}, which is not a number"
