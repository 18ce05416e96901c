"""What one pass over a data set reads, recognises, tokenizes and counts.

Rows are tokenized in order, in this process or in several where that pays. `datasets` does the same
by `Dataset.map(num_proc=...)`, and as quickly. But it forks, which copies the locks of a
tokenizer's threads and of Ray's in whatever state they are; it wants all rows in a file before it
begins, as large as the data, so that a fault of the first row is found behind the last; and it
counts no rows by the reason why they are left out.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Generic, TypeAlias, TypeVar

import pyarrow as pa

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.examples.tokenization import Kept, Outcome, Tokenization
from rlhf_ray.data.files.local import LocalData
from rlhf_ray.data.files.sources import HubData, find_data, log_files, read_rows
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.formats.table import ROW_FORMATS, check_names, recognise, refusal, samples
from rlhf_ray.data.row import Row
from rlhf_ray.data.rows.report import Converted, RowReport
from rlhf_ray.errors import DataError, RowError, RunError
from rlhf_ray.parent_process import end_with_parent

logger = logging.getLogger(__name__)

ROWS_WORTH_PROCESSES = 20_000  # below, starting processes takes longer than the rows do
_CHUNK_ROWS = 256
_CHUNK_BYTES = 4 << 20  # of a chunk's texts; a book may be as long alone
_CHUNK_S = 600.0
_CHUNKS_AHEAD = 4  # a process; bounds the rows held at a time

T = TypeVar("T")
S = TypeVar("S")
# Examples -> what is wrong with each, None where nothing is.
Check: TypeAlias = Callable[[Sequence[T]], Sequence[str | None]]
# What is made of rows that follow one another; it travels to other processes.
Work: TypeAlias = Callable[[list[Row | RowError]], Converted]
_work: Work  # of a worker process, for its life


@dataclass(frozen=True, kw_only=True)
class RowWork(Generic[T]):
    """What happens to each row of one data set, on whichever process."""

    format_name: str
    job: Tokenization[T]

    def __call__(self, chunk: list[Row | RowError]) -> Converted:
        """The examples of rows, and what is wrong with others."""
        examples: list[Kept[T]] = []
        errors: list[RowError] = []
        end = None
        try:
            for outcome in itertools.chain.from_iterable(map(self.outcomes, chunk)):
                errors.append(outcome) if isinstance(outcome, RowError) else examples.append(
                    outcome
                )
        except DataError as error:
            end = error
        return Converted(
            num_rows=len(chunk),
            table=self.job.kind.table(example.row for example in examples),
            num_truncated=sum(example.truncated for example in examples),
            num_pieces=sum(example.is_piece for example in examples),
            errors=errors,
            end=end,
        )

    def outcomes(self, row: Row | RowError) -> list[Outcome[T]]:
        """All examples of a row, what is wrong with one in its place."""
        read = partial(samples, ROW_FORMATS[self.format_name], chat=self.job.chat)
        return [
            outcome
            for sample in _outcomes(read, row)
            for part in _outcomes(self.job.parts, sample)
            for outcome in _outcomes(self.job.examples, part)
        ]


def _outcomes(
    produce: Callable[[S], Iterable[T | RowError]], item: S | RowError
) -> list[T | RowError]:
    """What is made of an item, or the error that stands for it."""
    if isinstance(item, RowError):
        return [item]
    made: list[T | RowError] = []
    try:
        made.extend(produce(item))
    except RowError as error:
        return [error]
    return made


def sources_of(config: DataConfig) -> Sequence[SourceConfig]:
    """The data sets that a configuration names."""
    return config.sources or [config]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What the first rows of a data set show.

    Attributes:
        format: Of the first row that shows one.
        words: The same for the log, with its columns.
        errors: What is wrong with the rows before it, which are left out.
        rows: To be converted: from that row on, or from wherever a pass begins.
    """

    format: RowFormat
    words: str
    errors: Sequence[RowError]
    rows: Iterator[Row | RowError]


@dataclass(frozen=True)
class Passes(Generic[T]):
    """Passes over one data set.

    Attributes:
        source: Which of the data sets of `config`.
        job: What becomes of a row.
        check: What else may be wrong with an example; as a malformed row it is an error, or counted
            and left out.
    """

    source: SourceConfig
    config: DataConfig
    job: Tokenization[T]
    check: Check[T] | None = None

    @cached_property
    def data(self) -> LocalData | HubData:
        """What the source names; the log says which of its files are read.

        Raises:
            DataError: There are no data.
        """
        data = find_data(self.source.path)
        log_files(data, self.source.split)
        return data

    def begin(self) -> Opening:
        """Read until a row shows a format.

        Raises:
            DataError: There are no rows, or the job cannot take what they show.
        """
        report = RowReport(data=self.source.path)
        errors: list[RowError] = []
        rows = self._rows(0)
        for row in rows:
            try:
                if isinstance(row, RowError):
                    raise row
                if self.source.format == "auto":
                    format_ = recognise(row, kinds=self.job.kinds, what=self.job.what)
                else:
                    format_ = ROW_FORMATS[self.source.format]
            except RowError as error:
                report.leave_out(error, skip=self.skips)
                errors.append(error)
                continue
            check_names(row, self.job.kinds)
            if format_.kind not in self.job.kinds:
                raise refusal(row, format_, self.job.kinds, self.job.what)
            if format_.note:
                logger.warning("%s: %s", self.source.path, format_.note)
            used = {*format_.columns, *format_.prompt_columns}
            columns = ", ".join(name for name in row.columns if name in used)
            return Opening(
                format=format_,
                words=f"{format_.name} ({columns})",
                errors=errors,
                rows=itertools.chain([row], rows),
            )
        report.close()
        raise AssertionError("a report without a row kept does not close")

    def begin_at(self, start: int) -> Opening:
        """The same with the rows from a number on, of whatever use those before it are."""
        return replace(self.opening, rows=self._rows(start))

    @cached_property
    def opening(self) -> Opening:
        """What `begin` finds, with none of the rows."""
        return replace(self.begin(), rows=iter(()))

    def counted(
        self, opening: Opening, report: RowReport, *, num_workers: int
    ) -> Iterator[Converted]:
        """Convert the rows of an opening that are left to read, and count them.

        Raises:
            DataError: A malformed row that is not to be skipped.
        """
        format_, rows = opening.format, opening.rows
        work = RowWork(format_name=format_.name, job=self.job)
        grouped = format_.group(rows) if format_.group else rows
        for part in map(self._checked, convert(grouped, work, num_workers=num_workers)):
            report.count(part, skip=self.skips)
            yield part

    @property
    def skips(self) -> bool:
        """Whether malformed rows are counted and left out."""
        return self.config.on_bad_row == "skip"

    def _rows(self, start: int) -> Iterator[Row | RowError]:
        return read_rows(
            self.source,
            data=self.data,
            separator=self.config.separator,
            start=start,
            streaming=self.config.streaming,
        )

    def _checked(self, part: Converted) -> Converted:
        """The same without examples in which the check finds something wrong."""
        if self.check is None or not len(part.table):
            return part
        kind = self.job.kind
        examples = kind.records(part.table)
        faults = self.check(examples)
        errors = [
            RowError(str(getattr(example, kind.id_name)), "rewards cannot score it", fault)
            for example, fault in zip(examples, faults, strict=True)
            if fault is not None
        ]
        fine = pa.array([fault is None for fault in faults])
        return replace(part, table=part.table.filter(fine), errors=[*part.errors, *errors])


def convert(rows: Iterable[Row | RowError], work: Work, *, num_workers: int) -> Iterator[Converted]:
    """What `work` makes of rows, in their order.

    Rows are read no further ahead than keeps the processes busy, to each of which `work` goes once.
    These are `num_workers`; 0 stands for one a core once there are many rows.
    """
    rows = iter(rows)
    if num_workers == 0:
        yield from map(work, _chunks(itertools.islice(rows, ROWS_WORTH_PROCESSES)))
        num_workers = len(os.sched_getaffinity(0))
        first = next(rows, None)
        if first is None:
            return
        rows = itertools.chain([first], rows)
    if num_workers == 1:
        yield from map(work, _chunks(rows))
    else:
        yield from _in_processes(rows, work, num_workers)


def _in_processes(
    rows: Iterator[Row | RowError], work: Work, num_workers: int
) -> Iterator[Converted]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _begin, (work, os.getpid()))
    waiting: deque[Future[Converted]] = deque()
    try:
        for chunk in _chunks(rows):
            waiting.append(pool.submit(_convert, chunk))
            if len(waiting) >= num_workers * _CHUNKS_AHEAD:
                yield _finished(waiting.popleft())
        while waiting:
            yield _finished(waiting.popleft())
    except BaseException:  # an interrupt as well, and a reader that wants no more
        for process in [*(pool._processes or {}).values()]:
            process.kill()  # one that hangs would keep this process from ending
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(rows: Iterator[Row | RowError]) -> Iterator[list[Row | RowError]]:
    """Rows to be converted at a time: not too many, and not too long."""
    chunk: list[Row | RowError] = []
    num_bytes = 0
    for row in rows:
        chunk.append(row)
        num_bytes += 0 if isinstance(row, RowError) else _text_bytes(row.columns)
        if len(chunk) == _CHUNK_ROWS or num_bytes > _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _text_bytes(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_text_bytes, value.values()))
    return sum(map(_text_bytes, value)) if isinstance(value, list) else 8


def _finished(chunk: Future[Converted]) -> Converted:
    try:
        return chunk.result(timeout=_CHUNK_S)
    except TimeoutError as error:
        raise RunError(
            f"a process that tokenizes did not finish {_CHUNK_ROWS} rows within {_CHUNK_S:.0f} s; "
            "set data.workers to 1 to tokenize without others"
        ) from error
    except BrokenProcessPool as error:
        raise RunError(
            "a process that tokenizes died, perhaps for want of memory; lower data.workers"
        ) from error


def _begin(work: Work, parent: int) -> None:
    # Its queue would keep it waiting for rows when the parent was killed.
    end_with_parent(parent)
    global _work
    _work = work


def _convert(chunk: list[Row | RowError]) -> Converted:
    return _work(chunk)
