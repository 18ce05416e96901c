"""A row of a data set, as a parser gives it and as its readers get it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rlhf_ray.errors import RowError

Columns: TypeAlias = dict[str, Any]
# With the line where a row begins, or its number where it has none.
NumberedRows: TypeAlias = Iterator[tuple[int, Columns | RowError]]
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
