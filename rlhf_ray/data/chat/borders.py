"""Tokens at the border of two texts, and the text that tokens add behind others.

A tokenizer that is given the second text alone may put a space in front of it (`ti` and `me` would
read `ti me`), and given both it may merge across the border.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# A PreTrainedTokenizerBase of transformers, which takes a second to import.
Tokenizer: TypeAlias = Any
# A text is tokenized behind one of these where it would merge with what it really follows: a word
# that begins in its middle merges with none of them.
_ANCHORS = ("\n", "0", ".", "a")
# The last tokens of a prompt that can change how a response's first character is decoded: four
# bytes spell a character at most, and decoders treat the first piece of a text in its own way.
_CONTEXT_TOKENS = 16
_WORD_BORDER = re.compile(r"(?<=\n)(?=[^\W_])|(?<=\S)(?= [^\W_])")
_BORDER_CHARACTERS = 4096
_MOST_CHARACTERS = 2_000  # of a run that is shown; the middle of a longer one is left out
# Characters that turn what follows them around, or hide where it ends.
_TURNING = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def written_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text, without any that the tokenizer would add by itself."""
    token_ids_T: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return token_ids_T


def text_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text that something follows.

    What the tokenizer puts in front of any text (`<s>`) is there once, whether or not the text has
    it already; what it would put behind (`</s>`) is not.
    """
    token_ids_T, begin_T = written_tokens(tokenizer, text), begin_tokens(tokenizer)
    return token_ids_T if token_ids_T[: len(begin_T)] == begin_T else begin_T + token_ids_T


def begin_tokens(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts in front of any text by itself."""
    probe_T = written_tokens(tokenizer, "a")
    whole_T: list[int] = tokenizer("a", verbose=False)["input_ids"]
    for begin in range(len(whole_T) - len(probe_T) + 1):
        if whole_T[begin : begin + len(probe_T)] == probe_T:
            return whole_T[:begin]
    return []


def tokens_behind(
    tokenizer: Tokenizer,
    before_T: list[int],
    before: str,
    text: str,
    *,
    tokenize: Callable[[Tokenizer, str], list[int]] = written_tokens,
) -> list[int]:
    """Tokens of `text` where it follows `before`, which keeps its own tokens `before_T`.

    Both together decode to the joined texts: a word that the border parts stays joined. `tokenize`
    made `before_T`: `text_tokens` where a begin token stands in front.
    """
    whole_T = tokenize(tokenizer, before + text)
    if whole_T[: len(before_T)] == before_T:
        return whole_T[len(before_T) :]
    wanted = decode(tokenizer, whole_T)
    candidates = list(_behind_anchors(tokenizer, text))
    for candidate_T in candidates:
        if decode(tokenizer, before_T + candidate_T) == wanted:
            return candidate_T
    return candidates[-1]


def _behind_anchors(tokenizer: Tokenizer, text: str) -> Iterator[list[int]]:
    """Ways to tokenize a text as one that does not begin there; its tokens alone come last."""
    for anchor in _ANCHORS:
        anchor_T = written_tokens(tokenizer, anchor)
        whole_T = written_tokens(tokenizer, anchor + text)
        if whole_T[: len(anchor_T)] == anchor_T:
            yield whole_T[len(anchor_T) :]
    yield written_tokens(tokenizer, text)


def word_border(text: str, at: int) -> int:
    """A place near before `at` where tokens begin whatever the tokenizer; `at` if there is none.

    It is where a line begins with a letter or digit, or before one space and such. Behind space a
    tokenizer may count on, and some join a line's end to the full stop before it.
    """
    window_start = max(0, at - _BORDER_CHARACTERS)
    borders = list(_WORD_BORDER.finditer(text, window_start, min(at + 2, len(text))))
    places = [border.start() for border in borders if border.start() <= at]
    return places[-1] if places else at


def tokens_going_on(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text that goes on from another, as those behind the other would be."""
    return next(_behind_anchors(tokenizer, text))


def decode(tokenizer: Tokenizer, token_ids_T: Sequence[int]) -> str:
    """The text of tokens as they stand: special tokens are shown, no space is cleaned away."""
    text: Any = tokenizer.decode(
        list(token_ids_T), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def response_text(
    tokenizer: Tokenizer,
    prompt_ids_T: Sequence[int],
    response_ids_T: Sequence[int],
    *,
    end_ids: Collection[int],
) -> str:
    """What a response adds to the text of its prompt.

    Prompt and response are decoded together and cut at the border, so that leading spaces and
    special tokens (`<think>`) are there as they were sampled. A character whose bytes the border
    parts is the response's. The one of `end_ids` that ends the response is no part of its text.
    """
    response_T = list(response_ids_T)
    if response_T and response_T[-1] in end_ids:
        response_T.pop()
    context_T = list(prompt_ids_T)[-_CONTEXT_TOKENS:]
    before = decode(tokenizer, context_T)
    whole = decode(tokenizer, [*context_T, *response_T])
    # Bytes that are no character yet decode to a sign of their own, which the response replaces.
    parted = (at for at, (old, new) in enumerate(zip(before, whole, strict=False)) if old != new)
    return whole[next(parted, len(before)) :]


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


def shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
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
