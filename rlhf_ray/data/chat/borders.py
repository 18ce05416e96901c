"""Tokens at the border of two texts: a text's own, without an end, and those behind another text.

A tokenizer that is given the second text alone may put a space in front of it (`ti` and `me` would
read `ti me`), and given both it may merge across the border.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
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

    Both together decode to the joined texts: a word that the border parts stays joined.

    Args:
        tokenizer: Whose tokens they are.
        before_T: Tokens of `before`, as `tokenize` gives them.
        before: What stands in front.
        text: What follows.
        tokenize: `written_tokens`, or `text_tokens` where a begin token stands in front.
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
    parts is the response's. The token that ends the response is no part of its text.

    Args:
        tokenizer: Whose ids they are.
        prompt_ids_T: What the response follows.
        response_ids_T: As sampled.
        end_ids: Tokens that end a response.
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
