"""From a configuration to a job's rows: all at once, or as a stream.

All are read, tokenized, counted, kept and mixed; those of a stream are made as they are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.examples.tokenization import T, Tokenization
from rlhf_ray.data.files.local import LocalData
from rlhf_ray.data.files.sources import HubData
from rlhf_ray.data.files.splits import parse_split
from rlhf_ray.data.loading import cache
from rlhf_ray.data.loading.passes import Check, Passes, sources_of
from rlhf_ray.data.rows.report import Converted, Loaded, RowReport, merged
from rlhf_ray.data.rows.rows import MixedRows, StoredRows, mix
from rlhf_ray.data.rows.store import RowStore
from rlhf_ray.data.rows.streaming import RowStream, SourceStream, StreamSettings
from rlhf_ray.errors import DataError

_QUIET_S = 2.0


def load(config: DataConfig, job: Tokenization[T], *, seed: int) -> Loaded[T]:
    """All rows of a data set, in their order; or of several, mixed.

    Of several, ids begin with the number of the source, and a row that is repeated has the number
    of its turn behind its id. The order depends on the seed alone.

    Raises:
        DataError: No data, an unknown format, a malformed row that is not to be skipped, a sequence
            that is too long where that is an error, or nothing left.
    """
    loaded = [_load(Passes(source, config, job)) for source in sources_of(config)]
    if not config.sources:
        return loaded[0]
    source_of, taken = mix(
        [len(source.rows) for source in loaded],
        [source.probability for source in config.sources],
        until=config.mixing,
        seed=seed,
    )
    rows = MixedRows([source.rows for source in loaded], source_of, taken, kind=job.kind)
    data = " + ".join(source.path for source in config.sources)
    return Loaded(rows=rows, report=merged([source.report for source in loaded], data))


def _load(passes: Passes[T]) -> Loaded[T]:
    job = passes.job
    decides = (passes.data, passes.source, passes.config, job)
    kept_in = cache.cache_folder(*decides) if passes.config.cache else None
    found = cache.read(kept_in, job.kind.schema) if kept_in else None
    if found is not None:
        dataset, report = found
        report.close(" (tokenized before)")
    else:
        with contextlib.closing(RowStore(job.kind.schema, kept_in)) as store:
            report = _tokenize(passes, store)
            dataset = store.finish()
            if kept_in and store.file is not None:
                with contextlib.suppress(DataError):  # the rows are there all the same
                    if cache.cache_folder(*decides) == kept_in:
                        cache.keep(store.file, kept_in, report)
    return Loaded(rows=job.link(StoredRows(dataset, job.kind)), report=report)


def _tokenize(passes: Passes[T], store: RowStore) -> RowReport:
    """Fill the store; what the rows were is returned."""
    opening = passes.begin()
    report = RowReport(data=passes.source.path, format=opening.words)
    for error in opening.errors:
        report.leave_out(error, skip=passes.skips)
    parts = passes.counted(opening, report, num_workers=passes.config.workers)
    what = f"tokenizing {Path(passes.source.path).name}"
    for part in shown(parts, what, count=lambda part: part.num_rows):
        store.add(part.table)
    report.close()
    return report


def shown(items: Iterable[T], what: str, *, count: Callable[[T], int]) -> Iterator[T]:
    """The same items; once they take more than two seconds, a terminal shows how many came.

    `what` is it in words; an item counts as many as `count` says.
    """
    import rich
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    consoles = (rich.get_console(), Console(stderr=True))
    console = next((console for console in consoles if console.is_terminal), None)
    if console is None:
        yield from items
        return
    count_of = TextColumn("{task.completed:,.0f} rows")  # of how many is not known
    columns = (TextColumn("{task.description}"), count_of, TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(what, total=None)
    began = time.monotonic()
    running = False
    try:
        for item in items:
            if not running and time.monotonic() - began > _QUIET_S:
                progress.start()
                running = True
            progress.advance(task, count(item))
            yield item
    finally:
        progress.stop()


def open_stream(
    config: DataConfig, job: Tokenization[T], *, seed: int, check: Check[T] | None = None
) -> RowStream[T]:
    """The examples of a job's data as they are needed.

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
        passes = Passes(source, config, job, check)
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
    report, parts = _counted(passes, 0)
    tables = [passes.job.kind.schema.empty_table()]
    for part in parts:
        tables.append(part.table)
        if report.num_kept >= num_rows:
            break
    else:
        report.close(" in a pass")
    return pa.concat_tables(tables).combine_chunks(), report


def _read(passes: Passes[T], start: int) -> Iterator[Converted]:
    """The rows of one pass from a number on; counts go to the log as they come and at its end."""
    report, parts = _counted(passes, start)
    log_at = 1_000
    for part in parts:
        if report.num_read >= log_at:
            report.log(" so far")
            log_at *= 10
        yield part
    if start == 0:
        report.close(" in this pass")
    else:
        report.log(f" in the rest of this pass, from row {start} on")


def _counted(passes: Passes[T], start: int) -> tuple[RowReport, Iterator[Converted]]:
    """Rows of one pass from a number on, and the report that counts them as they come."""
    report = RowReport(data=passes.source.path, format=passes.opening.words)
    # Processes only where they are asked for: a step takes few rows.
    num_workers = passes.config.workers or 1
    return report, passes.counted(passes.begin_at(start), report, num_workers=num_workers)


def _decided_by(passes: Passes[T]) -> Iterator[str]:
    """What decides which examples there are; of files names and sizes, for they are large."""
    yield from cache.decided_by(passes.source, passes.config, passes.job)
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
