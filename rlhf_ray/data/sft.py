"""From rows to SFT examples: which tokens a sequence has and which of them are trained.

Three formats, recognised from the first row's columns:

* prompt and completion (`prompt_column`, `completion_column`): the completion is trained;
* `messages`, a chat: the assistant's turns are trained;
* text (`text_column`): everything is trained.

The first token of a sequence is never trained: nothing predicts it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlhf_ray.config.base import DataConfig
from rlhf_ray.data.chat import Messages, check_messages, column, render, require_chat_template
from rlhf_ray.data.files import Row, read_rows
from rlhf_ray.data.formats import DataError
from rlhf_ray.data.lengths import LengthPolicy
from rlhf_ray.types import SftExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SftFormat = Literal["prompt_completion", "messages", "text"]

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\b")


def load_sft(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[SftExample]:
    """Read and tokenize all examples of a data set, in the order of its rows.

    Completions and texts get the tokenizer's end token; a chat ends as its template writes it. With
    `chat`, string prompts and completions go through the template as turns of user and assistant.
    A truncated example keeps its *first* tokens, and is dropped if none of them is trained.

    Args:
        config: Where the rows are and what becomes of them.
        tokenizer: The policy's.
        max_length: Most tokens of an example.

    Raises:
        DataError: No data, an unknown format, a malformed row, a chat without a template, or an
            example that is too long; file and line are named.
    """
    rows = read_rows(
        config.path,
        split=config.split,
        separator=config.separator,
        text_column=config.text_column,
        skip=config.skip,
        limit=config.limit,
    )
    format_ = recognise(rows[0], config)
    policy = LengthPolicy(
        what="examples",
        limit=max_length,
        limit_name="max_length",
        over_length=config.over_length,
    )
    examples = []
    for row in rows:
        token_ids_T, trained_T = _tokenize(row, format_, config, tokenizer)
        trained_T[:1] = [False] * len(trained_T[:1])
        if not any(trained_T):
            raise DataError(f"{row.where}: no token to train in this row")
        decision = policy.decide(len(token_ids_T), row.where)
        if decision == "truncate" and not any(trained_T[:max_length]):
            policy.nothing_left()
            decision = "drop"
        if decision == "drop":
            continue
        examples.append(
            SftExample(
                example_id=row.row_id,
                token_ids_T=np.array(token_ids_T[:max_length], dtype=np.int32),
                trained_T=np.array(trained_T[:max_length], dtype=np.bool_),
            )
        )
    policy.report(config.path)
    return examples


def recognise(row: Row, config: DataConfig) -> SftFormat:
    """The format that a row's columns show.

    Raises:
        DataError: None of the three.
    """
    prompt, completion, text = config.prompt_column, config.completion_column, config.text_column
    if prompt in row.columns and completion in row.columns:
        return "prompt_completion"
    if "messages" in row.columns:
        return "messages"
    if text in row.columns:
        return "text"
    raise DataError(
        f"{row.where}: wanted the columns {prompt!r} and {completion!r}, or 'messages', or "
        f"{text!r} (set prompt_column, completion_column or text_column); columns there: "
        f"{sorted(row.columns)}"
    )


def _tokenize(
    row: Row, format_: SftFormat, config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """Token ids of one row, and which of them are trained."""
    if format_ == "messages":
        messages = check_messages(row, "messages", column(row, "messages"))
        return _tokenize_chat(messages, 0, row, tokenizer)
    if format_ == "text":
        text = _string(row, config.text_column)
        token_ids_T = _with_end(tokenizer(text)["input_ids"], row, tokenizer)
        return token_ids_T, [True] * len(token_ids_T)

    prompt, completion = column(row, config.prompt_column), column(row, config.completion_column)
    if isinstance(prompt, str) and not config.chat:
        completion = _string(row, config.completion_column)
        return _tokenize_completion(prompt, completion, row, tokenizer)
    # A chat, with either side as a string or as messages.
    context = (
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str)
        else check_messages(row, config.prompt_column, prompt)
    )
    answer = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else check_messages(row, config.completion_column, completion)
    )
    return _tokenize_chat(context + answer, len(context), row, tokenizer)


def _tokenize_completion(
    prompt: str, completion: str, row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """The prompt's tokens are those that a rollout starts from, whatever follows them.

    Where tokenizing both together keeps them, that is the natural sequence. Where it would merge
    across the border, the completion is tokenized on its own.
    """
    prompt_ids_T: list[int] = tokenizer(prompt)["input_ids"]
    token_ids_T: list[int] = tokenizer(prompt + completion)["input_ids"]
    if token_ids_T[: len(prompt_ids_T)] != prompt_ids_T:
        completion_ids_T = tokenizer(completion, add_special_tokens=False)["input_ids"]
        token_ids_T = prompt_ids_T + completion_ids_T
    token_ids_T = _with_end(token_ids_T, row, tokenizer)
    num_trained = len(token_ids_T) - len(prompt_ids_T)
    return token_ids_T, [False] * len(prompt_ids_T) + [True] * num_trained


def _tokenize_chat(
    messages: Messages, num_context: int, row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """Tokens of a chat; the assistant's turns after `num_context` messages are trained."""
    require_chat_template(tokenizer, row)
    turns = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index >= num_context
    ]
    if not turns:
        raise DataError(f"{row.where}: no message of the role 'assistant' to train")
    if num_context == 0 and _GENERATION_TAG.search(str(tokenizer.chat_template)):
        marked = render(
            tokenizer, messages, row, return_dict=True, return_assistant_tokens_mask=True
        )
        return marked["input_ids"], [bool(mark) for mark in marked["assistant_masks"]]

    text: str = render(tokenizer, messages, row, tokenize=False)
    spans = [_turn_span(text, messages, turn, row, tokenizer) for turn in turns]
    if not tokenizer.is_fast:
        raise DataError(f"{row.where}: training on chats needs a fast tokenizer")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    trained_T = [
        any(begin < span_end and end > span_begin for span_begin, span_end in spans)
        for begin, end in encoded["offset_mapping"]
    ]
    return encoded["input_ids"], trained_T


def _turn_span(
    text: str, messages: Messages, turn: int, row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """Where in the rendered chat the assistant's turn begins and ends, in characters.

    It is what rendering the messages up to and with the turn adds to rendering those before it and
    the opening of an answer. Space after the turn's end token is the template's, not the policy's.
    """
    before: str = render(
        tokenizer, messages[:turn], row, tokenize=False, add_generation_prompt=True
    )
    upto: str = render(tokenizer, messages[: turn + 1], row, tokenize=False)
    if not (upto.startswith(before) and text.startswith(upto)):
        raise DataError(
            f"{row.where}: the chat template renders message {turn} differently when others "
            "follow, so that its tokens cannot be told apart: put {% generation %} and "
            "{% endgeneration %} around the assistant's turn in the template"
        )
    ended = upto.rstrip()
    if ended.endswith(tuple(tokenizer.all_special_tokens)):
        return len(before), len(ended)
    return len(before), len(upto)


def _string(row: Row, name: str) -> str:
    value = column(row, name)
    if not isinstance(value, str) or not value:
        raise DataError(
            f"{row.where}: column {name!r} must be a string that is not empty, got {value!r:.80}"
        )
    return value


def _with_end(token_ids_T: list[int], row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise DataError(f"{row.where}: the tokenizer {tokenizer.name_or_path!r} has no end token")
    if token_ids_T and token_ids_T[-1] == tokenizer.eos_token_id:
        return token_ids_T
    return [*token_ids_T, tokenizer.eos_token_id]
