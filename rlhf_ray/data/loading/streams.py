"""From a configuration to a stream: rows that are read and tokenized as they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.examples.tokenization import T, Tokenization
from rlhf_ray.data.files.local import LocalData
from rlhf_ray.data.files.sources import HubData
from rlhf_ray.data.files.splits import parse_split
from rlhf_ray.data.loading.cache import decided_by
from rlhf_ray.data.loading.passes import Check, Passes, sources_of
from rlhf_ray.data.rows.report import Converted, RowReport
from rlhf_ray.data.rows.streaming import RowStream, SourceStream, StreamSettings
from rlhf_ray.errors import DataError


def open_stream(
    config: DataConfig, job: Tokenization[T], *, seed: int, check: Check[T] | None = None
) -> RowStream[T]:
    """The examples of a job's data as they are needed.

    Args:
        config: Of the data; `streaming` is set.
        job: What becomes of a row.
        seed: Of shuffling and mixing.
        check: See `Passes`.

    Raises:
        DataError: No such data, or a first row that the job cannot take.
    """
    settings = StreamSettings(
        seed=seed, shuffle=config.shuffle, block_rows=config.shuffle_buffer if config.shuffle else 1
    )
    digest = hashlib.blake2b(digest_size=16)
    sources = []
    for number, passes in enumerate(open_passes(config, job, check=check)):
        for part in _decided_by(passes):
            digest.update(part.encode() + b"\0")
        read = partial(_read, passes)
        sources.append(SourceStream(read, job.kind, settings, source=number))
    shares = [source.probability for source in config.sources] or [1.0]
    return RowStream(
        sources, shares, settings, digest=digest.hexdigest(), longest=job.limit.num_tokens
    )


def open_passes(
    config: DataConfig, job: Tokenization[T], *, check: Check[T] | None = None
) -> list[Passes[T]]:
    """The passes over each data set, whose first rows are looked at.

    Raises:
        DataError: There are no rows, the job cannot take them, or their number, or rows beside
            them, would have to be known.
    """
    opened = []
    for source in sources_of(config):
        passes = Passes.over(source, config, job, check)
        _check_split(passes)
        format_ = passes.opening.format
        if format_.group is not None:
            raise DataError(
                f"{source.path!r} has {format_.name} rows, several of which are one example: a "
                "stream takes rows one by one; set data.streaming: false"
            )
        opened.append(passes)
    return opened


def first_examples(passes: Passes[T], num_rows: int) -> tuple[pa.Table, RowReport]:
    """The first examples, at least as many where there are, and counts of what was read.

    Raises:
        DataError: See `Passes.counted`.
    """
    report = _report(passes)
    tables = [passes.job.kind.schema.empty_table()]
    for part in _counted(passes, 0, report):
        tables.append(part.table)
        if report.num_kept >= num_rows:
            break
    else:
        report.close(" in a pass")
    return pa.concat_tables(tables).combine_chunks(), report


def _read(passes: Passes[T], start: int) -> Iterator[Converted]:
    """The rows of one pass from a number on; counts go to the log as they come and at its end."""
    report = _report(passes)
    log_at = 1_000
    for part in _counted(passes, start, report):
        if report.num_read >= log_at:
            report.log(" so far")
            log_at *= 10
        yield part
    if start == 0:
        report.close(" in this pass")
    else:
        report.log(f" in the rest of this pass, from row {start} on")


def _report(passes: Passes[T]) -> RowReport:
    return RowReport(data=passes.source.path, format=passes.opening.words)


def _counted(passes: Passes[T], start: int, report: RowReport) -> Iterator[Converted]:
    # Processes only where they are asked for: a step takes few rows.
    num_workers = passes.config.workers or 1
    return passes.counted(passes.begin_at(start), report, num_workers=num_workers)


def _decided_by(passes: Passes[T]) -> Iterator[str]:
    """What decides which examples there are; of files names and sizes, for they are large."""
    yield from decided_by(passes.source, passes.config, passes.job)
    if isinstance(passes.data, LocalData):
        for split, files in passes.data.named_by(passes.source.split).items():
            for file in files:
                yield f"{split} {file.path.name} {file.path.stat().st_size}"


def _check_split(passes: Passes[T]) -> None:
    """Refuse what takes the number of all rows to tell."""
    split = passes.source.split
    if isinstance(passes.data, HubData):
        is_known = "[" not in split
    else:
        is_known = not any(range_.needs_count for range_ in parse_split(split))
    if not is_known:
        raise DataError(
            f"a stream has no shares and no end to count from, got the split {split!r} of "
            f"{passes.source.path!r}: take skip and limit"
        )
