"""From a configuration to a job's examples: read, recognise, tokenize, count, keep, mix."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data import cache
from rlhf_ray.data.errors import RowError
from rlhf_ray.data.files import Row, read_rows
from rlhf_ray.data.mixing import mix
from rlhf_ray.data.parallel import convert
from rlhf_ray.data.progress import shown
from rlhf_ray.data.recognition import recognise, refusal
from rlhf_ray.data.report import Loaded, RowReport, merged
from rlhf_ray.data.row_format import RowFormat
from rlhf_ray.data.row_formats import ROW_FORMATS
from rlhf_ray.data.tokenization import RowWork, T, Tokenization

logger = logging.getLogger(__name__)


def load(config: DataConfig, job: Tokenization[T], *, seed: int) -> Loaded[T]:
    """All examples of a data set, in the order of its rows; or of several, mixed.

    Of several, ids begin with the number of the source, and a row that is repeated has the number
    of its turn behind its id. The order depends on the seed alone.

    Raises:
        DataError: No data, an unknown format, a malformed row that is not to be skipped, a sequence
            that is too long where that is an error, or nothing left.
    """
    if not config.sources:
        return _load_source(config, config, job)
    loaded = [_load_source(source, config, job) for source in config.sources]
    places = mix(
        [len(source.rows) for source in loaded],
        [source.probability for source in config.sources],
        until=config.mixing,
        seed=seed,
    )
    rows = [_placed(loaded[source].rows, source, taken, job) for source, taken in places]
    data = " + ".join(source.path for source in config.sources)
    return Loaded(rows=rows, report=merged([source.report for source in loaded], data))


def _placed(rows: list[T], source: int, taken: int, job: Tokenization[T]) -> T:
    turn, index = divmod(taken, len(rows))
    row: Any = rows[index]
    again = f"@{turn + 1}" if turn else ""
    placed: T = replace(row, **{job.id_field: f"{source}/{getattr(row, job.id_field)}{again}"})
    return placed


def _load_source(source: SourceConfig, config: DataConfig, job: Tokenization[T]) -> Loaded[T]:
    kept_in = cache.cache_file(source, config, job) if config.cache else None
    found: Loaded[T] | None = cache.read(kept_in) if kept_in else None
    if found is not None:
        found.report.close(" (tokenized before)")
        return found
    loaded = _tokenize(source, config, job)
    if kept_in:
        cache.write(kept_in, loaded)
    return loaded


def _tokenize(source: SourceConfig, config: DataConfig, job: Tokenization[T]) -> Loaded[T]:
    report = RowReport(data=source.path)
    skip = config.on_bad_row == "skip"
    rows = read_rows(source, separator=config.separator)
    format_, rows = _recognised(rows, source, report, job, skip=skip)
    work = RowWork(format_name=format_.name, job=job)
    examples: list[T] = []
    outcomes = convert(rows, work, num_workers=config.workers)
    for outcome in shown(outcomes, f"tokenizing {Path(source.path).name}"):
        if isinstance(outcome, RowError):
            report.leave_out(outcome, skip=skip)
        else:
            report.keep(truncated=outcome.truncated)
            examples.append(outcome.row)
    report.close()
    return Loaded(rows=job.link(examples), report=report)


def _recognised(
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
