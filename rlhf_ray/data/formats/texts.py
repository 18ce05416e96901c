"""Row formats of texts and of chats: prompts, answers and turns in all their forms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.conversations import (
    aligned,
    alpaca_prompt,
    read_prompt_column,
    with_system,
)
from rlhf_ray.data.formats.row_format import (
    ALPACA,
    Reader,
    RowFormat,
    lists_messages,
    lists_objects,
    lists_texts,
)
from rlhf_ray.data.formats.samples import Sample, best_answer
from rlhf_ray.data.json_values import Messages, is_list_of, unfolded
from rlhf_ray.data.messages import as_chat, is_written_chat, parse_messages
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.errors import RowError


def read_prompt(row: Row) -> Iterator[Sample]:
    """`prompt`: text, or a chat that the policy answers or goes on with."""
    yield Sample.of(row, read_prompt_column(row))


def read_instruction(row: Row) -> Iterator[Sample]:
    """Alpaca's instruction as a prompt alone."""
    yield Sample.of(row, alpaca_prompt(row))


def read_text(row: Row) -> Iterator[Sample]:
    """`text`."""
    yield Sample.of(row, None, fields.string(row, "text"))


def read_prompt_completion(row: Row) -> Iterator[Sample]:
    """`prompt` and `completion`, each text or messages; `truncated` where it was cut off."""
    prompt, completion = aligned(row, read_prompt_column(row), fields.answer(row, "completion"))
    truncated_K = (fields.optional_truth(row, "truncated"),)
    yield Sample.of(row, prompt, completion, truncated_K=truncated_K)


def read_unpaired(row: Row) -> Iterator[Sample]:
    """`prompt`, `completion` and a `label` that says whether it is good."""
    desirable = fields.truth(row, "label")
    for sample in read_prompt_completion(row):
        yield replace(sample, desirable=desirable)


def read_input_target(row: Row) -> Iterator[Sample]:
    """`input` and `target`, each text or messages; a target may be a number."""
    columns = {**row.columns, "prompt": fields.column(row, "input"), "completion": None}
    names = {**row.names, "prompt": row.called("input")}
    prompt = read_prompt_column(replace(row, columns=columns, names=names))
    yield Sample.of(row, *aligned(row, prompt, fields.answer(row, "target")))


def _is_no_chat(columns: Columns) -> bool:
    """A text may be about a list of messages; one that is nothing else was meant as a chat."""
    return not (isinstance(columns["text"], str) and is_written_chat(columns["text"]))


def _reads(chat_of: Callable[[Row], Messages]) -> Reader:
    """A reader of whole chats, behind the system's text that stands beside them."""

    def read(row: Row) -> Iterator[Sample]:
        yield Sample.of(row, None, with_system(row, chat_of(row)))

    return read


@_reads
def read_messages(row: Row) -> Messages:
    """`messages`: a chat with `role` and `content`, or `from` and `value`."""
    return fields.messages(row, "messages")


@_reads
def read_turns(row: Row) -> Messages:
    """`turns`: texts of user and assistant by turns, the user's first (LIMA, UltraChat)."""
    texts = [fields.checked_text(row, "turns", text) for text in fields.items(row, "turns")]
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


@_reads
def read_exchanges(row: Row) -> Messages:
    """`conversation`: a list of what was asked and answered, `input` and `output` (Capybara).

    Or `human` and `assistant` (ms-swift); the first may have a `system` as well (xtuner).
    """
    chat: Messages = []
    for number, exchange in enumerate(fields.items(row, "conversation")):
        if not isinstance(exchange, dict):
            raise RowError(row.where, "wrong type", f"exchange {number} must be an object")
        turns = list(zip(("user", "assistant"), _keys_of(exchange), strict=True))
        if exchange.get("system"):
            if number:
                detail = f"exchange {number} has a `system`, which the first alone may have"
                raise RowError(row.where, "wrong type", detail)
            turns.insert(0, ("system", "system"))
        for role, key in turns:
            content = fields.checked_text(row, f"conversation.{number}.{key}", exchange.get(key))
            chat.append({"role": role, "content": content})
    return chat


@_reads
def read_alpaca(row: Row) -> Messages:
    """`instruction` and `output`, with `input`, `system` and `history` where there are any."""
    answer = as_chat(fields.written(row, "output"), "assistant")
    return alpaca_prompt(row) + answer


@_reads
def read_calls(row: Row) -> Messages:
    """`query`, and `answers` that are calls of tools, as a list or its JSON text (xLAM)."""
    asked = {"role": "user", "content": fields.string(row, "query")}
    calling = {"role": "assistant", "tool_calls": fields.column(row, "answers")}
    return parse_messages([asked, calling], row.where, row.called("answers"))


def read_self_instruct(row: Row) -> Iterator[Sample | RowError]:
    """`instruction`, and several `instances` with an `input` and an `output` each."""
    for number, instance in enumerate(fields.items(row, "instances")):
        if not isinstance(instance, dict):
            raise RowError(row.where, "wrong type", f"instance {number} must be an object")
        row_id = f"{row.row_id}/{number}" if number else row.row_id
        yield from read_alpaca(replace(row, row_id=row_id, columns={**row.columns, **instance}))


def read_labelled_messages(row: Row) -> Iterator[Sample]:
    """`messages`, and a `label` that says whether what the assistant says last is good."""
    desirable = fields.truth(row, "label")
    whole = Sample.of(row, None, with_system(row, fields.messages(row, "messages")))
    prompt, answer = best_answer(whole)
    yield replace(whole, prompt=prompt, answers_K=(answer,), desirable=desirable)


def read_prompt_messages(row: Row) -> Iterator[Sample]:
    """`messages` (or `conversations`) beside the `prompt` with which the chat begins.

    A prompt that the chat does not hold comes before it, if the assistant goes on.
    """
    name = "messages" if row.columns.get("messages") is not None else "conversations"
    chat = fields.messages(row, name)
    if fields.is_blank(row, "prompt"):
        yield Sample.of(row, None, with_system(row, chat))
        return
    asked = as_chat(fields.text(row, "prompt"), "user")
    before, turns = aligned(row, asked, chat)
    whole = with_system(row, [*as_chat(before, "user"), *as_chat(turns, "assistant")])
    if chat[0]["role"] != "assistant":
        yield Sample.of(row, None, whole)
    else:
        yield Sample.of(row, whole[: len(whole) - len(turns)], turns)


def _keys_of(exchange: Columns) -> tuple[str, str]:
    return ("human", "assistant") if "human" in exchange else ("input", "output")


def _is_exchange(item: Any) -> bool:
    """Whether an object is what was asked and answered."""
    return isinstance(item, dict) and set(_keys_of(item)) <= item.keys()


def _has_chat(columns: Columns) -> bool:
    """Whether a chat stands beside the prompt."""
    names = ("messages", "conversations")
    return columns["prompt"] is not None and any(lists_messages(name)(columns) for name in names)


def _are_calls(columns: Columns) -> bool:
    """Whether `answers` holds calls of tools, as JSON text or as objects."""
    are_calls = lists_objects("answers", "name", "arguments")
    return unfolded(columns["answers"]) == [] or are_calls(columns)


_format = partial(RowFormat, kind="examples")
TEXT_FORMATS = (
    RowFormat(
        name="unpaired", kind="labels", columns=("prompt", "completion", "label"),
        read=read_unpaired,
    ),
    RowFormat(
        name="labelled_messages", kind="labels", columns=("messages", "label"),
        read=read_labelled_messages, prompt_columns=("messages",),
    ),
    RowFormat(
        name="labelled_sharegpt", kind="labels", columns=("conversations", "label"),
        names={"messages": "conversations"}, read=read_labelled_messages,
        prompt_columns=("conversations",),
    ),
    _format(
        name="prompt_completion", columns=("prompt", "completion"), read=read_prompt_completion,
    ),
    _format(
        name="self_instruct", columns=("instruction", "instances"), read=read_self_instruct,
        prompt_columns=("instruction", "instances"),
    ),
    _format(
        name="alpaca", columns=("instruction", "output"), read=read_alpaca, prompt_columns=ALPACA,
    ),
    _format(
        name="prompt_messages", columns=("prompt",), fits=_has_chat, read=read_prompt_messages,
        prompt_columns=("prompt", "messages", "conversations"),
    ),
    _format(
        name="messages", columns=("messages",), read=read_messages, prompt_columns=("messages",),
    ),
    _format(
        name="lima", columns=("conversations",), fits=lists_texts("conversations"),
        names={"turns": "conversations"}, read=read_turns, prompt_columns=("conversations",),
    ),
    _format(
        name="sharegpt", columns=("conversations",), names={"messages": "conversations"},
        read=read_messages, prompt_columns=("conversations", "system"),
    ),
    _format(
        name="ultrachat", columns=("data",), fits=lists_texts("data"), names={"turns": "data"},
        read=read_turns, prompt_columns=("data",),
    ),
    _format(
        name="capybara", columns=("conversation",), read=read_exchanges,
        fits=lambda columns: is_list_of(columns["conversation"], _is_exchange),
        prompt_columns=("conversation",),
    ),
    _format(
        name="conversation", columns=("conversation",), fits=lists_messages("conversation"),
        names={"messages": "conversation"}, read=read_messages, prompt_columns=("conversation",),
    ),
    _format(
        name="dolly", columns=("instruction", "context", "response"), read=read_alpaca,
        names={"input": "context", "output": "response"},
        prompt_columns=("instruction", "context", "system"),
    ),
    _format(
        name="instruction_response", columns=("instruction", "response"), read=read_alpaca,
        names={"output": "response"}, prompt_columns=ALPACA,
    ),
    _format(
        name="query_response", columns=("query", "response"), read=read_alpaca,
        names={"instruction": "query", "output": "response"},
        prompt_columns=("query", "system", "history"),
    ),
    _format(
        name="xlam", columns=("query", "answers", "tools"), fits=_are_calls, read=read_calls,
        prompt_columns=("query",),
    ),
    _format(
        name="input_target", columns=("input", "target"), read=read_input_target,
        fits=lambda columns: not {"prompt", "instruction"} & columns.keys(),
        prompt_columns=("input",),
    ),
    _format(
        name="flan", columns=("inputs", "targets"), read=read_input_target,
        fits=lambda columns: not {"prompt", "instruction", "definition"} & columns.keys(),
        names={"input": "inputs", "target": "targets"}, prompt_columns=("inputs",),
    ),
    RowFormat(
        name="stepwise", kind="prompts", columns=("prompt", "completions", "labels"),
        read=read_prompt, reads_prompt=True,
        note="labels of single steps train a process reward model, which no job here does: the "
        "prompts alone are taken",
    ),
    RowFormat(
        name="prompt_text", kind="texts", columns=("prompt", "text"), fits=_is_no_chat,
        read=read_text, prompt_columns=("prompt", "text"),
        note="all of the column text is trained, and prompt is not; to train text as the answer to "
        "prompt set data.columns: {completion: text}",
    ),
    RowFormat(name="prompt", kind="prompts", columns=("prompt",), read=read_prompt),
    RowFormat(
        name="text", kind="texts", columns=("text",), read=read_text, prompt_columns=("text",),
        # Beside a role it is a message of a conversation.
        fits=lambda columns: "role" not in columns and _is_no_chat(columns),
    ),
    RowFormat(
        name="instruction", kind="prompts", columns=("instruction",), read=read_instruction,
        fits=lambda columns: isinstance(columns["instruction"], str), prompt_columns=ALPACA,
    ),
)  # fmt: skip
