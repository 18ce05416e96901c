"""From a data file to its rows: the number of the line where a row begins, and its columns.

What is wrong with a row comes in the row's place, so that those after it can still be read; what is
wrong with a file comes after its last readable row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlhf_ray.config.checks.data_files import ARROW_FORMATS, COMPRESSIONS, data_format
from rlhf_ray.data.errors import RowError
from rlhf_ray.data.files import arrow_rows as arrow_files
from rlhf_ray.data.files import json_rows as json_files
from rlhf_ray.data.files import text_rows as text_files
from rlhf_ray.data.files.binary import READ_ERRORS, open_bytes
from rlhf_ray.data.files.kinds import HEAD_BYTES, FileKind, kind_of, kind_of_file
from rlhf_ray.data.row import NumberedRows

_PARSERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": json_files.read_lines,
    ".ndjson": json_files.read_lines,
    ".csv": text_files.read_csv,
    ".tsv": text_files.read_tsv,
    ".parquet": arrow_files.read_parquet,
    ".arrow": arrow_files.read_arrow,
}


def parse(path: Path, *, separator: str, key: str = "") -> NumberedRows:
    """Yield `(line, columns)` of each row of a file.

    Lines count from 1; where a row has no line, in parquet say, its number stands for it.

    Args:
        path: A file whose name says what it is (`data_format`).
        separator: Between two texts of a `.txt` file, whose one column is called `text`.
        key: Under which the rows of a `.json` file are, where it is one object.
    """
    line = 0
    try:
        if (kind := _another_kind(path)) is not None:
            yield 1, RowError(f"{path}:1", kind.reason, kind.advice(path))
            return
        for line, columns in _rows(path, separator, key):
            yield line, columns
    except READ_ERRORS as error:
        yield line + 1, RowError(f"{path}:{line + 1}", "cannot be read", str(error))


def _rows(path: Path, separator: str, key: str) -> NumberedRows:
    match data_format(path.name):
        case ".txt":
            return text_files.read_texts(path, separator)
        case ".json":
            return json_files.read(path, key)
        case format_:
            return _PARSERS[format_](path)


def _another_kind(path: Path) -> FileKind | None:
    """What the file is, where it is plainly not what its name says."""
    suffix = path.suffix.lower()
    kind = kind_of_file(path)
    if kind is not None and kind.suffix != suffix:
        return kind
    if kind is None or suffix not in COMPRESSIONS or suffix in ARROW_FORMATS:
        return None
    with open_bytes(path) as file:
        return kind_of(file.read(HEAD_BYTES))
