"""Rows of a data set: a file, a folder of files, or a name on the Hugging Face hub.

Each row remembers where it came from, so that whatever is found wrong with it later can be named by
file and line.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from rlhf_ray.config.data import SourceConfig
from rlhf_ray.data.columns import check_names, file_names, named
from rlhf_ray.data.errors import DataError, RowError
from rlhf_ray.data.files.hub import HubData
from rlhf_ray.data.files.local import LocalData, local_data
from rlhf_ray.data.row import Located, Row

logger = logging.getLogger(__name__)


def find_data(path: str) -> LocalData | HubData:
    """What a path names: what exists on this machine is never looked for on the hub.

    Raises:
        DataError: See `local_data`.
    """
    return local_data(path) or HubData(path=path)


def read_rows(
    source: SourceConfig,
    *,
    data: LocalData | HubData | None = None,
    separator: str = "<|endoftext|>",
    start: int = 0,
    streaming: bool = False,
) -> Iterator[Row | RowError]:
    """Read a data set row by row, what is wrong with a row in its place.

    Nothing past the last row asked for is read. Files of a split follow one another by name.

    Args:
        source: Where the rows are, and which of them are wanted.
        data: What `find_data` found there, if it was asked before.
        separator: Between two texts of a `.txt` file; the space around a text is not part of it.
        start: Of the rows wanted, how many are passed over: they were read before.
        streaming: Whether rows of the hub come over the network, and are not kept on this machine.

    Raises:
        DataError: Nothing there, nothing in it, or no column that `columns` of the source names.
    """
    first = source.skip + start
    located: Iterator[Located]
    match data or find_data(source.path):
        case LocalData() as local:
            rows = local.rows(source.split, separator=separator)
            located = itertools.islice(rows, first, None)
        case HubData() as hub:
            located = hub.rows(source.split, first, streaming=streaming)

    num_rows = max(0, source.limit - start) if source.limit else None
    empty = not start
    wanted: Iterator[Located] = itertools.islice(located, num_rows)
    if not start:
        wanted = check_names(wanted, source.columns)
    names = file_names(source.columns)
    for row_id, (where, found) in wanted:
        empty = False
        if isinstance(found, RowError):
            yield found
            continue
        columns = named(found, source.columns, where)
        if isinstance(columns, RowError):
            yield columns
        else:
            yield Row(row_id=row_id, where=where, columns=columns, names=names, file_columns=found)
    if empty:
        after = f" after the first {source.skip}" if source.skip else ""
        raise DataError(f"no rows in {source.path!r}{after} (split {source.split!r})")


def log_files(data: LocalData | HubData, split: str) -> None:
    """Say in one line which files of this machine are read, where others are not."""
    if isinstance(data, LocalData) and data.has_names:
        logger.info("%s", data.describe(split))
