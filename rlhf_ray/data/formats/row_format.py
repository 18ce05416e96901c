"""One format of rows: what it is recognised by, what it is good for, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rlhf_ray.data.columns import Names
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import is_list_of, is_message
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.errors import RowError, short

Reader: TypeAlias = Callable[[Row], Iterator[Sample | RowError]]
Fits: TypeAlias = Callable[[Columns], bool]
Kind = Literal["prompts", "texts", "examples", "labels", "preferences"]

ALPACA = ("instruction", "input", "system", "history")
_MOST_ROWS = 10_000  # of one group; the largest tree of OpenAssistant has some hundreds


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How neighbouring rows become one: answers to one prompt, messages of one tree.

    Only neighbours are put together, as published files have them, so that no more than one group
    is held.

    Attributes:
        key: The column that they have in common.
        join: One row of several.
    """

    key: str
    join: Callable[[list[Row]], Row]

    def __call__(self, rows: Iterator[Row | RowError]) -> Iterator[Row | RowError]:
        """One row for neighbours that have one key; what is wrong with a row in its place."""
        group: list[Row] = []
        for row in rows:
            if isinstance(row, RowError):
                yield row
                continue
            is_new = not group or row.columns.get(self.key) != group[0].columns.get(self.key)
            if group and (is_new or len(group) == _MOST_ROWS):
                yield self._joined(group)
                group = []
            group.append(row)
        if group:
            yield self._joined(group)

    def _joined(self, group: list[Row]) -> Row | RowError:
        if len(group) == _MOST_ROWS:
            what = f"{_MOST_ROWS} rows with one {self.key!r}: {short(group[0].columns[self.key])}"
            return RowError(group[0].where, "too many rows of one group", what)
        try:
            return self.join(group)
        except RowError as error:
            return error


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """One format.

    Attributes:
        kind: What its rows are good for.
        columns: What it is recognised by, and what every row must have.
        read: The samples of a row.
        read_chat: The same where strings shall become chats; None where `read` serves.
        prepare: The row as `read` takes it, where names alone do not do.
        prompt_columns: What the prompt is made of; reward functions get all others.
        names: What a published data set calls its columns, by the names that `read` knows: as
            `columns` of the configuration would have it.
        fits: Whether these columns hold what they must, where their names alone do not tell.
        group: How neighbouring rows become one, where a sample has several of them.
        reads_prompt: Whether its prompt is not the column `prompt` as it stands.
        note: What the log says of such data.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    read: Reader
    read_chat: Reader | None = None
    prepare: Callable[[Row], Row] = lambda row: row
    prompt_columns: tuple[str, ...] = ("prompt",)
    names: Names = field(default_factory=dict)
    fits: Fits = lambda columns: True
    group: Grouping | None = None
    reads_prompt: bool = False
    note: str = ""

    def shown_by(self, columns: Columns) -> bool:
        """Whether a row with these columns is one of this format."""
        return all(name in columns for name in self.columns) and self.fits(columns)


def lists_objects(name: str, *keys: str) -> Fits:
    """Whether a column is a list of objects that all have these keys."""
    return lambda columns: is_list_of(
        columns[name], lambda item: isinstance(item, dict) and set(keys) <= item.keys()
    )


def lists_texts(name: str) -> Fits:
    """Whether a column is a list of texts."""
    return lambda columns: is_list_of(columns[name], lambda item: isinstance(item, str))


def lists_messages(name: str) -> Fits:
    """Whether a column, if it is there, is a list of messages."""
    return lambda columns: is_list_of(columns.get(name), is_message)
