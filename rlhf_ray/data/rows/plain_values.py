"""Values of any kind as JSON text and back, for columns whose kinds differ from row to row.

Arrow wants one type a column, which nested columns of real data do not have. What JSON lacks and
files hold (dates, decimals, bytes of parquet) is written as an object with one key that no column
has by chance.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable
from typing import Any

_KIND = "rlhf_ray/kind"
# What a kind is called, its class, what JSON holds of it, and how that is read. Date comes behind
# datetime, which is one.
_KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, lambda value: [_plain(item) for item in value], tuple),
    "datetime": (
        datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat,
    ),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: datetime.timedelta(*parts),
    ),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "object": (dict, lambda value: [[name, _plain(item)] for name, item in value.items()], dict),
}  # fmt: skip


def written(value: Any) -> str:
    """The text of a value.

    Raises:
        TypeError: It is, or holds, something of another kind than files hold.
    """
    return json.dumps(_plain(value), separators=(",", ":"))


def read(text: str) -> Any:
    """The value that `written` was given."""
    return json.loads(text, object_hook=_marked) if _KIND in text else json.loads(text)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and _KIND not in value:
        return {name: _plain(item) for name, item in value.items()}
    for name, (class_, write, _) in _KINDS.items():
        if isinstance(value, class_):
            return {_KIND: name, "value": write(value)}
    raise TypeError(f"cannot keep a {type(value).__name__}")


def _marked(item: dict[str, Any]) -> Any:
    kind = item.get(_KIND)
    return item if kind is None else _KINDS[kind][2](item["value"])
