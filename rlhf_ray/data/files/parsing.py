"""From a data file to its rows: the number of the line where a row begins, and its columns.

Those of JSON are `json_rows`'; here are tables, with separated fields or Arrow's columns, and texts
with a separator.

What is wrong with a row comes in the row's place, so that those after it can still be read; what is
wrong with a file comes after its last readable row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_ray.config.checks.data_files import data_format
from rlhf_ray.data.files import json_rows
from rlhf_ray.data.files.reading import (
    MAX_ROW_BYTES,
    READ_ERRORS,
    another_kind,
    decode,
    lines,
    open_bytes,
    too_long,
    utf8_fault,
)
from rlhf_ray.data.row import NumberedRows
from rlhf_ray.errors import DataError, RowError, short

if TYPE_CHECKING:
    import pyarrow as pa


Decoder: TypeAlias = Callable[[Any], Any]

_READ_BYTES = 1 << 20
_HELD_ROWS = 1024  # at a time, as Python objects
_HELD_BYTES = 16 << 20
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# What a value raises that is no Python object: bytes that are no text, times beyond `datetime`,
# structs with two fields of one name, nesting. Arrow's own are ValueErrors as well.
_ROW_ERRORS = (ValueError, OverflowError, RecursionError)


def parse(path: Path, *, separator: str, key: str = "") -> NumberedRows:
    """Yield `(line, columns)` of each row of a file, whose name says what it is (`data_format`).

    Lines count from 1; where a row has no line, in parquet say, its number stands for it. The texts
    of a `.txt` file, between separators, are a column `text`. The rows of a `.json` file that is
    one object are under `key`.
    """
    line = 0
    try:
        if (kind := another_kind(path)) is not None:
            yield 1, RowError(f"{path}:1", kind.reason, kind.advice(path))
            return
        for line, columns in _rows_of(path, separator, key):
            yield line, columns
    except READ_ERRORS as error:
        yield line + 1, RowError(f"{path}:{line + 1}", "cannot be read", str(error))


def _rows_of(path: Path, separator: str, key: str) -> NumberedRows:
    match data_format(path.name):
        case ".jsonl" | ".ndjson":
            return json_rows.read_lines(path)
        case ".json":
            return json_rows.read(path, key)
        case ".txt":
            return _read_texts(path, separator)
        case ".csv":
            return _read_fields(path, _delimiter(path))
        case ".tsv":
            return _read_fields(path, "\t")
        case ".parquet":
            return _read_batches(path, _parquet_batches, "not a parquet file")
        case ".arrow":
            return _read_batches(path, _arrow_batches, "not an Arrow file")
        case other:
            raise AssertionError(f"no parser of {other!r}")


def _delimiter(path: Path) -> str:
    """What separates fields: a comma; without any in the first line, a semicolon or a tab there."""
    first = decode(next(lines(path), b"") or b"")
    return next((mark for mark in ",;\t" if mark in first), ",")


class _TooLongError(Exception):
    """A row of a table does not end."""


class _RowLines:
    """Lines of a file for the reader of a table; ends a row that has too many.

    Attributes:
        held: Bytes that went to the row so far.
    """

    def __init__(self, path: Path) -> None:
        self._lines, self.held = lines(path), 0

    def __iter__(self) -> Iterator[str]:
        for raw in self._lines:
            self.held += MAX_ROW_BYTES if raw is None else len(raw)
            if raw is None or self.held > MAX_ROW_BYTES:
                raise _TooLongError
            yield decode(raw)


def _read_fields(path: Path, delimiter: str) -> NumberedRows:
    csv.field_size_limit(sys.maxsize)  # how long a text may be is not the reader's to say
    row_lines = _RowLines(path)
    reader = csv.reader(row_lines, strict=True, delimiter=delimiter)
    header: list[str] = []
    while True:
        line, row_lines.held = reader.line_num + 1, 0
        where = f"{path}:{line}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RowError(where, "not CSV", str(error))
            continue
        except _TooLongError:
            yield line, too_long(where)
            return
        if not fields:
            continue  # a blank line
        fault = _fault(fields, header, where)
        if header or fault:
            yield line, fault or dict(zip(header, fields, strict=True))
        if not header:
            if fault:
                return
            header = fields


def _fault(fields: list[str], header: list[str], where: str) -> RowError | None:
    """What is wrong with a row, or with the header where there is none so far."""
    if fault := _text_fault("".join(fields), where):
        return fault
    if not header:
        twice = [name for name in fields if fields.count(name) > 1][:1]
        return RowError(where, "a column's name appears twice", short(twice[0])) if twice else None
    if len(fields) != len(header):
        detail = f"a row must have {len(header)}, got {len(fields)}"
        return RowError(where, "wrong number of fields", detail)
    return None


def _read_texts(path: Path, separator: str) -> NumberedRows:
    """Texts between separators, without the blank space around them; empty ones are left out."""
    if not separator:
        raise DataError(f"{path}: a text file needs a separator between texts, got an empty one")
    line = 1
    for piece in _pieces(path, separator):
        if text := piece.strip():
            begin = line + piece[: piece.index(text)].count("\n")
            where = f"{path}:{begin}"
            fault = too_long(where) if len(piece) > MAX_ROW_BYTES else _text_fault(text, where)
            yield begin, fault or {"text": text}
        line += piece.count("\n") + separator.count("\n")


def _pieces(path: Path, separator: str) -> Iterator[str]:
    """What stands between separators.

    One of more than `MAX_ROW_BYTES` characters ends there, and the rest of the file is not read.
    """
    to_text = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    rest = ""
    with open_bytes(path) as file:
        # As much again as is held, so that a long piece is not searched many times.
        while raw := file.read(min(max(_READ_BYTES, len(rest)), MAX_ROW_BYTES)):
            *pieces, rest = (rest + to_text(raw)).split(separator)
            yield from pieces
            if len(rest) > MAX_ROW_BYTES:
                break
    yield rest + to_text(b"", final=True)


def _text_fault(text: str, where: str) -> RowError | None:
    """What is wrong with a text; None where nothing is."""
    if fault := utf8_fault(text, where):
        return fault
    return RowError(where, "not text", "it holds a NUL byte") if "\0" in text else None


def _read_batches(
    path: Path, batches_of: Callable[[Path], Iterator[pa.RecordBatch | int]], reason: str
) -> NumberedRows:
    """Rows of batches with their numbers, from 1; a number stands for so many that are too long."""
    import pyarrow as pa

    row = 0
    try:
        for batch in batches_of(path):
            for columns in _rows(batch, path, row):
                row += 1
                yield row, columns
    except pa.ArrowException as error:
        [message, *_] = str(error).splitlines() or [type(error).__name__]
        fault = RowError(f"{path}:{row + 1}", "cannot be read" if row else reason, message[:200])
        yield row + 1, fault


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch | int]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            # To see which of them it is, a value would have to be read whole, several times.
            if group.total_byte_size > MAX_ROW_BYTES * group.num_rows:
                yield group.num_rows
                continue
            num_rows = _rows_to_hold(group.num_rows, group.total_byte_size)
            yield from file.iter_batches(num_rows, row_groups=[number])


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        is_stream = file.read(6) != b"ARROW1"
        file.seek(0)
        if is_stream:
            with pa.ipc.open_stream(file) as reader:
                yield from _in_parts(iter(reader))
            # A stream that was cut between two of its parts has an end like any other to a reader.
            file.seek(max(0, file.size() - len(_END_OF_STREAM)))
            if file.read() != _END_OF_STREAM:
                raise pa.ArrowInvalid("it has no end: it was cut, or is still written")
        else:
            with pa.ipc.open_file(file) as reader:
                yield from _in_parts(map(reader.get_batch, range(reader.num_record_batches)))


def _in_parts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        num_rows = _rows_to_hold(len(batch), batch.nbytes)
        for first in range(0, len(batch), num_rows):
            yield batch.slice(first, num_rows)


def _rows_to_hold(num_rows: int, num_bytes: int) -> int:
    """Of so many rows that have so many bytes together."""
    return max(1, min(_HELD_ROWS, _HELD_BYTES * num_rows // max(1, num_bytes)))


def _rows(batch: pa.RecordBatch | int, path: Path, before: int) -> list[dict[str, Any] | RowError]:
    """Rows of a batch; where one has a fault they are taken one by one."""
    if isinstance(batch, int):
        return [too_long(f"{path}:{before + number}") for number in range(1, batch + 1)]
    names = batch.schema.names
    if twice := [name for name in names if names.count(name) > 1]:
        fault = RowError(f"{path}:1", "a column's name appears twice", short(twice[0]))
        return [fault] if not before else []
    if batch.nbytes <= MAX_ROW_BYTES:
        with contextlib.suppress(*_ROW_ERRORS):
            return [*_values(batch)]
    rows: list[dict[str, Any] | RowError] = []
    for index in range(len(batch)):
        rows.append(_row(batch.slice(index, 1), f"{path}:{before + index + 1}"))
    return rows


def _row(batch: pa.RecordBatch, where: str) -> dict[str, Any] | RowError:
    if batch.nbytes > MAX_ROW_BYTES:
        return too_long(where)
    try:
        [row] = _values(batch)
    except _ROW_ERRORS as error:
        is_text = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
        return RowError(where, "not UTF-8" if is_text else "cannot be read", str(error)[:200])
    return row


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    batch.validate(full=True)  # offsets of a damaged file may lead out of it
    rows = list(batch.to_pylist())
    decoders = {
        field.name: decode for field in batch.schema if (decode := _decoder(field.type)) is not None
    }
    return [_decoded(row, decoders) for row in rows] if decoders else rows


def _decoder(type_: pa.DataType) -> Decoder | None:
    """What makes values of JSON texts in a column, as `datasets` keeps mixed kinds; None for none.

    Arrow knows such a text by its type, and gives it back as it stands.
    """
    import pyarrow as pa

    if isinstance(type_, pa.JsonType):
        return json.loads
    if isinstance(type_, pa.StructType):
        fields = [type_.field(index) for index in range(type_.num_fields)]
        decoders = {each.name: decode for each in fields if (decode := _decoder(each.type))}
        return (lambda value: _decoded(value, decoders)) if decoders else None
    if isinstance(type_, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        decode = _decoder(type_.value_type)
        if decode is not None:
            return lambda value: [None if item is None else decode(item) for item in value]
    return None


def _decoded(row: dict[str, Any], decoders: dict[str, Decoder]) -> dict[str, Any]:
    return {
        name: decoders[name](value) if value is not None and name in decoders else value
        for name, value in row.items()
    }
