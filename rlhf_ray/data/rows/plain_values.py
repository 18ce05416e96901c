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
_READ: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
    "decimal": decimal.Decimal,
    "bytes": bytes.fromhex,
    "tuple": tuple,
    "object": dict,
}


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
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_plain(item) for item in value]
        case dict():
            plain = {name: _plain(item) for name, item in value.items()}
            if _KIND in value:
                return _mark("object", list(plain.items()))
            return plain
        case tuple():
            return _mark("tuple", [_plain(item) for item in value])
        case datetime.datetime():  # before dates, of which it is one
            return _mark("datetime", value.isoformat())
        case datetime.date():
            return _mark("date", value.isoformat())
        case datetime.time():
            return _mark("time", value.isoformat())
        case datetime.timedelta():
            return _mark("timedelta", [value.days, value.seconds, value.microseconds])
        case decimal.Decimal():
            return _mark("decimal", str(value))
        case bytes():
            return _mark("bytes", value.hex())
    raise TypeError(f"cannot keep a {type(value).__name__}")


def _mark(kind: str, content: Any) -> dict[str, Any]:
    return {_KIND: kind, "value": content}


def _marked(item: dict[str, Any]) -> Any:
    kind = item.get(_KIND)
    return item if kind is None else _READ[kind](item["value"])
