"""From rows to SFT examples: token ids, and which of them are trained.

A completion is trained, all assistant's turns of a chat, the best answer of a preference, or the
whole of a text, a long one in pieces. The first token of a sequence is never trained: nothing
predicts it. A chat is one example where its template renders a turn's context alike whatever
follows, and several otherwise.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from rlhf_ray.data.chat.answers import tokenize_answers
from rlhf_ray.data.chat.borders import (
    Tokenizer,
    text_tokens,
    tokens_behind,
    tokens_going_on,
    word_border,
)
from rlhf_ray.data.chat.template import ChatTemplate
from rlhf_ray.data.chat.turn_end import checked_turn_end, with_end
from rlhf_ray.data.chat.turns import Rendering, check_reasoning, renderings
from rlhf_ray.data.chat_options import template_options
from rlhf_ray.data.examples.lengths import beginning_of_sample, enough_characters
from rlhf_ray.data.examples.tokenization import Kept, Tokenization
from rlhf_ray.data.formats.row_format import Kind
from rlhf_ray.data.formats.samples import Sample, asks_nothing, best_answer, is_silent, is_trained
from rlhf_ray.data.json_values import Messages, Text
from rlhf_ray.data.messages import as_chat
from rlhf_ray.data.rows.records import EXAMPLES, RecordKind
from rlhf_ray.errors import DataError, RowError, UnusableRow
from rlhf_ray.types import IntArray, SftExample

# Tokenized at a time: what a tokenizer holds of a text is 150 times the text.
_SECTION_CHARACTERS = 1 << 20
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\b")


@dataclass(frozen=True, kw_only=True)
class RenderedChat(Sample):
    """A chat, or its beginning, as the template renders it."""

    rendering: Rendering


@dataclass(frozen=True, kw_only=True)
class Examples(Tokenization[SftExample]):
    """Sequences with the tokens that are trained.

    Completions and texts get the tokenizer's end token; a chat ends as its template writes it. With
    `chat`, string prompts and completions go through the template as turns of user and assistant.
    An answer that was cut off gets no end.
    A truncated example keeps its *first* tokens, and is left out if none of them is trained. A
    plain text is cut into pieces instead, unless `over_length` says what else becomes of it.
    """

    what: ClassVar[str] = "examples"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"examples", "texts", "preferences"})
    kind: ClassVar[RecordKind[SftExample]] = EXAMPLES

    def examples(self, sample: Sample) -> Iterator[Kept[SftExample] | RowError]:
        """A plain text in pieces where that is the setting, anything else as one example."""
        if self.limit.over_length in ("auto", "split") and _is_plain_text(sample):
            yield from _pieces(sample, self.limit.num_tokens, self.tokenizer)
        else:
            yield self.tokenize(sample)

    def parts(self, sample: Sample) -> Iterator[Sample | RowError]:
        """A chat as few texts in which all its turns stand; anything else as it is."""
        chat, turns = _trained_turns(sample)
        is_whole = sample.prompt is None
        if not turns or (is_whole and _marks_itself(self.tokenizer)):
            yield sample
            return
        self.limit.check_text(sample.num_characters, sample.where)
        self.limit.fits(len(turns), sample.where)  # each has one token at least
        if self.limit.truncates:
            turns = self._within_reach(chat, turns)
        rendered = list(renderings(self._template(sample), chat, turns))
        for number, rendering in enumerate(rendered):
            id_ = f"{sample.sample_id}/{number}" if len(rendered) > 1 else sample.sample_id
            yield RenderedChat(sample_id=id_, where=sample.where, prompt=None, rendering=rendering)

    def tokenize(self, sample: Sample) -> Kept[SftExample]:
        """Token ids, and what of them is trained."""
        self.limit.check_text(sample.num_characters, sample.where)
        if self.limit.truncates:
            sample = self._shortened(sample)
        token_ids_T, trained_T = self._tokens(sample)
        trained_T[:1] = [False] * len(trained_T[:1])
        if not any(trained_T):
            raise RowError(sample.where, "no token to train in this row")
        fits = self.limit.fits(len(token_ids_T), sample.where)
        limit = self.limit.num_tokens
        if not any(trained_T[:limit]):
            raise self.limit.nothing_left(sample.where)
        example = SftExample(
            example_id=sample.sample_id,
            token_ids_T=np.array(token_ids_T[:limit], dtype=np.int32),
            trained_T=np.array(trained_T[:limit], dtype=np.bool_),
        )
        return Kept(row=example, truncated=not fits)

    def _within_reach(self, chat: Messages, turns: list[int]) -> list[int]:
        """The first turn, and others whose context may fit: each is rendered behind its own."""
        reach = self.limit.num_tokens * self.limit.longest_token
        # Earlier reasoning may not be part of a context.
        lengths = (len(message["content"].rpartition("</think>")[2]) for message in chat)
        before = list(itertools.accumulate(lengths, initial=0))
        return [turn for turn in turns if turn == turns[0] or before[turn] <= reach]

    def _shortened(self, sample: Sample) -> Sample:
        """What holds the tokens that are kept, so that no more of it is tokenized."""
        num_tokens = self.limit.num_tokens
        if not isinstance(sample, RenderedChat):
            return beginning_of_sample(sample, num_tokens, self.tokenizer)
        end = enough_characters(sample.rendering.text, num_tokens, self.tokenizer)
        return replace(sample, rendering=sample.rendering.up_to(end))

    def _tokens(self, sample: Sample) -> tuple[list[int], list[bool]]:
        if isinstance(sample, RenderedChat):
            return _tokenize_spans(sample.rendering, sample.where, self.tokenizer)
        if sample.prompt is None:
            [whole] = sample.answers_K
            if not isinstance(whole, str):
                return _marked(self._template(sample), whole)
            token_ids_T = _whole_text_tokens(whole, self.tokenizer, sample.where).tolist()
            return token_ids_T, [True] * len(token_ids_T)
        prompt, answer = best_answer(sample)
        [(prompt_ids_T, answer_ids_T)] = tokenize_answers(
            self.tokenizer,
            as_chat(prompt, "user") if self.chat else prompt,
            [answer],
            truncated_K=sample.truncated_K,
            columns=sample.columns,
            where=sample.where,
        )
        trained_T = [False] * len(prompt_ids_T) + [True] * len(answer_ids_T)
        return prompt_ids_T + answer_ids_T, trained_T

    def _template(self, sample: Sample) -> ChatTemplate:
        options = template_options(sample.columns, sample.where)
        return ChatTemplate(tokenizer=self.tokenizer, where=sample.where, options=options)


def _trained_turns(sample: Sample) -> tuple[Messages, list[int]]:
    """A chat of which turns are trained, and which; no turns where there is none such."""
    if sample.prompt is None:
        [whole] = sample.answers_K
        context: Text = []
    else:
        context, whole = best_answer(sample)
    if isinstance(whole, str):
        return [], []
    num_context = len(as_chat(context, "user"))
    turns = [index for index, message in enumerate(whole) if message["role"] == "assistant"]
    if not turns:
        raise UnusableRow(sample.where, "no message of the role 'assistant' to train")
    turns = [index for index in turns if is_trained(whole[index])]
    if not turns:
        raise UnusableRow(sample.where, "no turn of the assistant is to be trained")
    chat = as_chat(context, "user") + whole
    turns = [num_context + index for index in turns]
    for index in turns:
        if is_silent(chat[index]):
            raise UnusableRow(sample.where, "empty answer", f"message {index}")
        if index and asks_nothing(chat[index - 1]):
            raise UnusableRow(sample.where, "empty prompt", f"message {index - 1}")
    if sample.prompt is not None and len(whole) == 1:
        return [], []  # an answer to a prompt
    return chat, turns


def _marks_itself(tokenizer: Tokenizer) -> bool:
    """Whether a chat template says itself what is trained."""
    return bool(_GENERATION_TAG.search(str(tokenizer.chat_template)))


def _marked(template: ChatTemplate, chat: Messages) -> tuple[list[int], list[bool]]:
    """Tokens of a chat; what its template marks is trained, but for turns that are not to be."""
    tokenizer = template.tokenizer
    end = checked_turn_end(tokenizer)
    _check_fast(tokenizer, template.where)
    if end is not None and not end.is_written:
        detail = f"{template.where}: the chat template marks answers and writes no end behind them"
        raise DataError(f"{detail}: put {{{{ eos_token }}}} before {{% endgeneration %}}")
    marked = template.apply(chat, return_dict=True, return_assistant_tokens_mask=True)
    token_ids_T = marked["input_ids"]
    trained_T = [bool(mark) for mark in marked["assistant_masks"]]
    if end is not None and end.token_id is not None:
        trained_T = _to_the_ends(token_ids_T, trained_T, end.token_id, tokenizer)
    text = template.render(chat)
    if any(trained_T):
        template.check_all_there(chat, text)
    turns = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    kept = [index for index in turns if is_trained(chat[index])]
    unmarked = ["take {% generation %} out of the template, which then renders turn by turn,"]
    for index in kept:
        check_reasoning(template, text, chat[index], index, more=unmarked)
    if len(kept) == len(turns):
        return token_ids_T, trained_T
    found, *others = renderings(template, chat, kept)
    ids_T, inside_T = _tokenize_spans(found, template.where, tokenizer)
    if others or ids_T != token_ids_T:
        detail = "the chat template marks what is trained, and renders earlier turns differently"
        raise RowError(template.where, "turns of weight 0 cannot be told apart", detail)
    return ids_T, [mark and inside for mark, inside in zip(trained_T, inside_T, strict=True)]


def _to_the_ends(
    token_ids_T: list[int], trained_T: list[bool], end_id: int, tokenizer: Tokenizer
) -> list[bool]:
    """What a template marks, each turn up to its end token, whether or not the mark is as long.

    Without it a policy would never learn to end; space behind it is the template's own.
    """
    kept, behind_end = list(trained_T), False
    for index, token_id in enumerate(token_ids_T):
        if token_id == end_id:
            kept[index] = behind_end = index > 0 and (trained_T[index] or kept[index - 1])
        elif behind_end and not tokenizer.decode([token_id]).strip():
            kept[index] = False
        else:
            behind_end = False
    return kept


def _tokenize_spans(
    rendering: Rendering, where: str, tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    """Tokens of a text, and which of them are in the spans; none is across a span's border."""
    _check_fast(tokenizer, where)
    text, spans = rendering.text, rendering.spans
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    inside_T = inside_spans(encoded["offset_mapping"], spans)
    if inside_T is not None:
        return encoded["input_ids"], inside_T
    token_ids_T: list[int] = []
    trained_T, done = [], 0
    for begin, end in [*spans, (len(text), len(text))]:
        for upto, is_inside in ((begin, False), (end, True)):
            part_T = tokens_behind(tokenizer, token_ids_T, text[:done], text[done:upto])
            token_ids_T += part_T
            trained_T += [is_inside] * len(part_T)
            done = upto
    return token_ids_T, trained_T


def inside_spans(
    offsets_T: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[bool] | None:
    """Which tokens are in the spans, these rising; None where a token is across a border.

    By bisection: a chat may have thousands of turns.
    """
    begins_T, ends_T = np.array(offsets_T, dtype=np.int64).reshape(-1, 2).T
    begins, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    borders = np.union1d(begins, ends)
    before_T = np.searchsorted(borders, begins_T, side="right")
    if np.any(before_T < np.searchsorted(borders, ends_T, side="left")):
        return None
    # Of each token the first span that ends behind its begin.
    span_T = np.searchsorted(ends, begins_T, side="right")
    inside_T = span_T < len(ends)
    inside_T[inside_T] = begins[span_T[inside_T]] < ends_T[inside_T]
    return list(map(bool, inside_T))


def _check_fast(tokenizer: Tokenizer, where: str) -> None:
    if not tokenizer.is_fast:
        raise DataError(f"{where}: training on chats needs a fast tokenizer")


def _is_plain_text(sample: Sample) -> bool:
    """Whether it is one text, all of which is trained."""
    return sample.prompt is None and any(isinstance(text, str) for text in sample.answers_K)


def _pieces(sample: Sample, max_length: int, tokenizer: Tokenizer) -> Iterator[Kept[SftExample]]:
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
    token_ids_T = _whole_text_tokens(text, tokenizer, sample.where)
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


def _whole_text_tokens(text: str, tokenizer: Tokenizer, where: str) -> IntArray:
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
