"""One parser a file format: yields the number of the line where a row begins, and its columns.

Files are read as bytes and decoded piece by piece, so that an error can name the line.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from rlhf_ray.errors import ConfigError

Columns: TypeAlias = dict[str, Any]
NumberedRows: TypeAlias = Iterator[tuple[int, Columns]]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class DataError(ConfigError):
    """Something is wrong with the data; the message names the file and line."""


def parse(path: Path, *, separator: str, text_column: str) -> NumberedRows:
    """Yield `(line, columns)` of each row of a file; lines count from 1, in parquet they are rows.

    Args:
        path: A file whose name `is_data_file` accepts.
        separator: Between two texts of a `.txt` file.
        text_column: What the one column of a `.txt` file is called.

    Raises:
        DataError: The file cannot be read, or a row is malformed.
    """
    suffix = _suffix(path)
    try:
        if suffix == ".txt":
            yield from _texts(path, separator, text_column)
        else:
            yield from _PARSERS[suffix](path)
    # zlib.error is what a corrupt gzip body raises, EOFError a truncated one.
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


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


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Only a newline ends one: JSON strings may hold other separators."""
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            content = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
            yield _decode(content, path, number)


def _whole(path: Path) -> str:
    with _open(path) as file:
        return _decode(file.read().removeprefix(_BYTE_ORDER_MARK), path, 1)


def _decode(raw: bytes, path: Path, first_line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x} ({error.reason})"
        ) from error


def _object(value: Any, path: Path, line: int) -> Columns:
    if not isinstance(value, dict):
        raise DataError(f"{path}:{line}: a row must be a JSON object, got {type(value).__name__}")
    return value


def _json_lines(path: Path) -> NumberedRows:
    for line, content in enumerate(_lines(path), start=1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{line}: not JSON: {error.msg} at column {error.colno}"
            ) from error
        yield line, _object(value, path, line)


def _json(path: Path) -> NumberedRows:
    """Rows of a JSON array, decoded one by one to know their lines; or JSON lines in disguise."""
    text = _whole(path)
    position = _skip_space(text, 0)
    if not text.startswith("[", position):
        yield from _json_lines(path)
        return
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_space(text, position + 1)
    closed = text.startswith("]", position)
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}"
            ) from error
        yield line, _object(value, path, line)
        position = _skip_space(text, position)
        closed = text.startswith("]", position)
        if not closed:
            if not text.startswith(",", position):
                line += text.count("\n", counted, position)
                raise DataError(f"{path}:{line}: not JSON: wanted ',' or ']' after a row")
            position = _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _csv(path: Path) -> NumberedRows:
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if not fields:
                pass  # a blank line
            elif header is None:
                header = fields
                if len(set(header)) < len(header):
                    raise DataError(f"{path}:{line}: a column's name appears twice: {header}")
            elif len(fields) != len(header):
                raise DataError(
                    f"{path}:{line}: a row must have {len(header)} fields, got {len(fields)}"
                )
            else:
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not CSV: {error}") from error


def _parquet(path: Path) -> NumberedRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            row = 1
            for batch in file.iter_batches():
                for columns in batch.to_pylist():
                    yield row, columns
                    row += 1
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}") from error


def _texts(path: Path, separator: str, text_column: str) -> NumberedRows:
    """Texts between separators, without the blank space around them; empty ones are left out."""
    if not separator:
        raise DataError(f"{path}: a text file needs a separator between texts, got an empty one")
    line = 1
    for piece in _whole(path).split(separator):
        text = piece.strip()
        if text:
            yield line + piece[: piece.index(text)].count("\n"), {text_column: text}
        line += piece.count("\n") + separator.count("\n")


_PARSERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
