"""Rows that are read and tokenized as they are needed, of data that no disk or patience holds.

A pass over a data set comes in blocks: the next rows that give so many examples, shuffled among
themselves. Where a block begins and how much of it was taken is the whole state, so that a resumed
run reads on from there. As in any other order every example comes exactly once a pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from rlhf_ray.data.rows.records import RecordKind
from rlhf_ray.data.rows.report import Converted
from rlhf_ray.data.rows.rows import draws
from rlhf_ray.errors import RunError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How rows are taken from a stream.

    Attributes:
        seed: Of shuffles and of the draws of sources.
        shuffle: Or take examples as they come.
        block_rows: Examples that are shuffled among themselves, at least; a row's stay together.
    """

    seed: int
    shuffle: bool
    block_rows: int


class Block(Generic[T]):
    """Examples that follow one another, in the order in which they are taken.

    Attributes:
        number_of_pass: From 0.
        first_row: Rows of the data set before it.
        end_row: The same of what follows; None where the pass ends with it.
    """

    def __init__(self, kind: RecordKind[T], number_of_pass: int, first_row: int) -> None:
        """Begin with no examples."""
        self.kind = kind
        self.number_of_pass, self.first_row = number_of_pass, first_row
        self.end_row: int | None = first_row
        self.tables: list[pa.Table] = []
        self.num_examples = 0
        self.is_whole = False
        self._table = kind.schema.empty_table()
        self._order: Sequence[int] = ()

    def add(self, table: pa.Table) -> None:
        """Put examples behind the others."""
        self.tables.append(table)
        self.num_examples += len(table)

    def close(self, settings: StreamSettings, source: int) -> None:
        """Fix the order of its examples: a function of the seed and its place."""
        self._table = pa.concat_tables([self._table, *self.tables]).combine_chunks()
        self.tables = []
        self._order = range(self.num_examples)
        if settings.shuffle:
            place = [settings.seed, source, self.number_of_pass, self.first_row]
            generator = np.random.Generator(np.random.PCG64(place))
            self._order = generator.permutation(self.num_examples).tolist()
        self.is_whole = True

    def __getitem__(self, number: int) -> T:
        return self.kind.record(self._table, self._order[number])


class SourceStream(Generic[T]):
    """The examples of one data set, pass after pass.

    Attributes:
        read: Converted rows from a number on, of one pass; what becomes of each is counted where
            they are read.
        num_embeddings: Tokens from here on are refused; None for none.
    """

    def __init__(
        self,
        read: Callable[[int], Iterator[Converted]],
        kind: RecordKind[T],
        settings: StreamSettings,
        *,
        source: int = 0,
    ) -> None:
        """Start at the first row of the first pass; nothing is read so far."""
        self.read, self.kind, self.settings, self.source = read, kind, settings, source
        self.num_embeddings: int | None = None
        self._go_to(0, 0, 0)

    @property
    def num_passes(self) -> int:
        """Those that are over, as far as that is known before more is read."""
        block = self._block
        is_last = block.is_whole and block.end_row is None
        return block.number_of_pass + (is_last and self._taken == block.num_examples)

    def take(self) -> T:
        """The next example.

        Raises:
            DataError: A malformed row that is not to be skipped, or a pass gives no example.
        """
        self._settle()
        example = self._block[self._taken]
        self._taken += 1
        # The next block grows as this one is used up, so that no batch waits for all of it.
        ahead = self.settings.block_rows * self._taken // self._block.num_examples
        self._grow(self._ahead, ahead)
        return example

    def state_dict(self) -> dict[str, int]:
        """Where the block begins, and how many of its examples were taken."""
        block = self._block
        return {"pass": block.number_of_pass, "row": block.first_row, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._go_to(int(state["pass"]), int(state["row"]), int(state["taken"]))

    def _go_to(self, number_of_pass: int, row: int, taken: int) -> None:
        self._rows: Iterator[Converted] | None = None
        self._ahead: Block[T] = Block(self.kind, number_of_pass, row)
        self._block = self._ahead
        self._taken = taken

    def _settle(self) -> None:
        """Make the current block one that has an example left."""
        while not self._block.is_whole or self._taken >= self._block.num_examples:
            if self._block.is_whole:
                self._taken = 0
            self._grow(self._ahead, self.settings.block_rows)
            self._block = self._ahead
            self._ahead = self._after(self._block)

    def _after(self, block: Block[T]) -> Block[T]:
        if block.end_row is None:
            self._rows = None
            return Block(self.kind, block.number_of_pass + 1, 0)
        return Block(self.kind, block.number_of_pass, block.end_row)

    def _grow(self, block: Block[T], num_examples: int) -> None:
        """Read until a block has so many examples; one that has all it takes is closed."""
        if self._rows is None and not block.is_whole and num_examples:
            self._rows = self.read(block.first_row)
        while self._rows is not None and not block.is_whole and block.num_examples < num_examples:
            part = next(self._rows, None)
            if part is None:
                block.end_row = None
            else:
                assert block.end_row is not None
                block.end_row += part.num_rows
                self._check(part.table)
                block.add(part.table)
            if part is None or block.num_examples >= self.settings.block_rows:
                block.close(self.settings, self.source)

    def _check(self, table: pa.Table) -> None:
        largest_ids = table.column("largest_id").to_numpy()
        if self.num_embeddings is None or not (largest_ids >= self.num_embeddings).any():
            return
        at = int(largest_ids.argmax())
        name = table.column(self.kind.id_name)[at].as_py()
        raise RunError(
            f"row {name} holds token {largest_ids[at]}, but the model has embeddings of the tokens "
            f"0 to {self.num_embeddings - 1} alone"
        )


class RowStream(Generic[T]):
    """The rows of a job whose data are streamed: one source, or several by probability.

    Attributes:
        digest: Of what decides which examples there are.
        longest: The most tokens that an example may have.
    """

    def __init__(
        self,
        sources: Sequence[SourceStream[T]],
        probabilities: Sequence[float],
        settings: StreamSettings,
        *,
        digest: str,
        longest: int,
    ) -> None:
        """Start at the beginning of every source."""
        self.sources, self.probabilities, self.settings = sources, probabilities, settings
        self.digest, self.longest = digest, longest
        self._position = 0
        self._drawn = self._draws_from(0)

    @property
    def position(self) -> int:
        """Examples taken so far, over all passes."""
        return self._position

    @property
    def epochs(self) -> float:
        """Passes that every source has completed."""
        return float(min(source.num_passes for source in self.sources))

    def take(self, num_rows: int) -> list[T]:
        """The next examples.

        Raises:
            DataError: See `SourceStream.take`.
        """
        taken = []
        for number in itertools.islice(self._drawn, num_rows):
            source = self.sources[number]
            example = source.take()
            is_one = len(self.sources) == 1
            taken.append(example if is_one else source.kind.of_source(example, number))
        self._position += len(taken)
        return taken

    def refuse_tokens_from(self, num_embeddings: int) -> None:
        """Of what is read from now on, refuse tokens that a model has no embedding of."""
        for source in self.sources:
            source.num_embeddings = num_embeddings

    def first(self, num_rows: int) -> list[T]:
        """The first examples as they come, whatever was taken: a look, which changes nothing."""
        settings = replace(self.settings, shuffle=False, block_rows=1)
        sources = [
            SourceStream(source.read, source.kind, settings, source=source.source)
            for source in self.sources
        ]
        look = RowStream(
            sources, self.probabilities, settings, digest=self.digest, longest=self.longest
        )
        return look.take(num_rows)

    def state_dict(self) -> dict[str, Any]:
        """Position, and that of every source."""
        return {
            **self._fixed(),
            "position": self._position,
            "sources": [source.state_dict() for source in self.sources],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; see `DataOrder`."""
        for name, value in self._fixed().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the stream to resume has {name} {state.get(name)!r}, this run's has {value!r}"
                )
        self._position = int(state["position"])
        self._drawn = self._draws_from(self._position)
        for source, its in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(its)

    def _fixed(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "seed": self.settings.seed,
            "shuffle": self.settings.shuffle,
            "block_rows": self.settings.block_rows,
            "probabilities": list(self.probabilities),
        }

    def _draws_from(self, position: int) -> Iterator[int]:
        if len(self.sources) == 1:
            return itertools.repeat(0)
        blocks = draws(self.probabilities, seed=self.settings.seed)
        every = itertools.chain.from_iterable(block.tolist() for block in blocks)
        return itertools.islice(every, position, None)
