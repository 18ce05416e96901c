"""What a row has for the chat template beside its messages: tools and variables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.data.json_values import json_value, unfolded
from rlhf_ray.data.messages import without_nulls
from rlhf_ray.errors import RowError, short

# What data sets call the tools that stand beside a chat: OpenAI first and formerly, Toucan.
TOOLS = ("tools", "functions", "available_tools")


def template_options(
    columns: Mapping[str, Any], where: str, *, tools: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What a row has for the chat template beside its messages; `tools` are those of all rows.

    `tools` (or another name of them) holds JSON schemas of functions, as a list or its JSON text;
    `chat_template_kwargs` variables of the template by name, as TRL has them, and `enable_thinking`
    one of them, as verl has it. A row's own tools stand in the place of those of all rows.

    Raises:
        RowError: They hold anything else.
    """
    options: dict[str, Any] = {}
    if isinstance(columns.get("enable_thinking"), bool):
        options["enable_thinking"] = columns["enable_thinking"]
    if named := columns.get("chat_template_kwargs"):
        if isinstance(named, str):
            named = json_value(named, where, "column 'chat_template_kwargs'", "an object")
        if not isinstance(named, dict):
            detail = f"column 'chat_template_kwargs' must be an object, got {short(named)}"
            raise RowError(where, "wrong type", detail)
        if reserved := sorted(_reserved() & set(named)):
            detail = f"'chat_template_kwargs' may hold variables of the template, not {reserved}"
            raise RowError(where, "wrong type", detail)
        options |= {name: value for name, value in named.items() if value is not None}
    if shown := tool_schemas(columns, where) or [dict(tool) for tool in tools]:
        options["tools"] = shown
    return options


def tool_schemas(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The tools that stand beside a chat; none where there is no such column.

    Raises:
        RowError: The column holds anything but JSON schemas.
    """
    name = next((name for name in TOOLS if _holds_tools(name, columns.get(name))), "")
    tools = columns.get(name) or []
    if isinstance(tools, str):
        tools = json_value(tools, where, f"column {name!r}", "a list of JSON schemas")
    else:
        tools = without_nulls(tools)
    schemas = []
    for tool in tools if isinstance(tools, list) else [tools]:
        schema = tool
        if isinstance(tool, str):
            schema = json_value(tool, where, f"a tool of column {name!r}", "a JSON schema")
        if not isinstance(schema, dict):
            detail = f"column {name!r} must be a list of JSON schemas of functions, got "
            raise RowError(where, "wrong type", detail + short(schema))
        is_bare = "function" not in schema and "name" in schema
        schemas.append({"type": "function", "function": schema} if is_bare else schema)
    return schemas


def _holds_tools(name: str, value: Any) -> bool:
    """Whether a column has tools; of another name than the usual one it must look like them."""
    if name == TOOLS[0] or not value:
        return bool(value)
    tools = unfolded(value)
    schemas = [unfolded(tool) for tool in tools] if isinstance(tools, list) else [tools]
    return bool(schemas) and all(
        isinstance(schema, dict) and bool({"function", "name"} & schema.keys())
        for schema in schemas
    )


def _reserved() -> set[str]:
    """Arguments of `apply_chat_template` that are none of a template's own variables."""
    from transformers import PreTrainedTokenizerBase

    named = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    return (named | {"messages"}) - {"kwargs", "documents"}
