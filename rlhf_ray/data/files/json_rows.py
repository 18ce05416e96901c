"""`.json` files: an array of rows, one object with the rows in it, or JSON lines.

One object holds its rows in one of three ways: as a list under a key, as columns that are lists, or
as columns that are objects with the rows' numbers for keys, which is how pandas writes a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_ray.data.files.reading import JsonWindow, lines, not_utf8, open_bytes, too_long
from rlhf_ray.data.json_values import DECODER, checked_object, depth_fault, fault_of
from rlhf_ray.data.row import NumberedRows
from rlhf_ray.errors import RowError, short

SPLIT_NAMES = {
    "train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval",
    "evaluation",
}  # fmt: skip
# Keys that hold a file's rows, whatever stands beside them.
_ROWS_KEYS = SPLIT_NAMES | {"data", "rows", "examples", "instances", "items", "records", "samples"}
_UNFINISHED = "the row does not end in this line; `jq -c . FILE` writes one row a line"
_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})


def read(path: Path, key: str = "") -> NumberedRows:
    """Rows with their lines, or with their numbers where the file holds columns.

    They are those under `key`, or found where it is empty. A row with an error of syntax ends the
    file: nobody can say where the next one begins.
    """
    if key:
        yield from _rows_under(path, key)
        return
    with open_bytes(path) as file:
        window = JsonWindow(file, str(path))
        if window.peek() == "[":
            yield from _array(window)
            if not window.is_broken and window.peek():
                yield window.line, window.wrong("nothing after the closing ']'")
            return
    outline = _outline(path)
    if outline is None:
        yield from line_rows(path)
    else:
        yield from _read_object(path, outline)


def read_lines(path: Path) -> NumberedRows:
    """Rows of JSON lines; or of an array, which some files of that name are."""
    first, second = first_lines(path)
    begins_array = first is not None and first.lstrip().startswith(b"[")
    if first and begins_array and (not second or is_unfinished(first)):
        return read(path)
    return line_rows(path)


def rows_keys(path: Path) -> tuple[list[str], str]:
    """Keys of a file's one object that hold rows, and which of them is meant if none is named.

    No keys where the file is no such object; no key is meant where that is not plain.
    """
    outline = _outline(path)
    if outline is None or outline.is_row:
        return [], ""
    return outline.rows_keys, outline.chosen


@dataclass(frozen=True, kw_only=True)
class _Outline:
    """What one object holds: a kind of value by key.

    Attributes:
        fault: What is wrong with the object, behind all of these.
        line: Where it begins.
    """

    kinds: dict[str, Literal["rows", "no rows", "messages", "list", "value"]]
    fault: RowError | None
    line: int

    @property
    def rows_keys(self) -> list[str]:
        return [
            key
            for key, kind in self.kinds.items()
            if kind == "rows" or (kind == "no rows" and key in _ROWS_KEYS)
        ]

    @property
    def is_row(self) -> bool:
        """Whether the object is a row: its lists are chats, or of no objects."""
        return "messages" in self.kinds.values() or not self.rows_keys

    @property
    def chosen(self) -> str:
        """The one key that holds rows; empty where that is not plain."""
        keys = self.rows_keys
        is_plain = len(keys) == 1 and (keys[0] in _ROWS_KEYS or len(self.kinds) == 1)
        return keys[0] if is_plain else ""


def _outline(path: Path) -> _Outline | None:
    """Of a file that is one object; None for JSON lines and anything else."""
    first, second = first_lines(path)
    if first is not None and not first.lstrip().startswith(b"{"):
        return None
    if first is not None and second != b"" and not is_unfinished(first):
        return None
    kinds: dict[str, Any] = {}
    fault: RowError | None = None
    with open_bytes(path) as file:
        window = JsonWindow(file, str(path))
        window.peek()
        line = window.line
        for key in _keys(window):
            if isinstance(key, RowError):
                fault = key
                break
            is_list = window.peek() == "["
            values = _values(window)
            _, value = next(values, (0, None))
            kinds[key] = _kind(value, is_list)
            for _, after in values:
                value = after
            if window.is_broken:
                fault = value
    outline = _Outline(kinds=kinds, fault=fault, line=line)
    # A first line that is cut, among lines that are rows.
    return None if fault and not outline.rows_keys and is_row(second) else outline


def _kind(value: Any, is_list: bool) -> str:
    """Of a value that is no list, or of a list's first."""
    if not is_list:
        return "value"
    if isinstance(value, RowError):
        return "rows"
    if isinstance(value, dict):
        return "messages" if any(keys <= value.keys() for keys in _MESSAGE_KEYS) else "rows"
    return "no rows" if value is None else "list"


def _keys(window: JsonWindow) -> Iterator[str | RowError]:
    """Keys of an object, the place being before the value of each; what is wrong ends them."""
    seen: set[str] = set()
    window.take("{")
    is_more = not window.take("}")
    while is_more:
        key = window.value()
        if isinstance(key, RowError) or not isinstance(key, str):
            yield key if isinstance(key, RowError) else window.wrong("a key in quotes")
            return
        if key in seen:
            yield RowError(window.where, "a key appears twice", short(key))
            return
        seen.add(key)
        if not window.take(":"):
            yield window.wrong("':' after a key")
            return
        yield key
        if window.is_broken:
            return
        is_more = not window.take("}")
        if is_more and not window.take(","):
            yield window.wrong("',' or '}' after a value")
            return
    if window.peek():
        yield window.wrong("nothing after the closing '}' (`jq -c . FILE` writes one row a line)")


def _values(window: JsonWindow) -> Iterator[tuple[int, Any]]:
    """Elements of the list at the place, or the one value there."""
    return _elements(window) if window.peek() == "[" else iter([(window.line, window.value())])


def _elements(window: JsonWindow) -> Iterator[tuple[int, Any]]:
    """Values of a list with their lines; an error of syntax ends them."""
    window.take("[")
    if window.take("]"):
        return
    while True:
        window.peek()
        yield window.line, window.value()
        if window.is_broken or window.take("]"):
            return
        if not window.take(","):
            yield window.line, window.wrong("',' or ']' after a row")
            return


def _array(window: JsonWindow) -> NumberedRows:
    for line, value in _elements(window):
        yield line, checked_object(value, f"{window.name}:{line}")


def _read_object(path: Path, outline: _Outline) -> NumberedRows:
    """The rows of a file that is one object."""
    if not outline.is_row and outline.chosen:
        yield from _rows_under(path, outline.chosen)
    elif outline.fault:
        yield _line_of(outline.fault), outline.fault
    elif not outline.is_row:
        keys = ", ".join(outline.rows_keys)[:200]
        advice = f"take one by `split: {outline.rows_keys[0][:60]}`, or write a row as JSON lines"
        yield 1, RowError(f"{path}:1", "several ways to find the rows", f"keys {keys}: {advice}")
    else:
        yield from _row_or_columns(path, outline)


def _rows_under(path: Path, key: str) -> NumberedRows:
    """The rows of a key's list; what is wrong anywhere in the object ends them."""
    with open_bytes(path) as file:
        window = JsonWindow(file, str(path))
        for found in _keys(window):
            if isinstance(found, RowError):
                yield _line_of(found), found
            elif found == key:
                yield from _array(window)
            else:
                for line, value in _values(window):
                    if window.is_broken:
                        yield line, value


def _line_of(fault: RowError) -> int:
    return int(fault.where.rpartition(":")[2])


def _row_or_columns(path: Path, outline: _Outline) -> NumberedRows:
    with open_bytes(path) as file:
        value = JsonWindow(file, str(path)).value()
    if isinstance(value, RowError):
        yield outline.line, value
        return
    columns = {} if "messages" in outline.kinds.values() else _columns(value)
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())[:200]
        yield 1, RowError(f"{path}:1", "columns of different lengths", lengths)
    elif columns:
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
            yield number, dict(zip(columns, values, strict=True))
    else:
        yield outline.line, value


def _columns(value: dict[str, Any]) -> dict[str, list[Any]]:
    """The columns of a table; empty where the object is none."""
    columns = list(value.values())
    if columns and all(isinstance(column, list) for column in columns):
        return value
    if columns and all(isinstance(column, dict) and column for column in columns):
        numbers = [str(number) for number in range(len(columns[0]))]
        if all(list(column) == numbers for column in columns):
            return {name: list(column.values()) for name, column in value.items()}
    return {}


def line_rows(path: Path) -> NumberedRows:
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
