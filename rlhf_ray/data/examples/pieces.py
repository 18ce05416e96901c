"""A long text as several SFT examples: every token is trained once, whatever its length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlhf_ray.data.chat.borders import Tokenizer, text_tokens, tokens_going_on, word_border
from rlhf_ray.data.chat.turn_end import with_end
from rlhf_ray.data.examples.tokenization import Kept
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.errors import RowError, UnusableRow
from rlhf_ray.types import IntArray, SftExample

# Tokenized at a time: what a tokenizer holds of a text is 150 times the text.
_SECTION_CHARACTERS = 1 << 20


def is_plain_text(sample: Sample) -> bool:
    """Whether it is one text, all of which is trained."""
    return sample.prompt is None and any(isinstance(text, str) for text in sample.answers_K)


def pieces(sample: Sample, max_length: int, tokenizer: Tokenizer) -> Iterator[Kept[SftExample]]:
    """A plain text in pieces of `max_length` tokens; a short one is the only piece.

    The first token of a sequence is not trained, so a piece begins with the last token of the one
    before, and each token but the text's first is trained exactly once. Pieces are numbered behind
    the id of their row.

    Raises:
        RowError: No token to train.
        UnusableRow: An empty text.
    """
    text = sample.answers_K[0]
    assert isinstance(text, str)
    token_ids_T = whole_text_tokens(text, tokenizer, sample.where)
    if len(token_ids_T) < 2 or max_length < 2:
        raise RowError(sample.where, "no token to train in this row")
    is_cut = len(token_ids_T) > max_length
    for number, start in enumerate(range(0, len(token_ids_T) - 1, max_length - 1)):
        piece_T = token_ids_T[start : start + max_length].copy()
        trained_T = np.ones(len(piece_T), dtype=np.bool_)
        trained_T[0] = False
        example = SftExample(
            example_id=f"{sample.sample_id}/{number}" if is_cut else sample.sample_id,
            token_ids_T=piece_T,
            trained_T=trained_T,
        )
        yield Kept(row=example, is_piece=is_cut)


def whole_text_tokens(text: str, tokenizer: Tokenizer, where: str) -> IntArray:
    """All tokens of a text that is trained whole, its end token included.

    Raises:
        UnusableRow: An empty text.
    """
    if not text.strip():
        raise UnusableRow(where, "empty text")
    first, *others = _sections(text)
    parts = [np.array(text_tokens(tokenizer, first), dtype=np.int32)]
    parts += [np.array(tokens_going_on(tokenizer, part), dtype=np.int32) for part in others]
    last_T = with_end(tokenizer, parts[-1].tolist())
    return np.concatenate([*parts[:-1], np.array(last_T, dtype=np.int32)])


def _sections(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _SECTION_CHARACTERS:
        stop = word_border(text, start + _SECTION_CHARACTERS)
        yield text[start:stop]
        start = stop
    yield text[start:]
