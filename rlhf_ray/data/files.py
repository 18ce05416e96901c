"""Rows of a data set: a file, a folder of files, or a name on the Hugging Face hub.

Each row remembers where it came from, so that whatever is found wrong with it later can be named by
file and line.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rlhf_ray.config import references
from rlhf_ray.config.data import SourceConfig
from rlhf_ray.data.columns import check_names, file_names, named
from rlhf_ray.data.errors import DataError, RowError
from rlhf_ray.data.local_data import ACCEPTED, DataFile, LocalData, local_data
from rlhf_ray.data.parsing import Columns, parse
from rlhf_ray.data.splits import parse_split

logger = logging.getLogger(__name__)

# The row's id, and its place with what stands there.
Located: TypeAlias = tuple[str, tuple[str, Columns | RowError]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Example: `Row(row_id="train:17", where="data/train.jsonl:18", columns={"question": "..."})`.

    Attributes:
        row_id: `<data set>:<number>`, unique and stable: the number counts from 0 through the whole
            data set, whatever is skipped. The data set is called by the file's name without
            suffixes or the folder's name, with `/<split>` behind it where splits have names, or
            `<hub name>/<split>`.
        where: File and line, for errors.
        columns: Values by column name, as `columns` of the configuration renames them.
        names: What the file calls columns, by the names that they have here, where these differ.
        file_columns: The columns as the file has them, for errors; None where these are the same.
    """

    row_id: str
    where: str
    columns: Columns
    names: Mapping[str, str] = field(default_factory=dict)
    file_columns: Columns | None = None

    def called(self, name: str) -> str:
        """What the file calls a column."""
        return self.names.get(name, name)

    @property
    def found(self) -> Columns:
        """The columns of the file."""
        return self.columns if self.file_columns is None else self.file_columns


def read_rows(
    source: SourceConfig,
    *,
    separator: str = "<|endoftext|>",
    start: int = 0,
    streaming: bool = False,
) -> Iterator[Row | RowError]:
    """Read a data set row by row, what is wrong with a row in its place.

    Nothing past the last row asked for is read. Files of a split follow one another by name. What
    exists on this machine is never looked for on the
    hub.

    Args:
        source: Where the rows are, and which of them are wanted.
        separator: Between two texts of a `.txt` file; the space around a text is not part of it.
        start: Of the rows wanted, how many are passed over: they were read before.
        streaming: Whether rows of the hub come over the network, and are not kept on this machine.

    Raises:
        DataError: Nothing there, nothing in it, or no column that `columns` of the source names.
    """
    first = source.skip + start
    located: Iterator[Located]
    if (local := local_data(source.path)) is not None:
        located = itertools.islice(_local_rows(local, source.split, separator), first, None)
    else:
        located = _hub_rows(source, first, streaming=streaming)

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


def tell_files(source: SourceConfig) -> None:
    """Say in one line which files of this machine are read, where others are not."""
    data = local_data(source.path)
    if data is not None and data.has_names:
        logger.info("%s", data.taken(source.split))


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
            f"of it ({type(error).__name__}: {error}); wanted {ACCEPTED}"
        ) from error


def _hub_rows(source: SourceConfig, first: int, *, streaming: bool) -> Iterator[Located]:
    dataset = hub_dataset(source, streaming=streaming)
    name = f"{source.path}/{source.split}"
    # A stream passes over whole files where it can.
    rows = dataset.skip(first) if streaming else itertools.islice(dataset, first, None)
    for number, columns in enumerate(rows, start=first):
        yield f"{name}:{number}", (f"{name} row {number}", dict(columns))


def _local_rows(data: LocalData, split: str, separator: str) -> Iterator[Located]:
    """Rows of every range of the split, each range in a pass of its own."""
    for range_ in parse_split(split):
        files = data.files(range_.split)
        name = f"{data.name}/{range_.split}" if data.has_names else data.name
        num_rows = sys.maxsize
        if range_.needs_count:
            num_rows = sum(1 for _ in _rows_of(files, separator))
        start, stop = range_.resolve(num_rows)
        rows = enumerate(_rows_of(files, separator))
        for number, located in itertools.islice(rows, start, max(start, stop)):
            yield f"{name}:{number}", located


def _rows_of(files: Sequence[DataFile], separator: str) -> Iterator[tuple[str, Columns | RowError]]:
    for file in files:
        for line, columns in parse(file.path, separator=separator, key=file.key):
            yield f"{file.path}:{line}", columns
