"""Typed values out of a row's columns.

Every one is checked: what is missing, or is anything else, is a `RowError` that names its place.
"""

from __future__ import annotations

import json
import math
from typing import Any

from rlhf_ray.data.json_values import Messages, Text, unfolded
from rlhf_ray.data.messages import (
    check_encodable,
    is_written_chat,
    parse_message,
    parse_messages,
    written_message,
)
from rlhf_ray.data.nearest import listed
from rlhf_ray.data.row import Row
from rlhf_ray.errors import RowError, short

_TRUTHS = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}


def column(row: Row, name: str) -> Any:
    """A row's value."""
    value = row.columns.get(name)
    if value is None:
        raise _missing(row, name)
    return value


def _missing(row: Row, name: str) -> RowError:
    """The error of a column that is not there, or holds nothing."""
    called = row.called(name)
    if name in row.columns:
        detail = "nothing is in it here; data.on_bad_row: skip leaves such rows out"
    else:
        there = f"columns there: {listed(row.found, called)}"
        detail = (
            f"{there}; all rows of a source have the columns of its first one, and "
            "data.on_bad_row: skip leaves others out"
        )
    return RowError(row.where, f"no column {called!r}", detail)


def string(row: Row, name: str) -> str:
    """A column that holds text."""
    return checked_text(row, name, column(row, name))


def optional_string(row: Row, name: str) -> str:
    """A column that holds text, or an empty string where the row has nothing there."""
    return "" if row.columns.get(name) is None else string(row, name)


def number(row: Row, name: str) -> float:
    """A finite number; as text too, because CSV has nothing else."""
    return _number(row, name, _filled(row, name))


def as_number(value: Any) -> float:
    """A number, or the text of one, as it is; NaN of anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def numbers(row: Row, name: str) -> list[float]:
    """A list of finite numbers."""
    return [_number(row, name, value) for value in items(row, name)]


def truth(row: Row, name: str) -> bool:
    """True or false, also as 1 and 0, yes and no, or as the text of either."""
    value = _TRUTHS.get(_plain(_filled(row, name)))
    if value is None:
        raise _wrong(row, name, "true, 1 or yes, or false, 0 or no", row.columns[name])
    return value


def is_truth(value: Any) -> bool:
    """Whether `truth` takes a value."""
    return _plain(value) in _TRUTHS


def is_blank(row: Row, name: str) -> bool:
    """Whether there is nothing in a column, or there is none: an empty cell is nothing in CSV."""
    value = row.columns.get(name)
    return value is None or (isinstance(value, str) and not value.strip())


def optional_truth(row: Row, name: str) -> bool | None:
    """True or false; None where the row has nothing there."""
    return None if is_blank(row, name) else truth(row, name)


def optional_number(row: Row, name: str) -> float | None:
    """A finite number; None where the row has nothing there."""
    return None if is_blank(row, name) else number(row, name)


def items(row: Row, name: str) -> list[Any]:
    """A list that is not empty, or its JSON text."""
    value = unfolded(column(row, name))
    if not isinstance(value, list) or not value:
        raise _wrong(row, name, "a list that is not empty", value)
    return value


def messages(row: Row, name: str) -> Messages:
    """A column that holds a chat."""
    return parse_messages(column(row, name), row.where, row.called(name))


def text(row: Row, name: str) -> Text:
    """A column that holds text or a chat."""
    return _text(row, name, column(row, name))


def texts(row: Row, name: str) -> list[Text]:
    """A list of texts or chats; a single message stands for a chat of one."""
    return [_text(row, name, value) for value in items(row, name)]


def written(row: Row, name: str) -> str:
    """A column that holds text, or a number as JSON writes it."""
    value = column(row, name)
    return json.dumps(value) if _is_number(value) else checked_text(row, name, value)


def answer(row: Row, name: str) -> Text:
    """A column that holds an answer: text, a chat, or a number as JSON writes it."""
    return written(row, name) if _is_number(column(row, name)) else text(row, name)


def checked_text(row: Row, name: str, value: Any) -> str:
    """A value as text that every tokenizer can encode."""
    if not isinstance(value, str):
        raise _wrong(row, name, "a string", value)
    check_encodable(value, row.where, f"column {row.called(name)!r}")
    return value


def _filled(row: Row, name: str) -> Any:
    """A column's value, if there is something in its cell."""
    if is_blank(row, name):
        raise _missing(row, name)
    return row.columns[name]


def _plain(value: Any) -> str:
    return str(value).strip().lower()


def _text(row: Row, name: str, value: Any) -> Text:
    if isinstance(value, str) and not is_written_chat(value):
        message = written_message(value)
        if message is None:
            return checked_text(row, name, value)
        value = message
    if isinstance(value, dict):
        return [parse_message(value, row.where, f"message 0 of column {row.called(name)!r}")]
    if not isinstance(value, str | list) or not value:
        raise _wrong(row, name, "a string or a list of chat messages that is not empty", value)
    return parse_messages(value, row.where, row.called(name))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(row: Row, name: str, value: Any) -> float:
    converted = as_number(value)
    if not math.isfinite(converted):
        raise _wrong(row, name, "a finite number", value)
    return converted


def _wrong(row: Row, name: str, wanted: str, value: Any) -> RowError:
    return RowError(
        row.where, "wrong type", f"column {row.called(name)!r} must be {wanted}, got {short(value)}"
    )
