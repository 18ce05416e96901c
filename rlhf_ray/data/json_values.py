"""JSON values, chats among them: what is wrong with text that should be one, and cells of text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from rlhf_ray.errors import RowError, short

Messages: TypeAlias = list[dict[str, Any]]
Text: TypeAlias = str | Messages
# What data sets and templates call the reasoning of a message.
REASONING = ("reasoning_content", "reasoning", "thinking")

_GLIMPSED = 10_000  # characters
_BEGIN = re.compile(r"\s*[\[{]")


class _TwiceError(ValueError):
    """A JSON object has two values for one key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys say one thing each: which of two values is meant nobody can tell."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        for key, value in pairs:
            if value is not columns[key] and value != columns[key]:
                raise _TwiceError(f"{short(key)} is {short(value)}, and {short(columns[key])}")
    return columns


# Of lists and objects within one another; what follows a row, by recursion, bears as many.
_MAX_DEPTH = 200

DECODER = json.JSONDecoder(object_pairs_hook=_object)
# Finds where a value ends that `DECODER` refuses for what it says.
LENIENT_DECODER = json.JSONDecoder(parse_int=len)


def fault_of(error: ValueError | RecursionError, where: str) -> RowError:
    """What `DECODER` says is wrong, other than syntax."""
    if isinstance(error, RecursionError):
        return _too_deep(where)
    if isinstance(error, _TwiceError):
        return RowError(where, "a key appears twice", str(error))
    return RowError(where, "not JSON", str(error))  # a number of more digits than Python converts


def depth_fault(value: Any, text: str, where: str) -> RowError | None:
    """What is wrong with a value, which `text` holds, that is nested too deeply."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return None
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [
            item for each in level for item in (each.values() if isinstance(each, dict) else each)
        ]
        level = [item for item in inner if isinstance(item, list | dict)]
    return _too_deep(where) if level else None


def _too_deep(where: str) -> RowError:
    return RowError(where, "nested too deeply", f"more than {_MAX_DEPTH} levels")


def checked_object(value: Any, where: str) -> dict[str, Any] | RowError:
    """A value that must be an object; a list of messages is one that has them."""
    if isinstance(value, dict | RowError):
        return value
    if isinstance(value, list) and value and all(map(is_message, value)):
        return {"messages": value}
    detail = f'got {type(value).__name__}; a row is an object, such as {{"text": ...}}'
    return RowError(where, "not a JSON object", detail)


def is_message(value: Any) -> bool:
    """Whether a value looks like a message: an object that says who speaks."""
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


def unfolded(value: Any) -> Any:
    """The list or object whose JSON text a value is; any other value as it is."""
    if not isinstance(value, str) or not _BEGIN.match(value):
        return value
    try:
        return DECODER.decode(value)
    except (ValueError, RecursionError):
        return value


def is_list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether a value is a list, not empty, of items that all fit, or its JSON text."""
    items = unfolded(value)
    return isinstance(items, list) and bool(items) and all(map(fits, items))


def glimpsed(value: Any) -> Any:
    """The same where the text is short: for errors, which look at many columns many times."""
    return value if isinstance(value, str) and len(value) > _GLIMPSED else unfolded(value)


def json_value(text: str, where: str, place: str, wanted: str) -> Any:
    """What the JSON text of a cell says; `place` says which cell, `wanted` what it should hold.

    Raises:
        RowError: It is no JSON, or has two values for one key.
    """
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        fault = fault_of(error, where)
        if fault.reason != "not JSON":
            raise RowError(where, fault.reason, f"in {place}: {fault.detail}") from error
        python = " (Python's own print of a list is none: write it by json.dumps)" * ("'" in text)
        detail = f"{place} must be {wanted}, or its JSON text{python}, got {short(text)}: {error}"
        raise RowError(where, "wrong type", detail) from error
