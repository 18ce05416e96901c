"""JSON lines: one object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_ray.data.errors import RowError
from rlhf_ray.data.files.binary import lines, not_utf8, too_long
from rlhf_ray.data.json_values import DECODER, checked_object, depth_fault, fault_of
from rlhf_ray.data.row import NumberedRows

_UNFINISHED = "the row does not end in this line; `jq -c . FILE` writes one row a line"


def read(path: Path) -> NumberedRows:
    """Rows with their lines; blank lines are none."""
    for line, raw in enumerate(lines(path), start=1):
        if raw is None:
            yield line, too_long(f"{path}:{line}")
        elif raw.strip():
            yield line, _row(raw, f"{path}:{line}")


def first_lines(path: Path) -> tuple[bytes | None, bytes | None]:
    """The first two lines that are not blank; None for one that is too long."""
    filled = (line for line in lines(path) if line is None or line.strip())
    return next(filled, b""), next(filled, b"")


def is_row(line: bytes | None) -> bool:
    """Whether a line is a row, whole and alone."""
    return line is not None and isinstance(_row(line, ""), dict)


def is_unfinished(line: bytes) -> bool:
    """Whether a line is the beginning of a JSON value, which goes on behind it."""
    try:
        DECODER.decode(line.decode("utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        return _ends_within(error)
    except (ValueError, RecursionError):
        return False  # something else is wrong with it
    return False


def _ends_within(error: json.JSONDecodeError) -> bool:
    return error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip())


def _row(raw: bytes, where: str) -> dict[str, Any] | RowError:
    try:
        text = raw.rstrip().decode("utf-8")
        value = DECODER.decode(text)
    except UnicodeDecodeError as error:
        return not_utf8(raw[error.start], where)
    except json.JSONDecodeError as error:
        more = f": {_UNFINISHED}" if _ends_within(error) else ""
        return RowError(where, "not JSON", f"{error.msg} at column {error.colno}{more}")
    except (ValueError, RecursionError) as error:
        return fault_of(error, where)
    return depth_fault(value, text, where) or checked_object(value, where)
