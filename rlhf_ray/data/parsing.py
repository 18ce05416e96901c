"""One parser a file format: yields the number of the line where a row begins, and its columns.

What is wrong with a row comes in the row's place, so that those after it can still be read; what is
wrong with a file comes after its last readable row.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from rlhf_ray.data.errors import DataError, RowError, short

Columns: TypeAlias = dict[str, Any]
NumberedRows: TypeAlias = Iterator[tuple[int, Columns | RowError]]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_BATCH_ROWS = 1024  # held at a time, as Python objects


def parse(path: Path, *, separator: str) -> NumberedRows:
    """Yield `(line, columns)` of each row of a file; lines count from 1, in parquet they are rows.

    Args:
        path: A file whose name `is_data_file` accepts.
        separator: Between two texts of a `.txt` file, whose one column is called `text`.
    """
    suffix = _suffix(path)
    line = 0
    try:
        rows = _texts(path, separator) if suffix == ".txt" else _PARSERS[suffix](path)
        for line, columns in rows:
            yield line, columns
    # zlib.error is what a corrupt gzip body raises, EOFError a truncated one.
    except (OSError, EOFError, zlib.error) as error:
        yield line + 1, RowError(f"{path}:{line + 1}", "cannot be read", str(error))


def is_data_file(path: Path) -> bool:
    """Whether the file's name ends in a format that `parse` knows."""
    suffix = _suffix(path)
    return suffix == ".txt" or suffix in _PARSERS


def _suffix(path: Path) -> str:
    """The format's suffix, without `.gz`; parquet has its own compression."""
    compressed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if compressed else path).suffix.lower()
    return "" if compressed and suffix == ".parquet" else suffix


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _decode(raw: bytes) -> str:
    """Bytes that are not UTF-8 become lone surrogates: `_utf8_fault` finds them row by row."""
    return raw.decode("utf-8", errors="surrogateescape")


def _utf8_fault(text: str, where: str) -> RowError | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        return RowError(where, "not UTF-8", f"byte 0x{byte:02x}")
    return None


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Only a newline ends one: JSON strings may hold other separators."""
    with _open(path) as file:
        for number, raw in enumerate(file):
            yield _decode(raw if number else raw.removeprefix(_BYTE_ORDER_MARK))


def _whole(path: Path) -> str:
    with _open(path) as file:
        return _decode(file.read().removeprefix(_BYTE_ORDER_MARK))


def _decoded(decode: Callable[[], Any], where: str) -> Any | RowError:
    """A JSON value, or what is wrong with it."""
    try:
        return decode()
    except json.JSONDecodeError as error:
        return RowError(where, "not JSON", f"{error.msg} at column {error.colno}")
    except RecursionError:
        return RowError(where, "nested too deeply")
    except _TwiceError as error:
        return RowError(where, "a key appears twice", str(error))
    except ValueError as error:  # a number of more digits than Python converts
        return RowError(where, "not JSON", str(error))


class _TwiceError(Exception):
    """A JSON object has two values for one key."""


def _unique(pairs: list[tuple[str, Any]]) -> Columns:
    """An object whose keys say one thing each: which of two values is meant nobody can tell."""
    columns = dict(pairs)
    if len(columns) < len(pairs):
        for key, value in pairs:
            if value is not columns[key] and value != columns[key]:
                raise _TwiceError(f"{short(key)} is {short(value)}, and {short(columns[key])}")
    return columns


def _object(value: Any, where: str) -> Columns | RowError:
    if isinstance(value, dict | RowError):
        return value
    return RowError(where, "not a JSON object", f"got {type(value).__name__}")


def _json_lines(path: Path) -> NumberedRows:
    for line, content in enumerate(_lines(path), start=1):
        if not content.strip():
            continue
        where = f"{path}:{line}"
        fault = _utf8_fault(content, where)
        yield line, fault or _object(_decoded(partial(_DECODER.decode, content), where), where)


def _json(path: Path) -> NumberedRows:
    """Rows of a JSON array, decoded one by one to know their lines; or JSON lines in disguise.

    A row with an error of syntax ends the file: nobody can say where the next one begins.
    """
    text = _whole(path)
    position = _skip_space(text, 0)
    if not text.startswith("[", position):
        yield from _json_lines(path)
        return
    line, counted = 1, 0
    position = _skip_space(text, position + 1)
    closed = text.startswith("]", position)
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}:{line}"
        decoded = _decoded(partial(_DECODER.raw_decode, text, position), where)
        if isinstance(decoded, RowError):
            yield line, decoded
            return
        value, end = decoded
        yield line, _utf8_fault(text[position:end], where) or _object(value, where)
        position = _skip_space(text, end)
        line, counted = line + text.count("\n", counted, position), position
        closed = text.startswith("]", position)
        if not closed:
            if not text.startswith(",", position):
                yield line, RowError(f"{path}:{line}", "not JSON", "wanted ',' or ']' after a row")
                return
            position = _skip_space(text, position + 1)
    if rest := text[position + 1 :].strip():
        yield line, RowError(f"{path}:{line}", "not JSON", f"{rest[:20]!r} after the closing ']'")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _csv(path: Path) -> NumberedRows:
    csv.field_size_limit(sys.maxsize)  # how long a text may be is not the parser's to say
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        where = f"{path}:{line}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RowError(where, "not CSV", str(error))
            continue
        fault = _utf8_fault("".join(fields), where)
        if not fields:
            continue  # a blank line
        if not header:
            header = fields
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                fault = RowError(where, "a column's name appears twice", short(twice))
            if fault:
                yield line, fault
                return
        elif fault is None and len(fields) != len(header):
            detail = f"a row must have {len(header)}, got {len(fields)}"
            yield line, RowError(where, "wrong number of fields", detail)
        else:
            yield line, fault or dict(zip(header, fields, strict=True))


def _parquet(path: Path) -> NumberedRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_BATCH_ROWS):
                for index in range(len(batch)):
                    row += 1
                    try:
                        [columns] = batch.slice(index, 1).to_pylist()
                    except UnicodeDecodeError as error:
                        columns = RowError(f"{path}:{row}", "not UTF-8", str(error))
                    yield row, columns
    except pa.ArrowException as error:
        yield row + 1, RowError(f"{path}:{row + 1}", "not a parquet file", str(error))


def _texts(path: Path, separator: str) -> NumberedRows:
    """Texts between separators, without the blank space around them; empty ones are left out."""
    if not separator:
        raise DataError(f"{path}: a text file needs a separator between texts, got an empty one")
    line = 1
    for piece in _whole(path).split(separator):
        text = piece.strip()
        if text:
            begin = line + piece[: piece.index(text)].count("\n")
            yield begin, _utf8_fault(text, f"{path}:{begin}") or {"text": text}
        line += piece.count("\n") + separator.count("\n")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_PARSERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
