"""One format of rows: what it is recognised by, what it is good for, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from rlhf_ray.data.columns import Names, file_names, resolved
from rlhf_ray.data.errors import RowError
from rlhf_ray.data.formats.conversations import is_chat_beside
from rlhf_ray.data.formats.grouping import Grouping
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.formats.transcripts import with_turns
from rlhf_ray.data.row import Columns, Row

Reader: TypeAlias = Callable[[Row], Iterator[Sample | RowError]]
Kind = Literal["prompts", "texts", "examples", "labels", "preferences"]


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """One format.

    Attributes:
        kind: What its rows are good for.
        columns: What it is recognised by, and what every row must have.
        read: The samples of a row.
        read_chat: The same where strings shall become chats; None where `read` serves.
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
    prompt_columns: tuple[str, ...] = ("prompt",)
    names: Names = field(default_factory=dict)
    fits: Callable[[Columns], bool] = lambda columns: True
    group: Grouping | None = None
    reads_prompt: bool = False
    note: str = ""

    def samples(self, row: Row, *, chat: bool) -> Iterator[Sample | RowError]:
        """What a row says, given `chat` of the configuration.

        Raises:
            RowError: It is malformed.
        """
        named = replace(
            row,
            columns=row.columns | resolved(row.columns, self.names, row.where),
            names={**row.names, **file_names(self.names)},
            file_columns=row.found,
        )
        hidden = {*self.prompt_columns, *self.names} - {"tools"}
        others = {name: value for name, value in named.columns.items() if name not in hidden}
        if chat or (self._has_texts_of_turns(named) and is_chat_beside(named)):
            named = with_turns(named)
            read = self.read_chat or self.read
        else:
            read = self.read
        for sample in read(named):
            yield sample if isinstance(sample, RowError) else replace(sample, columns=others)

    def _has_texts_of_turns(self, row: Row) -> bool:
        """Whether the row has texts that are read as turns where they shall become chats."""
        return self.read_chat is not None or with_turns(row) is not row

    def shown_by(self, columns: Columns) -> bool:
        """Whether a row with these columns is one of this format."""
        return all(name in columns for name in self.columns) and self.fits(columns)
