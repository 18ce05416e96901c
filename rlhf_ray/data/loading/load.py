"""From a configuration to a job's rows: read, recognise, tokenize, count, keep, mix."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.errors import DataError, RowError
from rlhf_ray.data.examples.tokenization import RowWork, T, Tokenization
from rlhf_ray.data.files.sources import find_data, log_files, read_rows
from rlhf_ray.data.formats.recognition import check_own_names, recognise, refusal
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.formats.table import ROW_FORMATS
from rlhf_ray.data.loading import cache
from rlhf_ray.data.loading.parallel import convert
from rlhf_ray.data.loading.progress import shown
from rlhf_ray.data.row import Row
from rlhf_ray.data.rows.mixing import mix
from rlhf_ray.data.rows.report import Loaded, RowReport, merged
from rlhf_ray.data.rows.rows import MixedRows, StoredRows
from rlhf_ray.data.rows.store import RowStore

logger = logging.getLogger(__name__)


def load(config: DataConfig, job: Tokenization[T], *, seed: int) -> Loaded[T]:
    """All rows of a data set, in their order; or of several, mixed.

    Of several, ids begin with the number of the source, and a row that is repeated has the number
    of its turn behind its id. The order depends on the seed alone.

    Raises:
        DataError: No data, an unknown format, a malformed row that is not to be skipped, a sequence
            that is too long where that is an error, or nothing left.
    """
    if not config.sources:
        return _load_source(config, config, job)
    loaded = [_load_source(source, config, job) for source in config.sources]
    source_of, taken = mix(
        [len(source.rows) for source in loaded],
        [source.probability for source in config.sources],
        until=config.mixing,
        seed=seed,
    )
    rows = MixedRows([source.rows for source in loaded], source_of, taken, id_name=job.kind.id_name)
    data = " + ".join(source.path for source in config.sources)
    return Loaded(rows=rows, report=merged([source.report for source in loaded], data))


def _load_source(source: SourceConfig, config: DataConfig, job: Tokenization[T]) -> Loaded[T]:
    data = find_data(source.path)
    log_files(data, source.split)
    kept_in = cache.cache_folder(data, source, config, job) if config.cache else None
    found = cache.read(kept_in, job.kind.schema) if kept_in else None
    if found is not None:
        dataset, report = found
        report.close(" (tokenized before)")
    else:
        with RowStore(job.kind.schema, kept_in) as store:
            rows = read_rows(source, data=data, separator=config.separator)
            report = _tokenize(rows, source, config, job, store)
            dataset = store.finish()
            if kept_in and store.file is not None:
                with contextlib.suppress(DataError):  # the rows are there all the same
                    if cache.cache_folder(data, source, config, job) == kept_in:
                        cache.keep(store.file, kept_in, report)
    return Loaded(rows=job.link(StoredRows(dataset, job.kind)), report=report)


def _tokenize(
    rows: Iterator[Row | RowError],
    source: SourceConfig,
    config: DataConfig,
    job: Tokenization[Any],
    store: RowStore,
) -> RowReport:
    """Fill the store; what the rows were is returned."""
    report = RowReport(data=source.path)
    skip = config.on_bad_row == "skip"
    format_, rows = recognised(rows, source, report, job, skip=skip)
    work = RowWork(format_name=format_.name, job=job)
    converted = convert(rows, work, num_workers=config.workers)
    what = f"tokenizing {Path(source.path).name}"
    for part in shown(converted, what, count=lambda part: part.num_rows):
        report.count(part, skip=skip)
        store.add(part.table)
    report.close()
    return report


def recognised(
    rows: Iterator[Row | RowError],
    source: SourceConfig,
    report: RowReport,
    job: Tokenization[Any],
    *,
    skip: bool,
) -> tuple[RowFormat, Iterator[Row | RowError]]:
    """The format of the first row that shows one, and the rows from there on.

    Raises:
        DataError: None does, or the job cannot take what it shows.
    """
    for row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            if source.format == "auto":
                format_ = recognise(row, kinds=job.kinds, what=job.what)
            else:
                format_ = ROW_FORMATS[source.format]
        except RowError as error:
            report.leave_out(error, skip=skip)
            continue
        check_own_names(row, job.kinds)
        used = {*format_.columns, *format_.prompt_columns}
        report.format = f"{format_.name} ({', '.join(c for c in row.columns if c in used)})"
        if format_.kind not in job.kinds:
            raise refusal(row, format_, job.kinds, job.what)
        if format_.note:
            logger.warning("%s: %s", source.path, format_.note)
        rows = itertools.chain([row], rows)
        return format_, format_.group(rows) if format_.group else rows
    report.close()
    raise AssertionError("a report without a row kept does not close")
