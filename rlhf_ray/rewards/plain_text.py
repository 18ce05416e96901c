r"""TeX, Markdown and Unicode's many ways to write a number or a unit, in plain characters.

`$\boldsymbol{-\frac{1}{2}}$` becomes `-1/2`, `1{,}000\text{ km}` becomes `1,000 km`.
"""

from __future__ import annotations

import re
import unicodedata

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
