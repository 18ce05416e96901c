"""Rows of a data set: a file, a folder of files, or a name on the Hugging Face hub.

Each row remembers where it came from, so that whatever is found wrong with it later can be named by
file and line.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.config.checks import references
from rlhf_ray.config.checks.data_files import ACCEPTED, GENERATED
from rlhf_ray.config.data import SourceConfig
from rlhf_ray.data.columns import check_names, file_names, named
from rlhf_ray.data.files.generated import generated_file
from rlhf_ray.data.files.local import LocalData, local_data
from rlhf_ray.data.row import Located, Row
from rlhf_ray.errors import DataError, RowError, RunError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HubData:
    """A name on the hub; what it stands for is asked once a split.

    Attributes:
        path: `owner/name`, `name` or `owner/name:subset`.
    """

    path: str
    _kept: dict[str, Any] = field(default_factory=dict)

    def kept(self, split: str) -> Any:
        """A split as `datasets` keeps it on this machine.

        Raises:
            DataError: The hub has no such thing, or does not answer.
        """
        if split not in self._kept:
            self._kept[split] = self._load(split)
        return self._kept[split]

    def rows(self, split: str, first: int, *, streaming: bool) -> Iterator[Located]:
        """Rows from a number on; as a stream they come over the network, and are not kept.

        Raises:
            DataError: As in `kept`.
            RunError: The hub stops giving rows.
        """
        name = f"{self.path}/{split}"
        if streaming:  # it passes over whole files where it can
            rows = iter(self._load(split, streaming=True).skip(first))
        else:
            rows = itertools.islice(self.kept(split), first, None)
        for number in itertools.count(first):
            try:
                columns = next(rows, None)
            except Exception as error:  # of many unrelated types, as below
                raise RunError(
                    f"{name}: the hub gave no row {number} ({type(error).__name__}: {error}); a "
                    "run that is resumed goes on from its last checkpoint"
                ) from error
            if columns is None:
                return
            yield f"{name}:{number}", (f"{name} row {number}", dict(columns))

    def _load(self, split: str, **options: Any) -> Any:
        import datasets

        named = references.hub_dataset(self.path)
        assert named is not None
        try:
            return datasets.load_dataset(*named, split=split, **options)
        # The hub's client raises many unrelated types; whichever it is, the user has one question.
        except Exception as error:
            raise DataError(
                f"{self.path!r} is not on this machine, and the hub gave no split {split!r} of it "
                f"({type(error).__name__}: {error}); wanted {ACCEPTED}"
            ) from error


def find_data(path: str) -> LocalData | HubData:
    """What a path names: what exists on this machine is never looked for on the hub.

    Raises:
        DataError: See `local_data` and `generated_file`.
    """
    if path.startswith(GENERATED):
        path = str(generated_file(path))
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

    Nothing past the last row asked for is read. Files of a split follow one another by name. The
    space around a text of a `.txt` file is not part of it. Of the rows wanted, `start` were read
    before. With `streaming`, rows of the hub come over the network, and are not kept here.

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
