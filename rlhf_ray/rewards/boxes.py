r"""What a response puts into `\boxed{}`, where that is all of its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What stands beside a box is looked at no further: patterns take long on long space.
_BESIDE = 40
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# No units, of the words behind a box: `\boxed{42} of 50`.
_UNIT = r"(?!(?:of|in|at|on|is|as|for|from|after|since|because|then|so|but|not)\b)[A-Za-z]+"
# What makes a box a part of a term, inexact, or one of two.
_NOT_BEFORE = re.compile(
    r"(?:[0-9^]|(?<![-+/])[-+/]|\\(?:times|cdot|div|sqrt|frac)\s*\{?|[}^_]\s*\{"
    r"|(?:\\(?:approx|sim|pm|ne|neq|le|leq|ge|geq|lt|gt)(?![a-z])|[≈≠≤≥~±]|[^\n=-][<>])\s*"
    r"|(?:\b(?:not|or|than|least|most|about|approximately|roughly|around|nearly"
    r"|almost)|n't)\s+\$*)\Z",
    re.IGNORECASE,
)
_NOT_BEHIND = re.compile(
    r"\s*[\^!]|_\{?[0-9]|\([0-9]|[A-Za-z](?![A-Za-z])|[.,:][0-9]"
    r"|\s*(?:[-+*/]\s*[0-9]|\\(?:times|cdot|div|pm|sqrt|frac|pi)(?![a-z]))"
    r"|[^\S\n]*\$*[^\S\n]*(?:[0-9?]|\(?\s*(?:or|to)\s|and\s+a\s+half"
    rf"|{_UNIT}\s+(?:and\s+)?\$*[0-9]|(?:dozen|hundred|thousand|[mbtr]+illion)s?\b)",
    re.IGNORECASE,
)
# What stands between two boxes of one list.
_JOINS = re.compile(
    r"(?=.*(?:[,;&]|and|or))[\s$]*(?:\\[)\]])?\s*[,;&]?\s*(?:\\text\s*\{\s*)?(?:and|or)?"
    r"\s*\}?[\s$]*(?:\\[(\[])?\s*"
    # 5 hours and 30 minutes.
    rf"|[^\S\n$]*{_UNIT}(?:[^\S\n]+and)?[^\S\n]+\$*",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Marked:
    """Text that a response marks as its answer.

    Attributes:
        begin: Where the mark begins in the response.
        end: Where the marked text ends.
    """

    text: str
    begin: int
    end: int


def last_boxed(text: str) -> Marked | None:
    r"""The last `\boxed{...}`, braces balanced; of a list in boxes, `\boxed{3} and \boxed{4}`, all.

    Its text is empty where it is not closed, or is a part of a term: `2\boxed{3}^2`.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    # A box around a box is one: `\boxed{\boxed{42}}`.
    last = _boxed(text, boxes.pop())
    before = text[max(0, last.begin - _BESIDE) : last.begin]
    if _NOT_BEFORE.search(before) or _NOT_BEHIND.match(text[last.end : last.end + _BESIDE]):
        return Marked(text="", begin=last.begin, end=last.end)
    while boxes:
        other = _boxed(text, boxes.pop())
        is_near = 0 <= last.begin - other.end <= _BESIDE
        if not (is_near and _JOINS.fullmatch(text[other.end : last.begin])):
            break
        both = last.text if other.text == last.text else f"{other.text}, {last.text}"
        last = Marked(text=both, begin=other.begin, end=last.end)
    return last


def _boxed(text: str, box: re.Match[str]) -> Marked:
    begin, start = box.span()
    depth = 1
    for position in range(start, len(text)):
        escaped = text[position - 1] == "\\"
        depth += 0 if escaped else (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return Marked(text=text[start:position].strip(), begin=begin, end=position + 1)
    return Marked(text="", begin=begin, end=len(text))
