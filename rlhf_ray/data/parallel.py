"""Rows through a function, in order: in this process, or in several where that pays."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rlhf_ray.data.errors import RowError
from rlhf_ray.data.files import Row
from rlhf_ray.data.tokenization import Outcome, RowWork, T
from rlhf_ray.errors import RunError

ROWS_WORTH_PROCESSES = 20_000  # below, starting processes takes longer than the rows do
_CHUNK_ROWS = 256
_CHUNK_S = 600.0
_CHUNKS_AHEAD = 4  # a process; bounds the rows held at a time

_work: RowWork[Any]  # of a worker process, for its life


def convert(
    rows: Iterable[Row | RowError], work: RowWork[T], *, num_workers: int
) -> Iterator[Outcome[T]]:
    """What `work` makes of each row, in the order of rows.

    Args:
        rows: Read no further ahead than keeps the processes busy.
        work: Goes to each process once.
        num_workers: Processes; 0 for one a core once there are many rows.
    """
    rows = iter(rows)
    if num_workers == 0:
        for row in itertools.islice(rows, ROWS_WORTH_PROCESSES):
            yield from work(row)
        num_workers = len(os.sched_getaffinity(0))
        first = next(rows, None)
        if first is None:
            return
        rows = itertools.chain([first], rows)
    if num_workers == 1:
        for row in rows:
            yield from work(row)
        return
    yield from _in_processes(rows, work, num_workers)


def _in_processes(
    rows: Iterator[Row | RowError], work: RowWork[T], num_workers: int
) -> Iterator[Outcome[T]]:
    # Forking would copy the locks of a tokenizer's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _begin, (work,))
    waiting: deque[Future[list[Outcome[Any]]]] = deque()
    try:
        while chunk := list(itertools.islice(rows, _CHUNK_ROWS)):
            waiting.append(pool.submit(_convert_chunk, chunk))
            if len(waiting) >= num_workers * _CHUNKS_AHEAD:
                yield from _finished(waiting.popleft())
        while waiting:
            yield from _finished(waiting.popleft())
    except BaseException:  # an interrupt as well, and a reader that wants no more
        for process in multiprocessing.active_children():
            process.kill()  # one that hangs would keep this process from ending
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _finished(chunk: Future[list[Outcome[Any]]]) -> list[Outcome[Any]]:
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


def _begin(work: RowWork[Any]) -> None:
    global _work
    _work = work


def _convert_chunk(chunk: list[Row | RowError]) -> list[Outcome[Any]]:
    return [outcome for row in chunk for outcome in _work(row)]
