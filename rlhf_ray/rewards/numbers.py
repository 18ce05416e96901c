r"""What number a text is, all of it: `$1{,}234.50 per day` is 1234.5, `12 or 13` is none.

Exact, by fractions: 42 and 42.0 are equal, 9007199254740993 and 9007199254740992 are not. A text is
read in plain characters, whichever of the many ways of TeX, Markdown and Unicode it is written in:
`$\boldsymbol{-\frac{1}{2}}$` is `-1/2`, `1{,}000\text{ km}` is `1,000 km`.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_MINUS = dict.fromkeys(map(ord, "−–‐‑﹣"), "-")
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ",
    0x3002: ".",
}
_RAISED = {ord(raised): normal for raised, normal in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True)}
_LOWERED = {
    ord(lowered): normal for lowered, normal in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)
}
_RAISED_RUN, _LOWERED_RUN = (
    re.compile(f"[{''.join(map(chr, codes))}]+") for codes in (_RAISED, _LOWERED)
)
_CURRENCY = "$€£¥₹₽₩"

_REPLACEMENTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\([$%#&])", r"\1"),
        (r"\\(?:left|right|displaystyle|[lL]arge|LARGE|huge|Huge|bf|rm|it)(?![A-Za-z])", ""),
        (r"\\[()\[\]]", " "),
        (r"\{,\}|,\\!\s*", ","),
        (r"\\!", ""),
        (r"(?<=[0-9])~(?=\s*[\\A-Za-z])", " "),
        (r"(?<=[0-9])\s*(?:¢|\\cents?(?![A-Za-z]))", " cents"),
        (r"[\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]", " "),
        (r"\\[,:; ]|\\(?:thinspace|quad|qquad)(?![A-Za-z])|(?<=[0-9])~(?=[0-9])", "\u2009"),
        (r"\\(?:times|cdot)(?![A-Za-z])|[×·⋅]", "*"),
        (r"(?:\^\s*\{?\s*\\circ\s*\}?|°|º)\s*(?:[CF](?![A-Za-z]))?", " degrees "),
        (r"\\[dtc]?frac\s*\{\s*(-?)\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}", r" \1\2/\3 "),
        (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2 "),
        (r"\^\s*\{\s*([-+]?[0-9]+)\s*\}", r"^\1"),
        (r"(?<=[0-9A-Za-z)])\*\*(?=[0-9(])", "^"),  # Python's power, no bold text
        (r"\*\*|__|`|</?[A-Za-z][^<>\n]*>", " "),
        (r"(?<![\w*)])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*(])", r"\1"),
        (rf"-\s*[{_CURRENCY}]\s*|[{_CURRENCY}]\s*-\s*(?=[0-9.])", "-"),
        (rf"[{_CURRENCY}]", " "),
    )
)
_STYLED = re.compile(
    r"\\(?:text|mathrm|textrm|mathbf|textbf|mathit|textit|mbox|boldsymbol|bm|operatorname)"
    r"\s*\{([^{}]*)\}"
)


def plain_text(text: str) -> str:
    """The same without styles, currencies and TeX's spaces; ASCII digits and signs."""
    text = plain_characters(text)
    before = None
    while before != text:  # styles stand inside styles
        before, text = text, _STYLED.sub(r"\1", text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def plain_characters(text: str) -> str:
    """The same with ASCII digits, signs, powers and fractions; TeX and Markdown stay."""
    text = _RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
    return "".join(map(_plain_character, text.translate(_MINUS | _FULL_WIDTH)))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.decomposition(character).startswith("<fraction>"):
        top, bottom = unicodedata.normalize("NFKC", character).split("\u2044")
        return f" {top}/{bottom} " if bottom else character
    return character


_MAX_WORDS = 8

# Other one or two letters may be variables (`42x`), multiples (`42k`) or functions.
_SHORT_UNIT = re.compile(
    r"[ghmsl]|[cmkn]m|[km]g|[mdc]l|lb|oz|ft|mi|yd|hr|ha|[kmgt]b|hz|kw|[ap]m|cc|sq|pc|st|nd|rd|th"
)
_SHORT_WORD = re.compile(r"an?|at|he|i[nst]|o[fn]|so|we")
# After these the number is another one, is not exact, or is not the answer.
_CHANGING = re.compile(
    r"and|or|but|not?|nor|isn|minus|plus|divided|multiplied|over|to|than|by|if|unless|"
    r"ish|squared|cubed|factorial|pi|sqrt|root|log|ln|sin|cos|tan|mod|negative|below|remainder|"
    r"approximately|about|roughly|nearly|almost|around|maybe|perhaps|wrong|incorrect|false|"
    r"least|most|minimum|maximum|dozens?|scores?|gross|lakhs?|crores?|pairs?|half|halves|quarters?|thirds?|mil|mio|mn|bn|infinity|inf|nan|zero|one|"
    r"two|three|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|\w+illion)(?:ths?)|"
    r"(?:four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|\w+illion)s?|\w+teen|"
    r"(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)\w*",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"[^\W\d_]+")
_BEHIND = re.compile(
    r"(?P<percent>\s*%)?"
    r"(?P<words>(?:\s*[^\W\d_]+(?:\^[23](?![0-9]))?)?"
    r"(?:[\s/]+\(?[^\W\d_]+(?:\^[23](?![0-9]))?\)?(?:['’-][^\W\d_]+)?[.,]?)*)\s*"
)


def is_unit(text: str) -> bool:
    """Whether all of `text`, which stands behind a number, is a unit or words that leave it be."""
    if not _BEHIND.fullmatch(text):
        return False
    if re.search(r"\bM\b", text):  # million
        return False
    words = [word.lower() for word in _LETTERS.findall(text)]
    if len(words) > _MAX_WORDS or any(_CHANGING.fullmatch(word) for word in words):
        return False
    is_spaced = text[:1].isspace()
    return all(
        len(word) > 2 or _SHORT_UNIT.fullmatch(word) or (is_spaced and _SHORT_WORD.fullmatch(word))
        for word in words
    )


# Python takes quadratic time to read long ones, and 10^(10^9) would fill the memory.
_MAX_CHARACTERS, _MAX_EXPONENT = 1000, 400
_MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

# Between thousands; besides the comma all kinds of space: plain, thin, narrow, hard.
_SEPARATORS = ", \u2009\u202f\u00a0'’_"
_DECIMAL = "|".join(
    (
        *(rf"[0-9]{{1,3}}(?:{mark}[0-9]{{3}})+(?:\.[0-9]+)?(?![0-9])" for mark in _SEPARATORS),
        r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?(?![0-9])",  # 1,00,000 as in India
        r"[0-9]{1,3}(?:[. ][0-9]{3})+,[0-9]{1,2}(?![0-9])",  # 1.234,50 as in Europe
        r"[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9])",
        r"[0-9]+(?:\.[0-9]+)?",
        r"\.[0-9]+",
    )
)
_FRACTION = re.compile(r"(?:([0-9]+)\s+)?([0-9]+) ?/ ?([0-9]+)")
_SCIENTIFIC = re.compile(rf"({_DECIMAL})(?:[eE]| ?[*x] ?10 ?\^ ?)([-+]?[0-9]+)")
_POWER = re.compile(r"10 ?\^ ?([-+]?[0-9]+)")
_FORMS = (_FRACTION, _SCIENTIFIC, _POWER, re.compile(_DECIMAL))

# Wherever one stands in a text that `plain_text` made plain.
NUMBER = re.compile(f"[-+]?(?:{'|'.join(form.pattern for form in _FORMS)})(?![0-9]|[.,][0-9])")
_LABEL = re.compile(r"(?:the\s+)?(?:final\s+)?(?:answer|result|total)\s*(?:is|:|=)\s*", re.I)
_CURRENCY_CODE = re.compile(r"(?:US|USD|EUR|GBP|INR|CAD|AUD|Rs\.?)\s*(?=[-0-9.])", re.I)
# A quantity's name, `x_1` or `total cost`, or sums of numbers alone.
_LEFT_SIDE = re.compile(
    r"(?!.*\bnot\b)[A-Za-z][A-Za-z ]*(?:_\{?\w+\}?)?|(?:[-+*/0-9.,() ]|(?<=[0-9) ])x(?=\s*[0-9(]))+"
)


def whole_number(text: str) -> Fraction | None:
    """The number that a text is, with its unit, a name and `=` before it; `None` if it is more."""
    if len(text) > _MAX_CHARACTERS:
        return None
    plain = re.sub(r"(?<!\.)[.,;]\s*$", "", plain_text(text).strip()).strip()
    plain = _LABEL.sub("", plain, count=1) if _LABEL.match(plain) else plain
    left, equals, right = plain.rpartition("=")
    if equals:
        left = left.rpartition("=")[2].strip()
        other = bare_number(left)
        if not _LEFT_SIDE.fullmatch(left) or other not in (None, bare_number(right)):
            return None
        plain = right
    plain = _unwrapped(plain)
    code = _CURRENCY_CODE.match(plain)
    return _with_unit(plain[code.end() :] if code else plain)


def bare_number(text: str) -> Fraction | None:
    """The number that a text is without name, unit or words."""
    written = _unwrapped(plain_text(text[: _MAX_CHARACTERS + 1]))
    written = re.sub(r"^([-+])\s+", r"\1", written)
    fits = len(text) <= _MAX_CHARACTERS and NUMBER.fullmatch(written)
    return value(written) if fits else None


def value(written: str) -> Fraction | None:
    """What a match of `NUMBER` says; `None` if it divides by 0 or is too large."""
    sign = -1 if written.startswith("-") else 1
    digits = written.lstrip("+-").strip()
    if match := _FRACTION.fullmatch(digits):
        whole, top, bottom = (int(part or 0) for part in match.groups())
        return sign * (whole + Fraction(top, bottom)) if bottom else None
    if match := _POWER.fullmatch(digits):
        return _scaled(Fraction(sign), int(match[1]))
    if match := _SCIENTIFIC.fullmatch(digits):
        return _scaled(sign * _decimal(match[1]), int(match[2]))
    return sign * _decimal(digits)


def _with_unit(text: str) -> Fraction | None:
    match = NUMBER.match(re.sub(r"^([-+])\s+", r"\1", text))
    if match is None:
        return None
    number, rest = value(match[0]), match.string[match.end() :]
    if number is None:
        return None
    word, _, unit = rest.strip().partition(" ")
    if word.lower() in _MULTIPLES and rest[:1].isspace():
        return _scaled(number, _MULTIPLES[word.lower()]) if is_unit(f" {unit}") else None
    return number if is_unit(rest) else None


def _unwrapped(text: str) -> str:
    """Without the brackets or quotes around all of it."""
    text = text.strip()
    while len(text) > 1 and text[0] + text[-1] in ("()", "{}", '""', "''", "[]"):
        text = text[1:-1].strip()
    return text


def _decimal(digits: str) -> Fraction:
    if re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}|[^,]*,[0-9]{1,2}", digits):
        digits = digits.replace(".", "").replace(" ", "").replace(",", ".")
    return Fraction(re.sub(f"[{_SEPARATORS}]", "", digits))


def _scaled(number: Fraction, exponent: int) -> Fraction | None:
    return number * Fraction(10) ** exponent if abs(exponent) <= _MAX_EXPONENT else None
