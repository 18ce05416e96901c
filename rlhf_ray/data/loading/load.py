"""From a configuration to a job's rows: read, tokenize, count, keep, mix."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.examples.tokenization import T, Tokenization
from rlhf_ray.data.loading import cache
from rlhf_ray.data.loading.passes import Passes, sources_of
from rlhf_ray.data.rows.mixing import mix
from rlhf_ray.data.rows.report import Loaded, RowReport, merged
from rlhf_ray.data.rows.rows import MixedRows, StoredRows
from rlhf_ray.data.rows.store import RowStore
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
    loaded = [_load(Passes.over(source, config, job)) for source in sources_of(config)]
    if not config.sources:
        return loaded[0]
    source_of, taken = mix(
        [len(source.rows) for source in loaded],
        [source.probability for source in config.sources],
        until=config.mixing,
        seed=seed,
    )
    rows = MixedRows([source.rows for source in loaded], source_of, taken, id_name=job.kind.id_name)
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
        with RowStore(job.kind.schema, kept_in) as store:
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

    Args:
        items: What takes a while.
        what: It is, in words.
        count: How many an item stands for.
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
