"""Rows through a function, in order: in this process, or in several where that pays.

`datasets` does the same by `Dataset.map(num_proc=...)`, and as quickly. But it forks, which copies
the locks of a tokenizer's threads and of Ray's in whatever state they are; it wants all rows in a
file before it begins, as large as the data, so that a fault of the first row is found behind the
last; and it counts no rows by the reason why they are left out.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeAlias

from rlhf_ray.data.row import Row
from rlhf_ray.data.rows.report import Converted
from rlhf_ray.errors import RowError, RunError
from rlhf_ray.parent_process import end_with_parent

ROWS_WORTH_PROCESSES = 20_000  # below, starting processes takes longer than the rows do
_CHUNK_ROWS = 256
_CHUNK_BYTES = 4 << 20  # of a chunk's texts; a book may be as long alone
_CHUNK_S = 600.0
_CHUNKS_AHEAD = 4  # a process; bounds the rows held at a time

# What is made of rows that follow one another; it travels to other processes.
Work: TypeAlias = Callable[[list[Row | RowError]], Converted]
_work: Work  # of a worker process, for its life


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
