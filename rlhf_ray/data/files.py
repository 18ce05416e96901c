"""Rows of a data set: a file, a folder of files, or a name on the Hugging Face hub.

Each row remembers where it came from, so that whatever is found wrong with it later can be named by
file and line.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_ray.config import references
from rlhf_ray.config.data import SourceConfig
from rlhf_ray.data.columns import check_names, named
from rlhf_ray.data.errors import DataError, RowError
from rlhf_ray.data.parsing import Columns, is_data_file, parse
from rlhf_ray.data.splits import parse_split

_ACCEPTED = (
    "a .json, .jsonl, .csv or .txt file (also with .gz), a .parquet file, a folder of such files, "
    "or a name on the Hugging Face hub (`owner/name`, `name` or `owner/name:subset`)"
)

Located: TypeAlias = tuple[str, Columns | RowError]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Example: `Row(row_id="train:17", where="data/train.jsonl:18", columns={"question": "..."})`.

    Attributes:
        row_id: `<data set>:<number>`, unique and stable: the number counts from 0 through the whole
            data set, whatever is skipped. The data set is called by the file's name without
            suffixes, the folder's name, or `<hub name>/<split>`.
        where: File and line, for errors.
        columns: Values by column name, as `columns` of the configuration renames them.
    """

    row_id: str
    where: str
    columns: Columns


def read_rows(
    source: SourceConfig,
    *,
    separator: str = "<|endoftext|>",
    start: int = 0,
    streaming: bool = False,
) -> Iterator[Row | RowError]:
    """Read a data set row by row, what is wrong with a row in its place.

    Nothing past the last row asked for is read. Files of a folder follow one another by name,
    subfolders included, hidden ones not. What exists on this machine is never looked for on the
    hub.

    Args:
        source: Where the rows are, and which of them are wanted.
        separator: Between two texts of a `.txt` file; the space around a text is not part of it.
        start: Of the rows wanted, how many are passed over: they were read before.
        streaming: Whether rows of the hub come over the network, and are not kept on this machine.

    Raises:
        DataError: Nothing there, nothing in it, or no column that `columns` of the source names.
    """
    located: Iterator[tuple[int, Located]]
    if (local := local_path(source.path)) is not None:
        name = local.name.split(".")[0] if local.is_file() else local.resolve().name
        located = itertools.islice(
            _local_rows(local, source.split, separator), source.skip + start, None
        )
    else:
        name = f"{source.path}/{source.split}"
        located = _hub_rows(source, source.skip + start, streaming=streaming)

    num_rows = max(0, source.limit - start) if source.limit else None
    empty = not start
    wanted: Iterator[tuple[int, Located]] = itertools.islice(located, num_rows)
    if not start:
        wanted = check_names(wanted, source.columns)
    for number, (where, columns) in wanted:
        empty = False
        if not isinstance(columns, RowError):
            columns = named(columns, source.columns, where)
        if isinstance(columns, RowError):
            yield columns
        else:
            yield Row(row_id=f"{name}:{number}", where=where, columns=columns)
    if empty:
        after = f" after the first {source.skip}" if source.skip else ""
        raise DataError(f"no rows in {source.path!r}{after} (split {source.split!r})")


def local_path(path: str) -> Path | None:
    """The file or folder of this name, or None for a name on the hub.

    Raises:
        DataError: Neither is there.
    """
    local = Path(path).expanduser()
    if path and local.exists():
        return local
    if references.hub_dataset(path) is not None:
        return None
    raise DataError(f"no data at {path!r}; wanted {_ACCEPTED}")


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder.

    Raises:
        DataError: None that can be read.
    """
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


def hub_dataset(source: SourceConfig, *, streaming: bool = False) -> Any:
    """The split of a data set on the hub, as `datasets` keeps it, or as it streams it.

    Raises:
        DataError: The hub has no such thing, or does not answer.
    """
    import datasets

    named = references.hub_dataset(source.path)
    assert named is not None
    try:
        options = {"streaming": True} if streaming else {}
        return datasets.load_dataset(*named, split=source.split, **options)
    # The hub's client raises many unrelated types; whichever it is, the user has one question.
    except Exception as error:
        raise DataError(
            f"{source.path!r} is not on this machine, and the hub gave no split {source.split!r} "
            f"of it ({type(error).__name__}: {error}); wanted {_ACCEPTED}"
        ) from error


def _hub_rows(
    source: SourceConfig, first: int, *, streaming: bool
) -> Iterator[tuple[int, Located]]:
    dataset = hub_dataset(source, streaming=streaming)
    # A stream passes over whole files where it can.
    rows = dataset.skip(first) if streaming else itertools.islice(dataset, first, None)
    for number, columns in enumerate(rows, start=first):
        yield number, (f"{source.path}/{source.split} row {number}", dict(columns))


def _local_rows(path: Path, split: str, separator: str) -> Iterator[tuple[int, Located]]:
    """Numbered rows of every range of the split, each range in a pass of its own."""
    ranges = parse_split(split)
    num_rows = sys.maxsize
    if any(range_.needs_count for range_ in ranges):
        num_rows = sum(1 for _ in _all_rows(path, separator))
    for range_ in ranges:
        rows = enumerate(_all_rows(path, separator))
        start, stop = range_.resolve(num_rows)
        yield from itertools.islice(rows, start, max(start, stop))


def _all_rows(path: Path, separator: str) -> Iterator[Located]:
    for file in data_files(path):
        for line, columns in parse(file, separator=separator):
            yield f"{file}:{line}", columns
