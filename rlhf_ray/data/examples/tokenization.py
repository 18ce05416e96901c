"""The base of what each job makes of samples, and the way of one row through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.data.examples.lengths import LengthLimit
from rlhf_ray.data.formats.row_format import Kind
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.rows.records import RecordKind
from rlhf_ray.data.rows.rows import Rows
from rlhf_ray.errors import RowError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Kept(Generic[T]):
    """One example for the job; `is_piece` where it is one of several that a long text gave."""

    row: T
    truncated: bool = False
    is_piece: bool = False


Outcome: TypeAlias = Kept[T] | RowError


@dataclass(frozen=True, kw_only=True)
class Tokenization(ABC, Generic[T]):
    """From samples to a job's examples; it travels to other processes.

    Attributes:
        what: What the job takes, for messages.
        kinds: Kinds of formats that it can take.
        kind: Of its examples, as records.
        chat: As in `DataConfig`.
    """

    what: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    kind: ClassVar[RecordKind[Any]]

    tokenizer: Any
    chat: bool
    limit: LengthLimit

    @classmethod
    def of(cls, config: DataConfig, tokenizer: Tokenizer, *, max_length: int) -> Self:
        """What the configuration asks for, in sequences of `max_length` tokens at most."""
        limit = LengthLimit.of(config, tokenizer, max_length, "max_length")
        return cls(tokenizer=tokenizer, chat=config.chat, limit=limit)

    def parts(self, sample: Sample) -> Iterator[Sample | RowError]:
        """The samples that become one example each, what cannot become one in its place.

        Raises:
            RowError: There are none.
        """
        yield sample

    def examples(self, sample: Sample) -> Iterator[Kept[T] | RowError]:
        """What becomes of one part: one example, or several where a text may be cut into pieces.

        Raises:
            RowError, DataError: As in `tokenize`.
        """
        yield self.tokenize(sample)

    @abstractmethod
    def tokenize(self, sample: Sample) -> Kept[T]:
        """The example of one part.

        Raises:
            RowError: It is malformed, or nothing can be learnt from it.
            DataError: No row can be used with this tokenizer, or this one is too long and that is
                an error.
        """

    def link(self, rows: Rows[T]) -> Rows[T]:
        """The examples of a data set, once all are known."""
        return rows
