"""Lists and objects in cells that can hold no more than text, as those of CSV: as JSON text."""

from __future__ import annotations

import re
from typing import Any

from rlhf_ray.data.errors import RowError, short
from rlhf_ray.data.json_values import DECODER, fault_of

_GLIMPSED = 10_000  # characters
_BEGIN = re.compile(r"\s*[\[{]")


def unfolded(value: Any) -> Any:
    """The list or object whose JSON text a value is; any other value as it is."""
    if not isinstance(value, str) or not _BEGIN.match(value):
        return value
    try:
        return DECODER.decode(value)
    except (ValueError, RecursionError):
        return value


def glimpsed(value: Any) -> Any:
    """The same where the text is short: for errors, which look at many columns many times."""
    return value if isinstance(value, str) and len(value) > _GLIMPSED else unfolded(value)


def json_value(text: str, where: str, place: str, wanted: str) -> Any:
    """What a JSON text in a column says.

    Args:
        text: Of the cell.
        where: File and line, for errors.
        place: In words, which cell.
        wanted: What it should hold.

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
