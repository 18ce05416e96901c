"""The formats of examples that there are: chats, prompts with completions, instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_ray.data.formats import plain
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.row import Columns

ALPACA = ("instruction", "input", "system", "history")


def lists_objects(name: str, *keys: str) -> Callable[[Columns], bool]:
    """Whether a column is a list of objects that all have these keys, or its JSON text."""
    return lambda columns: _is_list_of(columns[name], lambda item: set(keys) <= item.keys())


def _lists_texts(name: str) -> Callable[[Columns], bool]:
    def fits(columns: Columns) -> bool:
        items = unfolded(columns[name])
        return isinstance(items, list) and bool(items) and all(isinstance(i, str) for i in items)

    return fits


def _lists_messages(name: str) -> Callable[[Columns], bool]:
    return lambda columns: _is_list_of(
        columns.get(name), lambda item: {"role", "from"} & item.keys()
    )


def _is_list_of(value: Any, fits: Callable[[dict[str, Any]], Any]) -> bool:
    items = unfolded(value)
    is_list = isinstance(items, list) and bool(items)
    return is_list and all(isinstance(item, dict) and fits(item) for item in items)


def _has_chat(columns: Columns) -> bool:
    """Whether a chat stands beside the prompt."""
    names = ("messages", "conversations")
    return columns["prompt"] is not None and any(_lists_messages(name)(columns) for name in names)


def _are_calls(columns: Columns) -> bool:
    """Whether `answers` holds calls of tools, as JSON text or as objects."""
    are_calls = lists_objects("answers", "name", "arguments")
    return unfolded(columns["answers"]) == [] or are_calls(columns)


EXAMPLE_FORMATS = (
    RowFormat(
        name="prompt_completion",
        kind="examples",
        columns=("prompt", "completion"),
        read=plain.read_prompt_completion,
    ),
    RowFormat(
        name="self_instruct",
        kind="examples",
        columns=("instruction", "instances"),
        read=plain.read_self_instruct,
        prompt_columns=("instruction", "instances"),
    ),
    RowFormat(
        name="alpaca",
        kind="examples",
        columns=("instruction", "output"),
        read=plain.read_alpaca,
        prompt_columns=ALPACA,
    ),
    RowFormat(
        name="prompt_messages",
        kind="examples",
        columns=("prompt",),
        fits=_has_chat,
        read=plain.read_prompt_messages,
        prompt_columns=("prompt", "messages", "conversations"),
    ),
    RowFormat(
        name="messages",
        kind="examples",
        columns=("messages",),
        read=plain.read_messages,
        prompt_columns=("messages",),
    ),
    RowFormat(
        name="lima",
        kind="examples",
        columns=("conversations",),
        fits=_lists_texts("conversations"),
        names={"turns": "conversations"},
        read=plain.read_turns,
        prompt_columns=("conversations",),
    ),
    RowFormat(
        name="sharegpt",
        kind="examples",
        columns=("conversations",),
        read=plain.read_sharegpt,
        prompt_columns=("conversations", "system"),
    ),
    RowFormat(
        name="ultrachat",
        kind="examples",
        columns=("data",),
        fits=_lists_texts("data"),
        names={"turns": "data"},
        read=plain.read_turns,
        prompt_columns=("data",),
    ),
    RowFormat(
        name="capybara",
        kind="examples",
        columns=("conversation",),
        fits=lambda columns: _is_list_of(columns["conversation"], plain.is_exchange),
        read=plain.read_exchanges,
        prompt_columns=("conversation",),
    ),
    RowFormat(
        name="conversation",
        kind="examples",
        columns=("conversation",),
        fits=_lists_messages("conversation"),
        names={"messages": "conversation"},
        read=plain.read_messages,
        prompt_columns=("conversation",),
    ),
    RowFormat(
        name="dolly",
        kind="examples",
        columns=("instruction", "context", "response"),
        names={"input": "context", "output": "response"},
        read=plain.read_alpaca,
        prompt_columns=("instruction", "context", "system"),
    ),
    RowFormat(
        name="instruction_response",
        kind="examples",
        columns=("instruction", "response"),
        names={"output": "response"},
        read=plain.read_alpaca,
        prompt_columns=ALPACA,
    ),
    RowFormat(
        name="query_response",
        kind="examples",
        columns=("query", "response"),
        names={"instruction": "query", "output": "response"},
        read=plain.read_alpaca,
        prompt_columns=("query", "system", "history"),
    ),
    RowFormat(
        name="xlam",
        kind="examples",
        columns=("query", "answers", "tools"),
        fits=_are_calls,
        read=plain.read_calls,
        prompt_columns=("query",),
    ),
    RowFormat(
        name="input_target",
        kind="examples",
        columns=("input", "target"),
        fits=lambda columns: not {"prompt", "instruction"} & columns.keys(),
        read=plain.read_input_target,
        prompt_columns=("input",),
    ),
    RowFormat(
        name="flan",
        kind="examples",
        columns=("inputs", "targets"),
        fits=lambda columns: not {"prompt", "instruction", "definition"} & columns.keys(),
        names={"input": "inputs", "target": "targets"},
        read=plain.read_input_target,
        prompt_columns=("inputs",),
    ),
)
