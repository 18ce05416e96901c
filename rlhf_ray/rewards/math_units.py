r"""The unit behind a mathematical term, in one spelling: `5\text{ centimeters}` and `5 cm`."""

from __future__ import annotations

import re

from rlhf_ray.rewards.numbers import bare_number
from rlhf_ray.rewards.units import is_unit

_SPELLINGS = {
    **dict.fromkeys(("centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("kilometer", "kilometre"), "km"),
    **dict.fromkeys(("meter", "metre"), "m"),
    **dict.fromkeys(("inch", "inche"), "in"),
    **dict.fromkeys(("foot", "feet"), "ft"),
    **dict.fromkeys(("liter", "litre"), "l"),
    **dict.fromkeys(("milliliter", "millilitre"), "ml"),
    **dict.fromkeys(("second", "sec"), "s"),
    **dict.fromkeys(("hour", "hr"), "h"),
    **dict.fromkeys(("percent", "percentage"), "%"),
    **dict.fromkeys(("degree", "deg"), "°"),
    "unit": "",
    **{"gram": "g", "kilogram": "kg", "milligram": "mg", "minute": "min", "yard": "yd"},
    **{"mile": "mi", "pound": "lb", "ounce": "oz"},
}
_KNOWN = "|".join(
    sorted({*_SPELLINGS, *(unit for unit in _SPELLINGS.values() if len(unit) > 1)}, key=len)
)
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*$")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*\\?%\s*\})\s*$")
_STYLED = re.compile(
    r"\s*\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{\s*(?P<name>[A-Za-z][A-Za-z ./]*)\}"
    r"\s*(?P<power>\^\{?[23]\}?)?\s*$"
)
_PLAIN = re.compile(
    rf"(?:(?<=[0-9)}}])\s*|\s+)(?P<name>(?:{_KNOWN})s?)\.?\s*(?P<power>\^\{{?[23]\}}?)?\s*$",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\s+(?P<name>[A-Za-z]{3,}(?:[ /][A-Za-z]+)*)(?P<power>)\s*$")


def with_unit(term: str) -> tuple[str, str]:
    """A term without its unit, and the unit."""
    if _PERCENT.search(term):
        return _PERCENT.sub("", term), "%"
    bare = _DEGREES.sub("", term)
    if bare != term and bare_number(bare) is not None:
        return bare, "°"
    for pattern in (_STYLED, _PLAIN, _WORDS):
        match = pattern.search(term)
        before = term[: match.start()].strip() if match else ""
        if match is None or not before or before[-1] in ",;=+-*/^_\\":
            continue
        if pattern is not _PLAIN and not is_unit(f" {match['name'].strip()}"):
            continue
        if pattern is not _WORDS or bare_number(before) is not None:
            power = re.sub("[^23]", "", match["power"] or "")
            return before, _spelling(match["name"]) + power
    return term, ""


def _spelling(name: str) -> str:
    words = name.lower().replace(".", " ").split()
    powers = {"square": "2", "sq": "2", "cubic": "3"}
    power = powers.get(words[0], "") if len(words) > 1 else ""
    if power:
        words = words[1:]
    singular = [word.rstrip("s") or word for word in words]
    return "".join(_SPELLINGS.get(word, word) for word in singular) + power
