"""Tokens as a person reads them: runs of trained and other tokens, as text safe to print."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlhf_ray.data.chat.borders import Tokenizer, response_text

MOST_CHARACTERS = 2_000  # of a run; the middle of a longer one is left out
# They turn what follows them around, or hide where it ends.
_TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, kw_only=True)
class Span:
    """Text of tokens that follow one another, all of them trained or none."""

    text: str
    is_trained: bool


def spans(
    tokenizer: Tokenizer, token_ids_T: Sequence[int], trained_T: Iterable[bool]
) -> Iterator[Span]:
    """The runs of a sequence, special tokens as they are written.

    A run is decoded behind those before it, so that spaces stay where they are. A character whose
    bytes a border parts is the later run's.

    Args:
        tokenizer: Whose ids they are.
        token_ids_T: The sequence.
        trained_T: Which of its tokens are.
    """
    runs = [(is_trained, len(list(run))) for is_trained, run in itertools.groupby(trained_T)]
    end = 0
    for number, (is_trained, length) in enumerate(runs, start=1):
        start, end = end, end + length
        text = response_text(tokenizer, token_ids_T[:start], token_ids_T[start:end], end_ids=())
        if number < len(runs):
            text = text.rstrip("\ufffd")
        yield Span(text=text, is_trained=bool(is_trained))


def printable(text: str) -> str:
    r"""The text with everything that a terminal would act upon in escapes, lines and tabs excepted.

    For example a colour's `\x1b[31m` is shown as these eight characters.
    """
    return "".join(map(_shown, text))


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, of a long one its beginning and end, and how much lies between."""
    if len(text) <= most:
        return text
    head = most * 3 // 4
    tail = most - head
    return f"{text[:head]} [... {len(text) - most:,} characters ...] {text[-tail:]}"


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
