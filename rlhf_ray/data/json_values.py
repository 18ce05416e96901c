"""JSON values, and what is wrong with text that should be one."""

from __future__ import annotations

import json
from typing import Any

from rlhf_ray.data.errors import RowError


class _RepeatedKey(ValueError):
    """An object has two values under one key: whichever is taken may be the wrong one."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKey(f"{key[:60]!r}")
            seen.add(key)
    return made


# Of lists and objects within one another; what follows a row, by recursion, bears as many.
_MAX_DEPTH = 200

DECODER = json.JSONDecoder(object_pairs_hook=_object)
# Finds where a value ends that `DECODER` refuses for what it says.
LENIENT_DECODER = json.JSONDecoder(parse_int=len)


def fault_of(error: ValueError | RecursionError, where: str) -> RowError:
    """What `DECODER` says is wrong, other than syntax."""
    if isinstance(error, RecursionError):
        return _too_deep(where)
    if isinstance(error, _RepeatedKey):
        return RowError(where, "a key stands twice in an object", str(error))
    return RowError(where, "not JSON", str(error))  # a number of more digits than Python converts


def depth_fault(value: Any, text: str, where: str) -> RowError | None:
    """What is wrong with a value, which `text` holds, that is nested too deeply."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return None
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return _too_deep(where) if level else None


def _too_deep(where: str) -> RowError:
    return RowError(where, "nested too deeply", f"more than {_MAX_DEPTH} levels")


def checked_object(value: Any, where: str) -> dict[str, Any] | RowError:
    """A value that must be an object."""
    if isinstance(value, dict | RowError):
        return value
    return RowError(where, "not a JSON object", f"got {type(value).__name__}")
