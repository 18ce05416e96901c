"""Rows of a data set: a file, a folder of files, or a name on the Hugging Face hub.

Each row remembers where it came from, so that whatever is found wrong with it later can be named by
file and line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.data.formats import Columns, DataError, NumberedRows, is_data_file, parse

_ACCEPTED = (
    "a .json, .jsonl, .csv or .txt file (also with .gz), a .parquet file, a folder of such files, "
    "or a name on the Hugging Face hub (`name`, `owner/name` or `owner/name:subset`)"
)
_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<subset>[\w.-]+))?")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Example: `Row(row_id="train:17", where="data/train.jsonl:18", columns={"question": "..."})`.

    Attributes:
        row_id: `<data set>:<number>`, unique and stable: the number counts from 0 through the whole
            data set, whatever is skipped. The data set is called by the file's name without
            suffixes, the folder's name, or `<hub name>/<split>`.
        where: File and line, for errors.
        columns: Values by column name.
    """

    row_id: str
    where: str
    columns: Columns


def read_rows(
    path: str,
    *,
    split: str = "train",
    separator: str = "<|endoftext|>",
    text_column: str = "text",
    skip: int = 0,
    limit: int = 0,
) -> list[Row]:
    """Read a data set; nothing past the last row asked for is read.

    Files of a folder follow one another by name, subfolders included, hidden ones not.

    Args:
        path: What `_ACCEPTED` lists. What exists on this machine is never looked for on the hub.
        split: Of a hub data set, with `datasets`' slicing (`train[:500]`).
        separator: Between two texts of a `.txt` file; the space around a text is not part of it.
        text_column: What the one column of a `.txt` file is called.
        skip: Rows left out at the start.
        limit: Rows read after these; 0 for all.

    Raises:
        DataError: Nothing there, nothing in it, or a malformed row, by file and line.
    """
    local = Path(path).expanduser()
    if path and local.exists():
        name = local.name.split(".")[0] if local.is_file() else local.resolve().name
        located = _local_rows(local, separator, text_column)
    elif (hub := _HUB_NAME.fullmatch(path)) and not is_data_file(local):
        name = f"{path}/{split}"
        located = _hub_rows(hub["name"], hub["subset"], split)
    else:
        raise DataError(f"no data at {path!r}; wanted {_ACCEPTED}")

    stop = skip + limit if limit else None
    rows = [
        Row(row_id=f"{name}:{number}", where=where, columns=columns)
        for number, (where, columns) in itertools.islice(enumerate(located), skip, stop)
    ]
    if not rows:
        raise DataError(f"no rows in {path!r}" + (f" after the first {skip}" if skip else ""))
    return rows


def _local_rows(path: Path, separator: str, text_column: str) -> Iterator[tuple[str, Columns]]:
    for file in _files(path):
        rows: NumberedRows = parse(file, separator=separator, text_column=text_column)
        for line, columns in rows:
            yield f"{file}:{line}", columns


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not is_data_file(path):
            raise DataError(f"{path}: unknown format; wanted {_ACCEPTED}")
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and is_data_file(file)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"no data files in the folder {str(path)!r}; wanted {_ACCEPTED}")
    return files


def _hub_rows(name: str, subset: str | None, split: str) -> Iterator[tuple[str, Columns]]:
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=split)
    # The hub's client raises many unrelated types; whichever it is, the user has one question.
    except Exception as error:
        raise DataError(
            f"{name!r} is not on this machine, and the hub gave no split {split!r} of it "
            f"({type(error).__name__}: {error}); wanted {_ACCEPTED}"
        ) from error
    for number, columns in enumerate(rows):
        yield f"{name}/{split} row {number}", dict(columns)
