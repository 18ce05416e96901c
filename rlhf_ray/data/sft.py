"""From rows to SFT examples: token ids, and which of them are trained.

A completion is trained, all assistant's turns of a chat, the best answer of a preference, or the
whole of a text, a long one in pieces. The first token of a sequence is never trained: nothing
predicts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.answers import tokenize_answer
from rlhf_ray.data.borders import tokens_behind
from rlhf_ray.data.chat import apply_template, check_all_there, render
from rlhf_ray.data.errors import DataError, RowError
from rlhf_ray.data.fields import Messages
from rlhf_ray.data.loading import load
from rlhf_ray.data.pieces import is_plain_text, pieces, whole_text_tokens
from rlhf_ray.data.records import EXAMPLES, RecordKind
from rlhf_ray.data.report import Loaded
from rlhf_ray.data.row_formats import Kind
from rlhf_ray.data.samples import Sample, as_chat, best_answer
from rlhf_ray.data.shortening import beginning_of_sample
from rlhf_ray.data.tokenization import Kept, Tokenization
from rlhf_ray.data.turn_end import checked_turn_end, turn_end
from rlhf_ray.types import SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\b")


def load_sft(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int, seed: int = 0
) -> Loaded[SftExample]:
    """Read and tokenize all examples of a data set.

    Completions and texts get the tokenizer's end token; a chat ends as its template writes it. With
    `chat`, string prompts and completions go through the template as turns of user and assistant.
    An answer that was cut off gets no end.
    A truncated example keeps its *first* tokens, and is left out if none of them is trained. A
    plain text is cut into pieces instead, unless `over_length` says what else becomes of it.

    Args:
        config: Where the rows are and what becomes of them.
        tokenizer: The policy's.
        max_length: Most tokens of an example.
        seed: Of mixing.

    Raises:
        DataError: See `load`.
    """
    return load(config, Examples.of(config, tokenizer, max_length=max_length), seed=seed)


@dataclass(frozen=True, kw_only=True)
class Examples(Tokenization[SftExample]):
    """Sequences with the tokens that are trained."""

    what: ClassVar[str] = "examples"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"examples", "texts", "preferences"})
    kind: ClassVar[RecordKind[SftExample]] = EXAMPLES

    def examples(self, sample: Sample) -> Iterator[Kept[SftExample]]:
        """A plain text in pieces where that is the setting, anything else as one example."""
        if self.limit.over_length in ("auto", "split") and is_plain_text(sample):
            yield from pieces(sample, self.limit.num_tokens, self.tokenizer)
        else:
            yield self.tokenize(sample)

    def tokenize(self, sample: Sample) -> Kept[SftExample]:
        """Token ids, and what of them is trained."""
        self.limit.check_text(sample.num_characters, sample.where)
        if self.limit.truncates:
            sample = beginning_of_sample(sample, self.limit.num_tokens, self.tokenizer)
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

    def _tokens(self, sample: Sample) -> tuple[list[int], list[bool]]:
        if sample.prompt is None:
            [whole] = sample.answers_K
            if not isinstance(whole, str):
                return _tokenize_chat(whole, 0, sample.where, self.tokenizer)
            token_ids_T = whole_text_tokens(whole, self.tokenizer, sample.where).tolist()
            return token_ids_T, [True] * len(token_ids_T)
        prompt, answer = best_answer(sample)
        if not isinstance(answer, str) and len(answer) > 1:
            context = as_chat(prompt, "user")
            return _tokenize_chat(context + answer, len(context), sample.where, self.tokenizer)
        [truncated] = sample.truncated_K[:1] or (None,)
        prompt_ids_T, answer_ids_T = tokenize_answer(
            self.tokenizer,
            as_chat(prompt, "user") if self.chat else prompt,
            answer,
            is_ended=not truncated,
            is_sampled=truncated is not None,
            where=sample.where,
        )
        trained_T = [False] * len(prompt_ids_T) + [True] * len(answer_ids_T)
        return prompt_ids_T + answer_ids_T, trained_T


def _tokenize_chat(
    messages: Messages, num_context: int, where: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """Tokens of a chat; the assistant's turns after `num_context` messages are trained."""
    turns = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index >= num_context
    ]
    if not turns:
        raise RowError(where, "no message of the role 'assistant' to train")
    end = checked_turn_end(tokenizer)
    text = render(tokenizer, messages, where)
    if not tokenizer.is_fast:
        raise DataError(f"{where}: training on chats needs a fast tokenizer")
    if num_context == 0 and _GENERATION_TAG.search(str(tokenizer.chat_template)):
        marked = apply_template(
            tokenizer, messages, where, return_dict=True, return_assistant_tokens_mask=True
        )
        trained_T = [bool(mark) for mark in marked["assistant_masks"]]
        if end is not None and end.token_id is not None:
            trained_T = _to_the_ends(marked["input_ids"], trained_T, end.token_id, tokenizer)
        if any(trained_T):
            check_all_there(messages, text, where)
        return marked["input_ids"], trained_T
    spans = [_turn_span(text, messages, turn, where, tokenizer) for turn in turns]
    check_all_there(messages, text, where)
    return _tokenize_spans(text, spans, tokenizer)


def _to_the_ends(
    token_ids_T: list[int],
    trained_T: list[bool],
    end_id: int,
    tokenizer: PreTrainedTokenizerBase,
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
    text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """Tokens of a text, and which of them are in the spans; none is across a span's border."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets_T: list[tuple[int, int]] = encoded["offset_mapping"]
    borders = {border for span in spans for border in span}
    if not any(begin < border < end for border in borders for begin, end in offsets_T):
        trained_T = [
            any(begin < span_end and end > span_begin for span_begin, span_end in spans)
            for begin, end in offsets_T
        ]
        return encoded["input_ids"], trained_T
    token_ids_T: list[int] = []
    trained_T, done = [], 0
    for begin, end in [*spans, (len(text), len(text))]:
        for upto, is_trained in ((begin, False), (end, True)):
            part_T = tokens_behind(tokenizer, token_ids_T, text[:done], text[done:upto])
            token_ids_T += part_T
            trained_T += [is_trained] * len(part_T)
            done = upto
    return token_ids_T, trained_T


def _turn_span(
    text: str, messages: Messages, turn: int, where: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """Where in the rendered chat the assistant's turn begins and ends, in characters.

    It is what rendering the messages up to and with the turn adds to rendering those before it and
    the opening of an answer. What stands behind the turn's end token is the template's, not the
    policy's.
    """
    before = render(tokenizer, messages[:turn], where, add_generation_prompt=True)
    upto = render(tokenizer, messages[: turn + 1], where)
    end = turn_end(tokenizer)
    if end is not None and upto.endswith(end.text + end.rest):
        upto = upto[: len(upto) - len(end.rest)]
    if not (upto.startswith(before) and text.startswith(upto)):
        raise DataError(
            f"{where}: the chat template renders message {turn} differently when others "
            "follow, so that its tokens cannot be told apart: put {% generation %} and "
            "{% endgeneration %} around the assistant's turn in the template"
        )
    return len(before), len(upto)
