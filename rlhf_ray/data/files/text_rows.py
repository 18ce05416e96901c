"""Text files that are no JSON: tables with separated fields, and texts with a separator."""

from __future__ import annotations

import codecs
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from rlhf_ray.data.files.binary import (
    MAX_ROW_BYTES,
    decode,
    lines,
    open_bytes,
    too_long,
    utf8_fault,
)
from rlhf_ray.data.row import NumberedRows
from rlhf_ray.errors import DataError, RowError, short

_READ_BYTES = 1 << 20


def read_csv(path: Path) -> NumberedRows:
    """Rows by the names in the first line, with the lines where they begin.

    Where no comma stands in the first line but a semicolon or a tab, that separates fields.
    """
    first = decode(next(lines(path), b"") or b"")
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    return _read_fields(path, delimiter)


def read_tsv(path: Path) -> NumberedRows:
    """The same with tabs between fields."""
    return _read_fields(path, "\t")


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


def read_texts(path: Path, separator: str) -> NumberedRows:
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
